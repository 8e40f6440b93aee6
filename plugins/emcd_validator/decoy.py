"""Transcripts for peers to judge: answers of honest nodes, and the same made plainly wrong. Pure.

Both go through one writer: ids and times are new, and every number is moved by less than honest engines
differ, so that neither bytes nor numbers tell a decoy from a real answer, nor lead back to the probe that
it was. Whole JSON answers alone are used: a stream's events can't be spoilt without a trace. Randomness is
an argument. Invariant: an answer is what a node says, so nothing is raised for what stands in it.
"""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import msgspec

from emcd.proto.openai import Endpoint
from emcd.proto.transcript import MAX_TRANSCRIPT_BYTES, Transcript

JSON_TYPE = "application/json"
_RELATIVE_NOISE = 2e-7
_LOGPROB_NOISE = 1e-6
_WRONG_BY = (0.25, 1.0)
"""How far a spoilt vector lies off, as a share of its length: ten times the widest threshold, at least."""
_SHIFTED_BY = (0.6, 2.0)
"""What is taken from every logprob of a spoilt answer."""
_SMALL_ODDS = 64
_ODD_FORM = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
    struct.error,
)
"""What working on an answer raises when it has another form than is known here."""


@dataclass(frozen=True)
class Sample:
    """What a node was asked, and its answer: that of a probe that passed, or one made wrong."""

    model_hash: bytes
    path: str
    request: bytes
    response: bytes


Answer = dict[str, Any]
_Spoil = Callable[[Answer, Sequence[Answer], Random], Answer | None]
_encode = msgspec.json.Encoder().encode


def read_answer_table(response: bytes) -> Answer | None:
    """The answer as a table; None where it is no whole JSON object."""
    try:
        table = msgspec.json.decode(response)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def rewrite(sample: Sample, rng: Random) -> Transcript | None:
    """The same answer in other bytes, for one peer; None where it has a form that is not understood."""
    table = read_answer_table(sample.response)
    return None if table is None else _write(sample, table, rng)


def make_decoys(sample: Sample, others: Iterable[Sample], rng: Random) -> list[Sample]:
    """Wrong answers to the sample's request, in random order. Whether they are gross is for a judge to say.

    Args: `others` samples of the same model and path, whose answers may be put in its place.
    """
    table = read_answer_table(sample.response)
    if table is None:
        return []
    tables = [read_answer_table(other.response) for other in others if other.response != sample.response]
    spoilers = list(_SPOILERS[sample.path == Endpoint.EMBEDDINGS.value])
    rng.shuffle(spoilers)
    found = []
    for spoil in spoilers:
        spoilt = _try(spoil, table, [item for item in tables if item is not None], rng)
        if spoilt is not None:
            found.append(replace(sample, response=spoilt))
    return found


def _try(spoil: _Spoil, table: Answer, others: Sequence[Answer], rng: Random) -> bytes | None:
    try:
        spoilt = spoil(_copy(table), [_copy(item) for item in others], rng)
        return None if spoilt is None else _encode(spoilt)
    except _ODD_FORM:
        return None


def _write(sample: Sample, table: Answer, rng: Random) -> Transcript | None:
    try:
        jitter = _jitter_vectors if sample.path == Endpoint.EMBEDDINGS.value else _jitter_logprobs
        body = _encode(_rename(jitter(_copy(table), rng), rng))
    except _ODD_FORM:
        return None
    if len(body) + len(sample.request) > MAX_TRANSCRIPT_BYTES:
        return None
    return Transcript(sample.model_hash, sample.path, sample.request, 200, JSON_TYPE, body, rng.randbytes(32))


def _rename(table: Answer, rng: Random) -> Answer:
    if isinstance(table.get("id"), str):
        prefix = table["id"].partition("-")[0]
        table["id"] = f"{prefix}-{rng.randbytes(12).hex()}"
    if isinstance(table.get("created"), int):
        table["created"] += rng.randrange(-_SMALL_ODDS, _SMALL_ODDS)
    return table


def _jitter_vectors(table: Answer, rng: Random) -> Answer:
    """Move every number of the vectors by next to nothing."""
    for item in table.get("data") or ():
        row, is_text = _read_vector(item["embedding"])
        item["embedding"] = _write_vector(
            [x * (1 + rng.gauss(0, _RELATIVE_NOISE)) for x in row], is_text=is_text
        )
    return table


def _jitter_logprobs(table: Answer, rng: Random) -> Answer:
    """Move every logprob by next to nothing."""
    for choice in table.get("choices") or ():
        _change_logprobs(choice, lambda value: min(0.0, value + rng.uniform(-_LOGPROB_NOISE, _LOGPROB_NOISE)))
    return table


# ---------------------------------------------------------------- vectors


