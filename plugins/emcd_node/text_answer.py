"""Answers of text in OpenAI's shapes: whole and streamed, chat and completions.

Owns the JSON of one answer. Invariants: the chunks of a stream, put together, say what the whole answer
would; every token that was chosen is told once, the one that ended the text too; log-probabilities and
token numbers stand there only for those who asked.
Source: https://platform.openai.com/docs/api-reference (chat, completions); `prompt_token_ids` and
`token_ids` as vLLM has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from emcd.accounting.usage import Usage
from emcd.inference.generator import Piece
from emcd.inference.text_tokenizer import TextTokenizer
from emcd.inference.token_choice import Choice
from emcd.proto.openai_shape import Endpoint
from emcd_node.text_request import TextWish

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class TextAnswer:
    """The writer of one call's answer."""

    def __init__(
        self,
        endpoint: Endpoint,
        wish: TextWish,
        tokenizer: TextTokenizer,
        *,
        model: str,
        call_id: str,
        created_s: int,
        prompt: Sequence[int],
    ) -> None:
        self._is_chat = endpoint is Endpoint.CHAT
        self._wish = wish
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._offset = 0
        self._begun = False
        kind = "chat.completion" if self._is_chat else "text_completion"
        if self._is_chat and wish.stream:
            kind += ".chunk"
        name = f"chatcmpl-{call_id}" if self._is_chat else f"cmpl-{call_id}"
        self._head = {"id": name, "object": kind, "created": created_s, "model": model}
        self.output_tokens = 0

    @property
    def usage(self) -> Usage:
        """What was used by the pieces written so far."""
        return Usage(len(self._prompt), self.output_tokens)

    def write_whole(self, pieces: Sequence[Piece]) -> bytes:
        """The answer at once."""
        text = "".join(piece.text for piece in pieces)
        choices = [choice for piece in pieces for choice in piece.choices]
        fields: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._is_chat
            else {"text": text}
        )
        choice = self._make_choice(fields, choices, pieces[-1].finish_reason)
        self.output_tokens = len(choices)
        return _encode(
            {**self._head, "choices": [choice], **self._prompt_fields(), "usage": self._usage_fields()}
        )

    def write_pieces(self, pieces: Sequence[Piece]) -> bytes:
        """The events of the next pieces; those of the last one end the stream."""
        events = [] if self._begun or not self._is_chat else [self._write_role()]
        events += [self._write_chunk(piece) for piece in pieces]
        self._begun = True
        if pieces and pieces[-1].finish_reason is not None:
            if self._wish.wants_usage:
                events.append(_event({**self._head, "choices": [], "usage": self._usage_fields()}))
            events.append(DONE)
        return b"".join(events)

    def _write_role(self) -> bytes:
        delta = {"delta": {"role": "assistant", "content": ""}}
        return self._event_of(self._make_choice(delta, (), None), self._prompt_fields())

    def _write_chunk(self, piece: Piece) -> bytes:
        fields: dict[str, Any] = {"delta": {"content": piece.text}} if self._is_chat else {"text": piece.text}
        choice = self._make_choice(fields, piece.choices, piece.finish_reason)
        self.output_tokens += len(piece.choices)
        return self._event_of(choice, {} if self._begun or self._is_chat else self._prompt_fields())

    def _event_of(self, choice: dict[str, Any], more: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._wish.wants_usage else {}
        return _event({**self._head, "choices": [choice], **more, **usage})

    def _make_choice(
        self, fields: dict[str, Any], choices: Sequence[Choice], reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": 0, **fields, "logprobs": None, "finish_reason": reason}
        if self._wish.logprobs and choices:
            choice["logprobs"] = (
                self._write_chat_logprobs(choices) if self._is_chat else self._write_text_logprobs(choices)
            )
        if self._wish.token_ids:
            choice["token_ids"] = [found.token for found in choices]
        return choice

    def _write_chat_logprobs(self, choices: Sequence[Choice]) -> dict[str, Any]:
        def tell(token: int, logprob: float) -> dict[str, Any]:
            data = self._tokenizer.token_bytes(token)
            name = data.decode("utf-8", "replace") if data else self._tokenizer.token_name(token)
            return {"token": name, "logprob": logprob, "bytes": list(data)}

        content = [
            {
                **tell(choice.token, choice.logprob),
                "top_logprobs": [tell(token, logprob) for token, logprob in choice.top],
            }
            for choice in choices
        ]
        return {"content": content, "refusal": None}

    def _write_text_logprobs(self, choices: Sequence[Choice]) -> dict[str, Any]:
        name_of, offsets = self._tokenizer.token_name, []
        for choice in choices:
            offsets.append(self._offset)
            self._offset += len(self._tokenizer.token_text(choice.token))
        return {
            "tokens": [name_of(choice.token) for choice in choices],
            "token_logprobs": [choice.logprob for choice in choices],
            "top_logprobs": [
                {name_of(token): logprob for token, logprob in choice.top} for choice in choices
            ],
            "text_offset": offsets,
        }

    def _prompt_fields(self) -> dict[str, Any]:
        return {"prompt_token_ids": list(self._prompt)} if self._wish.token_ids else {}

    def _usage_fields(self) -> dict[str, int]:
        used, made = self.usage
        return {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"
