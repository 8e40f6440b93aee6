"""Judging a written answer, up to the statistic: template, tokens, text, counts, end. Pure.

The order is VERIFICATION 5.3. (2) Prompt ids, ids against bytes, ids against text: another template or
tokenizer is TEMPLATE, never a strike. (3) Counts. More output tokens claimed than delivered is no matter
of opinion: the node signed both the number and the bytes that hold fewer, and was paid by the number. So
it is a strike, whose statistic is claimed / delivered: above 1 it fails, from 10 on it is gross, as every
other statistic. One token more is let pass (engines count an end token that they do not deliver), fewer
harms nobody. Tokens that are said to be hidden reasoning can't be counted: TEMPLATE, and said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from emcd.accounting.token_check import ProbeKind
from emcd.accounting.verdict import GROSS_FACTOR, STATISTIC_SCALE
from emcd.inference.manifest import TextManifest
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement, Numbers, mismatch, unusable
from emcd_validator.judge_answer import Report, TextAnswer, Token, named_id
from emcd_validator.judge_request import COMPLETION_TOKENS, TextAsk, kind_of

COUNT_TOLERANCE = 1
"""An end token that an engine counts and does not deliver."""
_LEAST_ALTERNATIVES = 5
_UNDECODED = "\ufffd"


class Vocabulary(Protocol):
    """A tokenizer, as far as an answer is checked with it."""

    vocab_tokens: int

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, id: int) -> bytes: ...

    def find_tokens(self, data: bytes) -> tuple[int, ...]: ...

    def find_named(self, name: str) -> tuple[int, ...]: ...

    def is_special(self, id: int) -> bool: ...


@dataclass(frozen=True)
class Claim:
    """Tokens that the node wants to be paid for: what its receipt says, or else its usage."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class TextCase:
    """An answer of which only the statistic is left to judge.

    Args:
        reported: logprobs by id of every position, the chosen token's among them.
        end_missing: the answer ends by a token that was not delivered: whether it was due is judged as
            one position more.
    """

    kind: ProbeKind
    ask: TextAsk
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    reported: tuple[dict[int, float], ...]
    end_missing: bool


def check_answer(
    ask: TextAsk,
    answer: TextAnswer,
    prompt_ids: Sequence[int],
    vocabulary: Vocabulary,
    manifest: TextManifest,
    receipt: Claim | None = None,
) -> TextCase | Judgement:
    """Steps (2) and (3). Args: `prompt_ids` the judge's own; `receipt` what the node signed to be paid for."""
    own, kind = tuple(prompt_ids), kind_of(ask, manifest)
    token_ids = _find_ids(answer, vocabulary)
    if isinstance(token_ids, Judgement):
        return token_ids
    fault = (
        _check_prompt(answer, own)
        or _check_tokens(answer, token_ids, vocabulary, manifest)
        or _check_text(ask, answer, token_ids, vocabulary)
        or _check_counts(ask, answer, own, token_ids, receipt, kind)
        or _check_alternatives(ask, answer)
    )
    if fault is not None:
        return fault
    end = _check_end(ask, answer, token_ids, len(own), vocabulary, manifest)
    if isinstance(end, Judgement):
        return end
    reported = tuple(
        _read_reported(report, token, vocabulary, manifest.vocab_tokens)
        for report, token in zip(answer.reports, token_ids, strict=True)
    )
    return TextCase(kind, ask, own, token_ids, reported, end)


def _find_ids(answer: TextAnswer, vocabulary: Vocabulary) -> tuple[int, ...] | Judgement:
    """The ids of the output tokens, from the bytes of their names where they are not given."""
    if answer.token_ids is not None:
        return answer.token_ids
    ids = []
    for place, report in enumerate(answer.reports):
        found = _find_token(report.chosen, vocabulary)
        if len(found) != 1:
            return unusable(f"can't be checked: no token ids, and token {place} may be {len(found)} ones")
        ids.append(found[0])
    return tuple(ids)


def _find_token(token: Token, vocabulary: Vocabulary) -> tuple[int, ...]:
    if (known := named_id(token.name)) is not None:
        return (known,)
    return vocabulary.find_named(token.name) if token.data is None else vocabulary.find_tokens(token.data)


def _check_prompt(answer: TextAnswer, own: tuple[int, ...]) -> Judgement | None:
    if answer.prompt_ids is None or answer.prompt_ids == own:
        return None
    return mismatch(
        f"the prompt is {len(own)} tokens by the manifest's template, {len(answer.prompt_ids)} by the node's;"
        f" they differ from token {_count_shared(answer.prompt_ids, own)} on"
    )


def _count_shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _check_tokens(
    answer: TextAnswer, token_ids: Sequence[int], vocabulary: Vocabulary, manifest: TextManifest
) -> Judgement | None:
    """Every id is one of the vocabulary, is what its bytes say, and none goes on after the end."""
    most = manifest.vocab_tokens
    for place, (token, report) in enumerate(zip(token_ids, answer.reports, strict=True)):
        if token >= most:
            return mismatch(f"token {place} is {token}, the vocabulary has {most}")
        if token in manifest.stop_tokens and place < len(token_ids) - 1:
            return mismatch(f"token {place} of {len(token_ids)} ends an answer, and it goes on")
        is_nameless = token >= vocabulary.vocab_tokens or vocabulary.is_special(token)
        if not is_nameless and not _is_named(report.chosen, token, vocabulary):
            shown = report.chosen.name if report.chosen.data is None else report.chosen.data.hex()
            return mismatch(f"token {place} is {token} by its id, {shown[:40]!r} by its name")
    return None


