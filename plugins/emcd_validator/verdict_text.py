"""A verdict in plain words, with its numbers: what was asked, what came, who is to blame, what follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from emcd.accounting.drift import ALARM, SUSPECT_Z, Drift
from emcd.accounting.suspension import STRIKES_TO_CONVICT
from emcd.accounting.verdict import GROSS_FACTOR, STATISTIC_SCALE
from emcd.proto.address import hex_hash
from emcd.proto.json_bound import is_too_fine
from emcd.proto.messages import Verdict
from emcd.proto.params import ModelStanding, NetworkParams
from emcd.proto.records import format_call_id
from emcd_validator.evidence_file import WholeEvidence
from emcd_validator.judge import Judgement, Numbers
from emcd_validator.queries.verdicts import VerdictRow
from emcd_validator.verdict_examine import Examination, Result, describe_verdict

_SHOWN_CHARS = 160
_NAMES = {
    "l2": "distance of the vectors (relative L2)",
    "d": "mean distance of the log-probabilities",
    "m": "mean margin of tokens that the sampler would not take",
    "w": "the same in the worst 16 tokens",
    "first": "distance of the log-probabilities at one position",
    "count": "tokens claimed over tokens delivered",
}
_RESULTS = {
    Result.CONFIRMED: "CONFIRMED: everything was recomputed here, and comes to the same verdict",
    Result.BROKEN: "BROKEN: the evidence does not hold together, so it proves nothing",
    Result.DIFFERENT: "DIFFERENT: recomputed here it comes to another verdict",
    Result.NOT_RUN: "NOT RUN: the links hold, but the statistic was not recomputed here",
}


@dataclass(frozen=True)
class Surroundings:
    """What is known beside the evidence.

    Args:
        params: of the network, where a deployment is at hand.
        votes: on the call, by verdict, as the validator holds them; None: not asked.
        challenge: the state of a challenge to the node, where there is one.
    """

    params: NetworkParams | None = None
    votes: dict[str, int] | None = None
    challenge: str = ""


def tell(examination: Examination, around: Surroundings) -> str:
    """The whole text of `emcd verdict show`."""
    whole = examination.whole
    call = whole.evidence.receipt.forward.call_id
    lines = [
        f"{format_call_id(call)}: {whole.stated.verdict.name}, says validator {whole.validator}",
        f"  {describe_verdict(whole.stated.verdict)}",
        "",
        *_tell_call(whole),
        "",
        "links",
        *(_tell_link(item.name, item.holds, item.text) for item in examination.links.items),
        "",
        *_tell_numbers(examination),
        "",
        f"blame      {examination.blame.sentence}",
        *_tell_doubt(examination),
        *_tell_others(around),
        *_tell_consequence(examination, around.params),
        "",
        _RESULTS[examination.result],
    ]
    return "\n".join(lines)


def show(examination: Examination, around: Surroundings) -> dict[str, Any]:
    """The same as JSON."""
    whole, own = examination.whole, examination.own
    return {
        "call_id": format_call_id(whole.evidence.receipt.forward.call_id),
        "round": whole.round,
        "node": whole.node,
        "slot": whole.slot,
        "validator": whole.validator,
        "model": whole.manifest.name,
        "model_hash": hex_hash(whole.model_hash),
        "stated": {
            "verdict": whole.stated.verdict.name,
            "statistic_e12": str(whole.stated.statistic_e12),
            "reason": whole.stated.reason,
        },
        "links": [{"name": i.name, "holds": i.holds, "text": i.text} for i in examination.links.items],
        "own": None if own is None else show_judgement(own),
        "why_not_run": examination.why_not,
        "blame": examination.blame.value,
        "blame_text": examination.blame.sentence,
        "votes": around.votes,
        "challenge": around.challenge,
        "consequence": list(_tell_consequence(examination, around.params)),
        "result": examination.result.name.lower(),
    }


def show_judgement(judgement: Judgement) -> dict[str, Any]:
    numbers = judgement.numbers
    return {
        "verdict": judgement.verdict.name,
        "statistic_e12": str(judgement.statistic_e12),
        "reason": judgement.reason,
        "numbers": None if numbers is None else msgspec.to_builtins(numbers),
    }


def _tell_call(whole: WholeEvidence) -> Iterator[str]:
    evidence = whole.evidence
    receipt = evidence.receipt.receipt
    yield f"asked      round {whole.round}, node {whole.node}, {evidence.request_path}, model {whole.manifest.name}"
    yield f"           {_shorten(_find_question(evidence.request_body))}"
    counted = (
        "no receipt"
        if receipt is None
        else (f"{receipt.input_tokens} tokens in, {receipt.output_tokens} out, signed by the node")
    )
    yield f"came       status {evidence.response_status}, {len(evidence.response_body)} bytes; {counted}"


def _find_question(body: bytes) -> str:
    """The text that was asked, as far as it is plain."""
    try:
        table = {} if is_too_fine(body) else msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "(no request)"
    messages = table.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content"))
    return str(table.get("prompt", table.get("input", "")))


def _shorten(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return repr(shown if len(shown) <= _SHOWN_CHARS else shown[: _SHOWN_CHARS - 3] + "...")


def _tell_link(name: str, holds: bool | None, text: str) -> str:
    mark = {True: "ok", False: "NO", None: "?"}[holds]
    return f"  {mark:<3} {name:<11} {text}"


def _tell_numbers(examination: Examination) -> Iterator[str]:
    whole, own = examination.whole, examination.own
    if own is None:
        yield f"recomputed not: {examination.why_not}"
        yield from _list_numbers(whole.stated.numbers, "the validator states")
        return
    yield f"recomputed {own.verdict.name}: {describe_verdict(own.verdict)}"
    if own.reason:
        yield f"           {own.reason}"
    declared = whole.manifest.numeric_class
    yield from _list_numbers(own.numbers, f"class {declared}")
    if not examination.is_as_stated:
        yield f"           the validator says {whole.stated.verdict.name}: {whole.stated.reason or 'no reason'}"


def _list_numbers(numbers: Numbers | None, title: str) -> Iterator[str]:
    if numbers is None or not numbers.values:
        return
    yield f"  {numbers.kind.value}, {title}:"
    for name, value in numbers.values.items():
        tau = numbers.taus.get(name)
        found = f"{value / STATISTIC_SCALE:.3g}"
        if tau is None:
            yield f"    {_NAMES.get(name, name)}: {found} (not judged)"
            continue
        state = "above" if value > tau else "within"
        limits = f"{tau / STATISTIC_SCALE:.3g} (gross from {GROSS_FACTOR * tau / STATISTIC_SCALE:.3g})"
        spread = numbers.spreads.get(name)
        again = "" if spread is None else f"; own runs differ by {spread / STATISTIC_SCALE:.3g}"
        yield f"    {_NAMES.get(name, name)}: {found}, {state} the threshold {limits}{again}"
    if numbers.facts:
        yield "    " + ", ".join(f"{name} {value}" for name, value in sorted(numbers.facts.items()))


def _tell_doubt(examination: Examination) -> Iterator[str]:
    """What a stranger can't see."""
    fault = examination.links.fault
    if fault is not None and not fault.is_proven:
        yield "           (on the validator's word: only it and the hub know what it sent and what it got)"


