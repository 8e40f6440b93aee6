"""A text model that runs inside the daemon, answering chat and completions in OpenAI's form.

Owns one generator with its tokenizer and chat template. Invariants: the tokens are those of the
manifest's model and sampler for the request's seed (one is drawn where there is none); the head of an
answer is not sent before its first token is there, so that a call that fails before can go to another
node; a prompt that does not fit the context is refused, never cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from emcd.accounting.usage import Usage
from emcd.clock import Clock, SystemClock
from emcd.errors import ConfigError, RecoverableError
from emcd.inference.chat_template import (
    ChatTemplate,
    TemplateRefused,
    load_template,
    make_chat_prompt,
    make_text_prompt,
)
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.generator import (
    GenerateRefusal,
    Generation,
    GenerationRequest,
    Generator,
    GeneratorSettings,
)
from emcd.inference.manifest import CHAT_TEMPLATE_FILE, GRAPH_FILE, TOKENIZER_FILE, TextManifest
from emcd.inference.model_folder import ModelFolder
from emcd.inference.text_tokenizer import TextTokenizer, TooManyTokens
from emcd.proto.openai_shape import JSON, Endpoint
from emcd_node.prompt_reading import PromptReading
from emcd_node.served_model import CallRequest, Refused, Reply, unavailable
from emcd_node.text_answer import TextAnswer
from emcd_node.text_request import TextWish, bad_request, read_chat, read_completion

EVENT_STREAM: Final = "text/event-stream"


class TextModel:
    """One text model in this process."""

    def __init__(
        self,
        manifest: TextManifest,
        load: Callable[[], ModelFolder],
        settings: GeneratorSettings,
        threads: int = 1,
        clock: Clock | None = None,
    ) -> None:
        """`load` finds the folder and checks it, in a thread."""
        self.manifest = manifest
        self._load = load
        self._settings = settings
        self._threads = threads
        self._clock = clock or SystemClock()
        self._reading = PromptReading()
        self._tokenizer: TextTokenizer | None = None
        self._template: ChatTemplate | None = None
        self._generator: Generator | None = None
        self._fault = ""

    def is_available(self) -> bool:
        return self._generator is not None and self._generator.is_open

    def complaint(self) -> str:
        if self._fault:
            return self._fault
        return "" if self.is_available() else f"{self.manifest.name} is being opened"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check the model, open it, serve.

        A model that does not give its golden vectors here is not served, and the complaint says so.

        Raises: ConfigError EMC-1601, 1602, 1631, 1632 (its folder), 1650 (graph), 1652 (tokenizer), 1653
            (chat template).
        """
        try:
            session = await trio.to_thread.run_sync(self._open)
        except ConfigError as exc:
            if exc.code != "EMC-1634":
                raise
            self._fault = str(exc)
            task_status.started()
            await trio.sleep_forever()
        assert self._tokenizer is not None
        self._generator = Generator(
            session,
            self._tokenizer,
            context_tokens=self.manifest.context_tokens,
            stop_tokens=self.manifest.stop_tokens,
            settings=self._settings,
        )
        await self._generator.run(task_status=task_status)

    async def answer(self, request: CallRequest, reply: Reply) -> Usage | Refused:
        """Write the answer of a call.

        Raises: RecoverableError EMC-1651, EMC-1655 when it broke off after the head.
        Cancellation: its text leaves the batch after at most one step.
        """
        if request.endpoint not in self.manifest.list_endpoints():
            paths = " and ".join(sorted(endpoint.path for endpoint in self.manifest.list_endpoints()))
            return bad_request(f"{self.manifest.name} writes text: ask {paths}", "model")
        wish = read_chat(request.body) if request.endpoint is Endpoint.CHAT else read_completion(request.body)
        if isinstance(wish, Refused):
            return wish
        generator, tokenizer = self._generator, self._tokenizer
        if generator is None or tokenizer is None or not generator.is_open:
            return unavailable("EMC-2004", self.complaint())
        prompt = await self._make_prompt(wish)
        if isinstance(prompt, Refused):
            return prompt
        order = self._make_order(wish, prompt)
        if isinstance(order, Refused):
            return order
        answer = TextAnswer(
            request.endpoint,
            wish,
            tokenizer,
            model=self.manifest.name,
            call_id=os.urandom(12).hex(),
            created_s=self._clock.now_ms() // 1000,
            prompt=prompt,
        )
        return await self._write(generator, order, answer, reply, stream=wish.stream)

    async def _write(
        self,
        generator: Generator,
        order: GenerationRequest,
        answer: TextAnswer,
        reply: Reply,
        *,
        stream: bool,
    ) -> Usage | Refused:
        head_sent = False
        try:
            async with generator.generate(order) as generation:
                if isinstance(generation, GenerateRefusal):
                    return _refuse(generation)
                if not stream:
                    return await _send_whole(generation, answer, reply)
                async for pieces in generation:
                    if not head_sent:
                        await reply.start(200, EVENT_STREAM)
                        head_sent = True
                    await reply.send(answer.write_pieces(pieces))
                return answer.usage
        except RecoverableError as exc:
            if head_sent or exc.code not in ("EMC-1651", "EMC-1655"):
                raise
            return unavailable(exc.code, exc.detail)

    def _open(self) -> DecoderSession:
        """Blocks. Raises: ConfigError."""
        folder = self._load()
        tokenizer = TextTokenizer(folder.file(TOKENIZER_FILE))
        if self.manifest.can_chat:
            self._template = load_template(
                folder.file(CHAT_TEMPLATE_FILE),
                tokenizer,
                bos_token=self.manifest.bos_token,
                stop_tokens=self.manifest.stop_tokens,
            )
        self._tokenizer = tokenizer
        return open_decoder(folder.file(GRAPH_FILE), threads=self._threads)

    async def _make_prompt(self, wish: TextWish) -> list[int] | Refused:
        """The prompt's tokens."""
        assert self._tokenizer is not None
        if isinstance(wish.prompt, list):
            return self._check_tokens(wish.prompt)
        chars = _count_chars(wish)
        if chars > self._tokenizer.longest_bytes * self.manifest.context_tokens:
            return self._refuse_length(f"your prompt has {chars} characters, which are more tokens", wish)
        try:
            return await trio.to_thread.run_sync(self._tokenize, wish, limiter=self._reading.lane(chars))
        except TooManyTokens:
            return self._refuse_length(f"your prompt has {chars} characters, which are more tokens", wish)
        except TemplateRefused as exc:
            return Refused(400, exc.code, exc.detail, param="messages")

    def _tokenize(self, wish: TextWish) -> list[int]:
        bos, most, tokenizer = self.manifest.bos_token, self.manifest.context_tokens, self._tokenizer
        assert tokenizer is not None
        if wish.messages:
            assert self._template is not None
            return make_chat_prompt(self._template, tokenizer, wish.messages, bos, most)
        assert isinstance(wish.prompt, str)
        return make_text_prompt(tokenizer, wish.prompt, bos, most)

    def _check_tokens(self, prompt: list[int]) -> list[int] | Refused:
        if min(prompt) < 0 or max(prompt) >= self.manifest.vocab_tokens:
            return bad_request(
                f"prompt holds token numbers beyond 0 to {self.manifest.vocab_tokens - 1}", "prompt"
            )
        return prompt

    def _make_order(self, wish: TextWish, prompt: list[int]) -> GenerationRequest | Refused:
        if not prompt:
            return bad_request("the prompt has no tokens", "messages" if wish.messages else "prompt")
        room = self.manifest.context_tokens - len(prompt)
        wanted = max(1, room) if wish.max_tokens is None else wish.max_tokens
        if wanted > room:
            where = "messages" if wish.messages else "prompt"
            told = f"you requested {len(prompt) + wanted} tokens ({len(prompt)} in the {where}, {wanted} in the completion)"
            return self._refuse_length(told, wish)
        sampling = wish.sampling
        if not wish.has_seed:
            sampling = replace(sampling, seed=int.from_bytes(os.urandom(8), "little") >> 1)
        return GenerationRequest(prompt, wanted, sampling, wish.stop_texts, in_pieces=wish.stream)

    def _refuse_length(self, told: str, wish: TextWish) -> Refused:
        where = "messages" if wish.messages else "prompt"
        return Refused(
            400,
            "EMC-2026",
            f"This model's maximum context length is {self.manifest.context_tokens} tokens. However, {told}."
            f" Please reduce the length of the {where} or completion.",
            code="context_length_exceeded",
            param=where,
        )


def _count_chars(wish: TextWish) -> int:
    total = len(wish.prompt)
    for message in wish.messages:
        content = message["content"]
        total += len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
    return total


async def _send_whole(generation: Generation, answer: TextAnswer, reply: Reply) -> Usage:
    pieces = [piece async for found in generation for piece in found]
    body = answer.write_whole(pieces)
    await reply.start(200, JSON)
    await reply.send(body)
    return answer.usage


def _refuse(refusal: GenerateRefusal) -> Refused:
    if refusal is GenerateRefusal.TOO_LARGE:
        return bad_request(refusal.value, "max_tokens")
    return unavailable("EMC-2006", refusal.value)
