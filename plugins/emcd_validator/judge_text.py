"""Judging a written answer, up to the statistic: template, tokens, text, counts, end. Pure.

Ids against bytes, ids against text, prompt ids: another template or tokenizer is TEMPLATE, never a strike.
Counts come before prompt ids, so that no odd template hides them. More tokens claimed than delivered, or
than the manifest's own template makes of the prompt, is no matter of opinion: the node signed both the
number and the bytes that hold fewer, and was paid by the number. So it is a strike, whose statistic is
claimed / delivered: above 1 it fails, from 10 on it is gross, as every other statistic. One output token
more is let pass (engines count an end token that they do not deliver), a few of the prompt (tokens that an
engine puts around it), fewer harm nobody. Tokens that are said to be hidden reasoning can't be counted:
TEMPLATE, and said so, where the model is sold under an engine that can have them; the embedded one has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from emcd.accounting.token_check import ProbeKind
from emcd.accounting.verdict import GROSS_FACTOR, STATISTIC_SCALE
from emcd.inference.manifest import EMBEDDED_ENGINE, TextManifest
from emcd.proto.messages import Verdict
from emcd_validator.judge import Judgement, Numbers, mismatch, unusable
from emcd_validator.judge_answer import Report, TextAnswer, Token, named_id
from emcd_validator.judge_request import COMPLETION_TOKENS, TextAsk, kind_of

COUNT_TOLERANCE = 1
"""An end token that an engine counts and does not deliver."""
_PROMPT_TOLERANCE, _PROMPT_TOLERANCE_SHARE = 2, 50
"""Prompt tokens beyond the judge's own count: so many, or one in so many."""
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


class Counts(NamedTuple):
    """Tokens of the answer that are claimed and delivered, of the prompt by the judge and as claimed."""

    claimed: int
    delivered: int
    prompt: int
    prompt_claimed: int


@dataclass(frozen=True)
class TextCase:
    """An answer of which only the statistic is left to judge.

    Args:
        reported: logprobs by id of every position, the chosen token's among them.
        end_missing: the answer ends by a token that was not delivered: whether it was due is judged as
            one position more.
        end_token: which of the end tokens that position is judged by; None: the first run finds it.
    """

    kind: ProbeKind
    ask: TextAsk
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    reported: tuple[dict[int, float], ...]
    end_missing: bool
    end_token: int | None = None


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
    counts = _count(ask, answer, own, receipt)
    if (inflated := _check_input(counts, kind)) is not None:
        return inflated
    token_ids = _find_ids(answer, vocabulary)
    if isinstance(token_ids, Judgement):
        return token_ids
    fault = (
        _check_tokens(answer, token_ids, vocabulary, manifest)
        or _check_text(ask, answer, token_ids, vocabulary)
        or _check_output(counts, answer, kind, manifest)
        or _check_prompt(counts, answer, own, kind)
        or _check_alternatives(answer, vocabulary, manifest.vocab_tokens)
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


def _check_prompt(
    counts: Counts, answer: TextAnswer, own: tuple[int, ...], kind: ProbeKind
) -> Judgement | None:
    if answer.prompt_ids is None and counts.prompt_claimed != counts.prompt:
        return mismatch(
            f"{counts.prompt_claimed} prompt tokens counted, the template gives {counts.prompt}",
            Numbers(kind, facts=counts._asdict()),
        )
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


def _count(ask: TextAsk, answer: TextAnswer, own: Sequence[int], receipt: Claim | None) -> Counts:
    """What is claimed against what was delivered; a limit that was asked for bounds what counts."""
    entered, made = answer.prompt_tokens, answer.completion_tokens
    if receipt is not None:
        entered, made = max(entered, receipt.input_tokens), max(made, receipt.output_tokens)
    told = len(answer.reports)
    delivered = told if ask.limit is None else min(told, ask.limit)
    return Counts(made, delivered, len(own), entered)


def _check_input(counts: Counts, kind: ProbeKind) -> Judgement | None:
    """Whatever the node made of the prompt: it is paid for the tokens of the manifest's own."""
    slack = max(_PROMPT_TOLERANCE, counts.prompt // _PROMPT_TOLERANCE_SHARE)
    if counts.prompt_claimed <= counts.prompt + slack:
        return None
    return _inflated("prompt", counts.prompt_claimed, counts.prompt, kind, counts)


def _check_output(
    counts: Counts, answer: TextAnswer, kind: ProbeKind, manifest: TextManifest
) -> Judgement | None:
    if counts.claimed <= counts.delivered + COUNT_TOLERANCE:
        return None
    if answer.reasoning_tokens and manifest.engine != EMBEDDED_ENGINE:
        hidden = counts.claimed - counts.delivered
        return mismatch(
            f"{hidden} tokens of hidden reasoning can't be counted", Numbers(kind, facts=counts._asdict())
        )
    return _inflated("output", counts.claimed, counts.delivered, kind, counts)


def _inflated(what: str, claimed: int, real: int, kind: ProbeKind, counts: Counts) -> Judgement:
    """More tokens claimed than the same signed answer holds."""
    statistic = min(claimed * STATISTIC_SCALE // max(1, real), 2**64 - 1)
    verdict = Verdict.GROSS if statistic >= GROSS_FACTOR * STATISTIC_SCALE else Verdict.FAIL
    return Judgement(
        verdict,
        statistic,
        f"{claimed} {what} tokens claimed, {real} delivered",
        numbers=Numbers(kind, {"count": statistic}, {"count": STATISTIC_SCALE}, facts=counts._asdict()),
    )


def _check_alternatives(answer: TextAnswer, vocabulary: Vocabulary, most: int) -> Judgement | None:
    """Enough different tokens at every place.

    A name that is none, or comes twice, tells nothing; one that fits doubles of the vocabulary is a token.
    """
    wanted = min(_LEAST_ALTERNATIVES, most)
    for place, report in enumerate(answer.reports):
        told = {_find_token(item, vocabulary) for item in report.alternatives}
        count = sum(bool(found) and found[0] < most for found in told)
        if count < wanted:
            return unusable(f"can't be checked: token {place} comes with {count} logprobs, not with {wanted}")
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
