"""Recomputing a verdict from its evidence alone, with the model where it is at hand. Blocking, offline.

Owns the outcome of an examination and its exit code. It takes nothing from the prober but bytes and
signatures: links are followed, the statistic is run anew, and only then is compared what was stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from emcd.errors import ConfigError
from emcd.inference.golden import check_model
from emcd.proto.messages import Verdict
from emcd_validator.corpus import decode_leaf
from emcd_validator.evidence_file import Links, ListRequests, WholeEvidence, check_links
from emcd_validator.judge import Blame, Judgement, unusable
from emcd_validator.judge_desk import add_run_facts, blame_node
from emcd_validator.judge_text import Claim
from emcd_validator.model import JudgedModel, find_judged
from emcd_validator.plan import Draws, Slot
from emcd_validator.reference_embedding import EmbeddingReference
from emcd_validator.reference_text import TextReference
from emcd_validator.token_count import request_variants
from emcd_validator.verdict_run import judge_vectors, judge_writing, require_ok


class Result(IntEnum):
    """What came of an examination; the exit code of `emcd verdict show`."""

    CONFIRMED = 0
    BROKEN = 3
    DIFFERENT = 4
    NOT_RUN = 5


@dataclass(frozen=True)
class Examination:
    """Links, the own verdict (None: the model is not here, for `why_not`), and whether it is as stated."""

    whole: WholeEvidence
    links: Links
    own: Judgement | None
    why_not: str

    @property
    def result(self) -> Result:
        if not all(item.holds is not False for item in self.links.items if item.name != "records"):
            return Result.BROKEN
        if self.own is None:
            return Result.NOT_RUN
        return Result.CONFIRMED if self.is_as_stated else Result.DIFFERENT

    @property
    def is_as_stated(self) -> bool:
        return self.own is not None and self.own.verdict is self.whole.stated.verdict

    @property
    def blame(self) -> Blame:
        """Of whoever the records and the statistic leave."""
        if self.links.fault is not None:
            return self.links.fault.blame
        verdict = self.own.verdict if self.own is not None else self.whole.stated.verdict
        return Blame.NODE if verdict.is_strike else Blame.NOBODY


def examine(whole: WholeEvidence, models_dir: Path, *, threads: int = 1) -> Examination:
    """Recompute everything that can be. Blocking, for as long as a model takes to be checked and run."""
    model, why_not = _find_model(whole, models_dir, threads)
    links = check_links(whole, None if model is None else _make_lister(model))
    if links.fault is not None:
        return Examination(whole, links, unusable(links.fault.reason, links.fault.blame), "")
    if model is None:
        return Examination(whole, links, None, why_not)
    return Examination(whole, links, _judge(whole, model, threads), "")


def _find_model(whole: WholeEvidence, models_dir: Path, threads: int) -> tuple[JudgedModel | None, str]:
    name = whole.manifest.name
    try:
        model = find_judged(name, models_dir)
        if model.model_hash != whole.model_hash:
            return None, f"{name} in {models_dir} is another model than the evidence is about"
        check = check_model(models_dir, name, threads=threads)
    except ConfigError as exc:
        return None, f"{name} is not here: {exc.code}: {exc.detail}"
    return (
        (model, "") if check.ok else (None, f"{name} does not give its golden vectors here: {check.detail}")
    )


def _make_lister(model: JudgedModel) -> ListRequests:
    def list_requests(draws: Draws, slot: Slot, leaf: bytes) -> list[tuple[str, bytes]]:
        return [(item.path, item.body) for item in request_variants(draws, slot, decode_leaf(leaf), model)]

    return list_requests


def _judge(whole: WholeEvidence, model: JudgedModel, threads: int) -> Judgement:
    if (bad := require_ok(whole.evidence.response_status)) is not None:
        return bad
    evidence, receipt = whole.evidence, whole.evidence.receipt.receipt
    asked = (evidence.request_path, evidence.request_body, evidence.response_body)
    if model.is_text:
        claim = None if receipt is None else Claim(receipt.input_tokens, receipt.output_tokens)
        judged = judge_writing(TextReference(model, threads), model, *asked, claim)
    else:
        judged = judge_vectors(EmbeddingReference(model, threads), model, *asked)
    return blame_node(add_run_facts(judged, model, threads))


def describe_verdict(verdict: Verdict) -> str:
    """What a verdict means, in plain words."""
    return _MEANINGS[verdict]


_MEANINGS = {
    Verdict.PASS: "the answer is what the model of this manifest gives for this request",
    Verdict.FAIL: "the answer is not what the model of this manifest gives",
    Verdict.GROSS: "the answer is far from what the model of this manifest gives",
    Verdict.CLASS: "the answer is the model's, computed with less precision than the manifest declares",
    Verdict.TEMPLATE: "prompt, tokens or counts are not made as the manifest says: nothing was compared",
    Verdict.ERROR: "there is no answer that could be compared: liveness, never cheating",
    Verdict.OFFLINE: "the node was not there to be asked",
}
