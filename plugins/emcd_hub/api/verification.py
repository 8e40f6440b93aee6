"""What anybody may see of verification: which models are verified and how, what validators found of nodes."""

from __future__ import annotations

from typing import Any

import msgspec

from emcd.accounting.suspension import Conduct
from emcd.inference.manifest import CheckedManifest, EmbeddingManifest
from emcd.proto.params import ModelStanding
from emcd.proto.records import format_call_id
from emcd_hub.counts.count_row import CountRow, DriftRow
from emcd_hub.counts.drift import drift_bps, is_answer_over, is_prompt_over, is_systematic
from emcd_hub.nodes.status import ModelInfo
from emcd_hub.nodes.suspension import NodeVerdicts

_MEANING = {
    ModelStanding.SHADOW: "verdicts are written down; only a gross one costs the node something",
    ModelStanding.ENFORCED: "verdicts count: strikes suspend, and slash",
    ModelStanding.DELISTED: "nobody may sell it",
}


def show_verification(info: ModelInfo, standing: ModelStanding) -> dict[str, Any]:
    """How the answers of a manifest are verified, by the parameters in force."""
    manifest = info.checked
    shown: dict[str, Any] = {
        "verifiable": manifest is not None,
        "standing": standing.name.lower() if manifest is not None else "unverified",
        "meaning": _MEANING[standing] if manifest is not None else "only the name is promised",
    }
    if manifest is None:
        return shown if standing is not ModelStanding.DELISTED else shown | {"standing": "delisted"}
    return shown | _show_manifest(manifest)


def _show_manifest(manifest: CheckedManifest) -> dict[str, Any]:
    calibration = manifest.calibration or None
    shown = {
        "numeric_class": manifest.numeric_class,
        "calibration": None if calibration is None else msgspec.to_builtins(calibration),
    }
    if isinstance(manifest, EmbeddingManifest):
        return shown | {
            "kind": "embedding",
            "challenges": ["embed"],
            "thresholds": {"relative_l2_e12": str(manifest.tau_e12)},
        }
    chooses = manifest.sampler != "engine"
    return shown | {
        "kind": "text",
        "engine": f"{manifest.engine} {manifest.engine_versions}".strip(),
        "sampler": manifest.sampler,
        "challenges": ["gen.seeded" if chooses else "gen.free", "gen.greedy", "first"],
        "thresholds": {name: str(value) for name, value in msgspec.to_builtins(manifest.thresholds).items()},
    }  # fmt: skip


def show_conduct(found: NodeVerdicts | None, conduct: Conduct | None) -> dict[str, Any]:
    """What closed rounds say of a node."""
    record = conduct or Conduct()
    strikes, others = record.strike_rounds, record.class_rounds
    why = ""
    if record.suspensions:
        rounds = ", ".join(str(index) for index in sorted({*strikes, *others}))
        why = (
            f"convicted by the validators for its answers in rounds {rounds}"
            if rounds
            else "convicted before"
        )
    return {
        "round": None if found is None else found.round,
        "verdicts": [] if found is None else list(found.verdicts),
        "reason": "" if found is None else found.reason,
        "strike_rounds": list(strikes),
        "class_strike_rounds": list(others),
        "suspensions": record.suspensions,
        "suspended_until_round": record.suspended_until_round,
        "why": why,
    }


def show_drift(sums: DriftRow | None) -> dict[str, Any] | None:
    """What the tokens that a node claimed of a model come to, against the hub's own count."""
    if sums is None:
        return None
    return {
        "calls": sums.calls,
        "odd": sums.odd,
        "compared": sums.compared,
        "claimed_input_tokens": sums.claimed_prompt,
        "counted_input_tokens": sums.counted_prompt,
        "claimed_output_tokens": sums.claimed,
        "counted_output_tokens": sums.counted,
        "input_drift_bps": drift_bps(sums.claimed_prompt, sums.counted_prompt),
        "output_drift_bps": drift_bps(sums.claimed, sums.counted),
        "inputs_over": sums.prompts_over,
        "outputs_over": sums.answers_over,
        "ids_that_spell_another_text": sums.unspelled,
        "systematic": is_systematic(sums),
    }


def show_count(row: CountRow) -> dict[str, Any]:
    """One call that was counted again: the node's receipt of it proves what it claimed."""
    return {
        "call_id": format_call_id(row.call_id),
        "at_ms": row.at_ms,
        "model_hash": f"0x{row.model_hash.hex()}",
        "why": row.why,
        "claimed": [row.claimed_prompt, row.claimed],
        "named": [row.named_prompt, row.named],
        "counted": [row.counted_prompt, row.counted],
        "pieces": row.pieces,
        "ids_spell_the_text": row.spelled,
        "input_over": is_prompt_over(row),
        "output_over": is_answer_over(row),
    }