def _perturb_vectors(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """One of the vectors points elsewhere by a share of its length."""
    item = rng.choice(table["data"])
    row, is_text = _read_vector(item["embedding"])
    norm = math.hypot(*row)
    noise = [rng.gauss(0, 1) for _ in row]
    scale = rng.uniform(*_WRONG_BY) * norm / math.hypot(*noise)
    turned = [x + scale * y for x, y in zip(row, noise, strict=True)]
    back = norm / math.hypot(*turned)
    item["embedding"] = _write_vector([x * back for x in turned], is_text=is_text)
    return table


def _other_vectors(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """The vector of another text."""
    rows = [_read_vector(item["embedding"])[0] for other in others for item in other["data"]]
    if not rows:
        return None
    item = rng.choice(table["data"])
    row, is_text = _read_vector(item["embedding"])
    other = rng.choice(rows)
    if len(other) != len(row) or math.dist(row, other) < _WRONG_BY[0] * math.hypot(*row):
        return None
    item["embedding"] = _write_vector(other, is_text=is_text)
    return table


def _shuffled_vector(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """The right numbers in wrong places."""
    item = rng.choice(table["data"])
    row, is_text = _read_vector(item["embedding"])
    rng.shuffle(row)
    item["embedding"] = _write_vector(row, is_text=is_text)
    return table


def _read_vector(value: Any) -> tuple[list[float], bool]:
    if isinstance(value, str):
        data = b64decode(value, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data)), True
    return [float(x) for x in value], False


def _write_vector(row: Sequence[float], *, is_text: bool) -> Any:
    return b64encode(struct.pack(f"<{len(row)}f", *row)).decode() if is_text else list(row)


# ------------------------------------------------------------------- text


def _shift_logprobs(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """Every token is said to be less likely than it was."""
    by = rng.uniform(*_SHIFTED_BY)
    choice = _only_choice(table)
    return table if _change_logprobs(choice, lambda value: value - by * rng.uniform(0.8, 1.2)) else None


def _other_answer(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """The answer to another prompt, with its own tokens and logprobs."""
    ids = _only_choice(table).get("token_ids") or []
    fitting = [
        other
        for other in others
        if len(other["choices"]) == 1
        and other["choices"][0].get("logprobs")
        and _differ_in_half(ids, other["choices"][0].get("token_ids") or [])
    ]
    if not fitting:
        return None
    other = rng.choice(fitting)
    table["choices"] = other["choices"]
    usage = table["usage"]
    usage["completion_tokens"] = other["usage"]["completion_tokens"]
    if "total_tokens" in usage:
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return table


def _swap_tokens(table: Answer, others: Sequence[Answer], rng: Random) -> Answer | None:
    """Some tokens stand in other places of the answer, the text with them."""
    choice = _only_choice(table)
    entries, ids = choice["logprobs"]["content"], choice["token_ids"]
    pieces = [bytes(entry["bytes"]) for entry in entries]
    text = choice["message"]["content"]
    count = len(ids) if b"".join(pieces).decode("utf-8", "replace") == text else len(ids) - 1
    if len(entries) != len(ids) or b"".join(pieces[:count]).decode("utf-8", "replace") != text:
        return None
    order = list(range(count))
    rng.shuffle(order)
    order += range(count, len(ids))
    moved_ids = [ids[place] for place in order]
    if not _differ_in_half(ids, moved_ids):
        return None
    choice["token_ids"] = moved_ids
    choice["logprobs"]["content"] = [entries[place] for place in order]
    moved = b"".join(pieces[place] for place in order[:count])
    choice["message"]["content"] = moved.decode("utf-8")
    return table


def _only_choice(table: Answer) -> Answer:
    """The choice of an answer. Raises: ValueError where there are several: a judge reads them as one."""
    (choice,) = table["choices"]
    found: Answer = choice
    return found


def _differ_in_half(ids: Sequence[int], others: Sequence[int]) -> bool:
    """Whether at least half of the tokens of `others` are not those of `ids` in the same places."""
    same = sum(one == other for one, other in zip(ids, others, strict=False))
    return 2 * same <= len(others) > 0


def _change_logprobs(choice: Answer, change: Callable[[float], float]) -> bool:
    """Change every logprob of a choice, the chosen token alike wherever it stands. Returns: whether there is one."""
    found = choice.get("logprobs")
    if not found:
        return False
    for entry in found.get("content") or ():
        before, entry["logprob"] = entry["logprob"], change(entry["logprob"])
        for top in entry.get("top_logprobs") or ():
            # several tokens may be shown by one text: the chosen one has its bytes and its number, too
            is_chosen = (top["token"], top.get("bytes"), top["logprob"]) == (
                entry["token"],
                entry.get("bytes"),
                before,
            )
            top["logprob"] = entry["logprob"] if is_chosen else change(top["logprob"])
    own = found.get("token_logprobs") or []
    changed = [None if value is None else change(value) for value in own]
    for place, tops in enumerate(found.get("top_logprobs") or ()):
        for name in tops or ():
            is_chosen = name == found["tokens"][place] and tops[name] == own[place]
            tops[name] = changed[place] if is_chosen else change(tops[name])
    if own:
        found["token_logprobs"] = changed
    return bool(found.get("content") or own)


def _copy(table: Answer) -> Answer:
    copied: Answer = msgspec.json.decode(_encode(table))
    return copied


_SPOILERS: dict[bool, tuple[_Spoil, ...]] = {
    True: (_perturb_vectors, _other_vectors, _shuffled_vector),
    False: (_shift_logprobs, _other_answer, _swap_tokens),
}