def _is_named(named: Token, token: int, vocabulary: Vocabulary) -> bool:
    if (known := named_id(named.name)) is not None:
        return known == token
    if named.data is not None:
        return vocabulary.token_bytes(token) == named.data
    return token in vocabulary.find_named(named.name) or _UNDECODED in named.name


def _check_text(
    ask: TextAsk, answer: TextAnswer, token_ids: Sequence[int], vocabulary: Vocabulary
) -> Judgement | None:
    """The text is that of the tokens, or as much of it as stands before a stop text; none goes on after it."""
    decoded = vocabulary.decode(token_ids)
    before = vocabulary.decode(token_ids[:-1]) if ask.stops else ""
    if any(stop in before for stop in ask.stops):
        return mismatch("the answer goes on after a stop text")
    if _says(answer.text, decoded):
        return None
    if any(_is_cut(answer.text, decoded, stop) for stop in ask.stops):
        return None
    place = _count_shared(answer.text, decoded)
    return mismatch(f"the text is not that of the tokens from character {place} on")


def _says(text: str, decoded: str) -> bool:
    """Engines differ in a first space and in a character that is cut at the end."""
    if text == decoded:
        return True
    return text.rstrip(_UNDECODED).removeprefix(" ") == decoded.rstrip(_UNDECODED).removeprefix(" ")


def _is_cut(text: str, decoded: str, stop: str) -> bool:
    place = decoded.find(stop)
    return place >= 0 and (_says(text, decoded[:place]) or _says(text, decoded[: place + len(stop)]))


def _check_counts(
    ask: TextAsk,
    answer: TextAnswer,
    own: Sequence[int],
    token_ids: Sequence[int],
    receipt: Claim | None,
    kind: ProbeKind,
) -> Judgement | None:
    """What is claimed against what was delivered; a limit that was asked for bounds what counts."""
    entered, made = answer.prompt_tokens, answer.completion_tokens
    if receipt is not None:
        entered, made = max(entered, receipt.input_tokens), max(made, receipt.output_tokens)
    delivered = len(token_ids) if ask.limit is None else min(len(token_ids), ask.limit)
    facts = {"claimed": made, "delivered": delivered, "prompt": len(own), "prompt_claimed": entered}
    if answer.reasoning_tokens and made > delivered + COUNT_TOLERANCE:
        return mismatch(
            f"{made - delivered} tokens of hidden reasoning can't be counted", Numbers(kind, facts=facts)
        )
    if made > delivered + COUNT_TOLERANCE:
        return _inflated("output", made, delivered, kind, facts)
    if answer.prompt_ids is None and entered != len(own):
        return mismatch(
            f"{entered} prompt tokens counted, the template gives {len(own)}", Numbers(kind, facts=facts)
        )
    if entered > len(own) + COUNT_TOLERANCE:
        return _inflated("prompt", entered, len(own), kind, facts)
    return None


def _inflated(what: str, claimed: int, real: int, kind: ProbeKind, facts: dict[str, int]) -> Judgement:
    """More tokens claimed than the same signed answer holds."""
    statistic = min(claimed * STATISTIC_SCALE // max(1, real), 2**64 - 1)
    verdict = Verdict.GROSS if statistic >= GROSS_FACTOR * STATISTIC_SCALE else Verdict.FAIL
    return Judgement(
        verdict,
        statistic,
        f"{claimed} {what} tokens claimed, {real} delivered",
        numbers=Numbers(kind, {"count": statistic}, {"count": STATISTIC_SCALE}, facts=facts),
    )


def _check_alternatives(ask: TextAsk, answer: TextAnswer) -> Judgement | None:
    """As many alternatives as were asked for; names of a completion's may fall together."""
    wanted = min(ask.top_logprobs, _LEAST_ALTERNATIVES) if ask.is_chat else 1
    for place, report in enumerate(answer.reports):
        if len(report.alternatives) < wanted:
            return unusable(
                f"token {place} comes with {len(report.alternatives)} logprobs, not with {wanted}"
            )
    return None


def _check_end(
    ask: TextAsk,
    answer: TextAnswer,
    token_ids: Sequence[int],
    prompt_tokens: int,
    vocabulary: Vocabulary,
    manifest: TextManifest,
) -> bool | Judgement:
    """Whether the answer ends where it may. Returns: whether its end token was not delivered."""
    asked = ask.limit if ask.is_chat or ask.limit is not None else COMPLETION_TOKENS
    left = manifest.context_tokens - prompt_tokens
    most = left if asked is None else min(asked, left)
    count = len(token_ids)
    if answer.finish_reason == "length":
        if count < most - COUNT_TOLERANCE:
            return unusable(f"cut at {count} of {most} tokens")
        return False
    if answer.finish_reason != "stop":
        return unusable(f"the answer ended by {answer.finish_reason[:40] or 'nothing'!r}")
    decoded = vocabulary.decode(token_ids)
    if token_ids[-1] in manifest.stop_tokens or any(stop in decoded for stop in ask.stops):
        return False
    if not manifest.stop_tokens:
        return unusable("it stopped, and the model has no end token")
    return kind_of(ask, manifest) in (ProbeKind.SEEDED, ProbeKind.GREEDY)


def _read_reported(report: Report, token: int, vocabulary: Vocabulary, most: int) -> dict[int, float]:
    """Logprobs by id; an alternative whose name fits several tokens, or none, tells nothing."""
    reported = {}
    for alternative in report.alternatives:
        found = _find_token(alternative, vocabulary)
        if len(found) == 1 and found[0] < most:
            reported[found[0]] = alternative.logprob
    reported[token] = report.chosen.logprob
    return reported
