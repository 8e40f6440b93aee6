"""Own runs of a text model: one prefill of prompt and answer, and others for the spread.

The other runs differ in threads, in the graph's optimisations and in that they take a token at a time;
where the declared class is lower than fp32 one has its weights rounded to it. Everything here blocks:
call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emcd.accounting.gumbel import gumbel_noise
from emcd.accounting.token_check import FreeStep, Position, ProbeKind
from emcd.errors import ConfigError, EmcdError, RecoverableError
from emcd.inference.chat_template import ChatTemplate, make_chat_prompt, make_text_prompt
from emcd.inference.decoder_session import DecoderSession, open_decoder
from emcd.inference.manifest import CHAT_TEMPLATE_FILE, GRAPH_FILE, TOKENIZER_FILE, TextManifest
from emcd.inference.prefill_facts import Drawing, Logits, TokenFacts, list_facts
from emcd.inference.replay import replay_parts
from emcd.inference.rounded_graph import rounded_graph
from emcd.inference.text_tokenizer import TextTokenizer
from emcd_validator.judge import Judgement, unusable
from emcd_validator.judge_request import TextAsk
from emcd_validator.judge_text import TextCase
from emcd_validator.model import JudgedModel


class TextReference:
    """One open model. `vocabulary` is its tokenizer."""

    def __init__(self, model: JudgedModel, threads: int) -> None:
        """Raises: ConfigError EMC-16xx."""
        manifest = model.manifest
        if not isinstance(manifest, TextManifest):
            raise RecoverableError("EMC-1811", f"{model.name} writes no text")
        self.manifest = manifest
        self._model, self._threads = model, threads
        self._graph = model.folder / GRAPH_FILE
        self.vocabulary = TextTokenizer(model.folder / TOKENIZER_FILE)
        self._template = _open_template(model, manifest, self.vocabulary)
        self._session = open_decoder(self._graph, threads=threads)
        if self._session.vocab_tokens not in (0, manifest.vocab_tokens):
            raise ConfigError("EMC-1850", f"{model.name}: its graph has another vocabulary than its manifest")

    def find_prompt(self, ask: TextAsk) -> tuple[int, ...] | Judgement:
        """The prompt's token ids by the manifest's template. Returns: ERROR when it can't be one."""
        if ask.messages is not None and self._template is None:
            return unusable("the model can't chat")
        try:
            ids = self._encode(ask)
        except (EmcdError, KeyError, TypeError, ValueError, AttributeError) as exc:
            return unusable(f"the request makes no prompt: {exc}")
        if not ids or not all(0 <= token < self.manifest.vocab_tokens for token in ids):
            return unusable("the request makes no prompt of the model's tokens")
        if len(ids) >= self.manifest.context_tokens:
            return unusable(f"a prompt of {len(ids)} tokens in a context of {self.manifest.context_tokens}")
        return tuple(ids)

    def compute(self, case: TextCase) -> list[Position]:
        """What the model itself says of every position. Raises: RecoverableError EMC-1651."""
        return self._list_positions(self._session.prefill_parts(*_place(case)), case)

    def compute_again(self, case: TextCase) -> list[list[Position]]:
        """The same in other ways. Raises: RecoverableError EMC-1651, ConfigError EMC-1650."""
        other = DecoderSession(self._graph, threads=self._threads + 1, optimization="basic")
        runs = [self._list_positions(replay_parts(other, *_place(case)), case)]
        with rounded_graph(self._graph, self._model.numeric_class) as rounded:
            if rounded is not None:
                session = DecoderSession(rounded, threads=self._threads)
                runs.append(self._list_positions(session.prefill_parts(*_place(case)), case))
        return runs

    def _encode(self, ask: TextAsk) -> Sequence[int]:
        if ask.messages is not None:
            assert self._template is not None
            return make_chat_prompt(self._template, self.vocabulary, ask.messages, self.manifest.bos_token)
        if isinstance(ask.prompt, str):
            return make_text_prompt(self.vocabulary, ask.prompt, self.manifest.bos_token)
        return ask.prompt

    def _list_positions(self, parts: Iterable[Logits], case: TextCase) -> list[Position]:
        sampling = case.ask.sampling
        drawing = Drawing(
            sampling.temperature, sampling.top_p, sampling.top_k, is_free=case.kind is ProbeKind.FREE
        )
        chosen = [*case.token_ids]
        wanted: list[set[int]] = [set(item) for item in case.reported]
        if case.end_missing:
            chosen.append(self.manifest.stop_tokens[0])
            wanted.append(set(self.manifest.stop_tokens))
        facts = list_facts(parts, wanted, chosen, drawing)
        positions = [
            _make_position(fact, reported, token)
            for fact, reported, token in zip(facts, case.reported, case.token_ids, strict=False)
        ]
        return [*positions, *([self._make_end(facts[-1], case)] if case.end_missing else [])]

    def _make_end(self, facts: TokenFacts, case: TextCase) -> Position:
        """The end token that was not delivered: the best of them in the first run, taken as reported rightly."""
        first, sampling = self.manifest.stop_tokens[0], case.ask.sampling
        logits = {
            token: facts.chosen_logit + logprob - facts.own[first] for token, logprob in facts.own.items()
        }
        place, temperature = len(case.token_ids), max(0.0, sampling.temperature)
        token = case.end_token
        if token is None:
            token = max(
                logits, key=lambda item: logits[item] + temperature * gumbel_noise(sampling.seed, place, item)
            )
        reported = {token: facts.own[token]}
        return Position(reported, facts.own, token, logits[token], facts.candidates, facts.log_total)


def _place(case: TextCase) -> tuple[list[int], int]:
    """What is run, and from which token on the logits are wanted."""
    return [*case.prompt_ids, *case.token_ids], len(case.prompt_ids) - 1


def _open_template(
    model: JudgedModel, manifest: TextManifest, vocabulary: TextTokenizer
) -> ChatTemplate | None:
    if not manifest.can_chat:
        return None
    path = model.folder / CHAT_TEMPLATE_FILE
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("EMC-1653", f"{path}: {exc}") from exc
    stop = manifest.stop_tokens[0] if manifest.stop_tokens else None
    return ChatTemplate(source, bos=vocabulary.name_of(manifest.bos_token), eos=vocabulary.name_of(stop))


def _make_position(facts: TokenFacts, reported: dict[int, float], token: int) -> Position:
    free = FreeStep(*facts.chance) if facts.chance is not None else None
    return Position(reported, facts.own, token, facts.chosen_logit, facts.candidates, facts.log_total, free)