def _tell_others(around: Surroundings) -> Iterator[str]:
    if around.votes is not None:
        said = ", ".join(f"{count} {name}" for name, count in sorted(around.votes.items())) or "none yet"
        yield f"votes      {said}"
    if around.challenge:
        yield f"challenge  {around.challenge}"


def _tell_consequence(examination: Examination, params: NetworkParams | None) -> Iterator[str]:
    """What follows if more than 2/3 of the power say the same."""
    own = examination.own
    verdict = examination.whole.stated.verdict if own is None else own.verdict
    if not verdict.is_strike:
        yield f"follows    {_PLAIN_CONSEQUENCES[verdict]}"
        return
    rules = params or NetworkParams(0)
    standing = None if params is None else params.standing_of(examination.whole.model_hash)
    if standing is ModelStanding.DELISTED:
        yield "follows    nothing: the model is delisted, its probes strike nobody"
        return
    if standing is ModelStanding.SHADOW and verdict is not Verdict.GROSS:
        yield "follows    nothing yet: the model is in shadow, the verdict is written down and costs nothing"
        return
    needed = (
        "one is enough"
        if verdict is Verdict.GROSS
        else (f"{STRIKES_TO_CONVICT} within {rules.strike_window_rounds} rounds are needed")
    )
    yield (
        "follows    once more than 2/3 of the validators' power say so: a strike, and no reward for the"
        f" round; to suspend for {rules.suspension_rounds} rounds {needed}, twice as long on repeat"
    )
    if standing is None and verdict is not Verdict.GROSS:
        yield "           (unless the model is in shadow: give --deployment to see)"
    if verdict is Verdict.CLASS:
        yield "           precision declared wrong is never slashed: declare the class that is run"


_PLAIN_CONSEQUENCES = {
    Verdict.PASS: "nothing: the call is paid",
    Verdict.TEMPLATE: "no strike: model and node have to agree on template and tokenizer first",
    Verdict.ERROR: "no strike: a node without usable answers earns nothing for them",
    Verdict.OFFLINE: "no strike: who is offline earns nothing",
}


def tell_row(row: VerdictRow) -> str:
    """One line of `emcd verdict list`."""
    call = format_call_id(row.call_id) if row.call_id else f"(no call, slot {row.slot})"
    share = f"{row.statistic_e12 / STATISTIC_SCALE:.3g}"
    text = f"{row.round:>6}  {row.part:<7} {Verdict(row.verdict).name:<8} {row.kind or '-':<10} {share:>9}"
    return f"{text}  {row.node}  {call}  {row.reason[:_SHOWN_CHARS]}".rstrip()


def tell_drift(node: str, model_hash: bytes, drift: Drift) -> str:
    """One node's running sums."""
    state = "DRIFTING" if drift.is_drifting else "SUSPECT" if drift.is_suspect else "ok"
    return (
        f"  {state:<9} {node}  model {hex_hash(model_hash)[:18]}  d {drift.d:.2f} m {drift.m:.2f} (alarm {ALARM:g}),"
        f" z {drift.z:.1f} (suspect beyond {SUSPECT_Z:g}), {drift.answers} answers"
    )
