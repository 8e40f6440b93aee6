"""The evidence of own strikes, for peers to judge anew."""

from __future__ import annotations

from emcd.proto.messages import Verdict
from emcd_validator.probe_request import PATH
from emcd_validator.queries.rounds import ProbeRow
from emcd_validator.statement import Evidence, read_receipt


def make_evidence(probe: ProbeRow) -> Evidence | None:
    """What is served of a probe; None unless it was judged FAIL or GROSS."""
    if probe.result is None or probe.leaf_index is None or not Verdict(probe.result.verdict).is_strike:
        return None
    return Evidence(
        request_path=PATH,
        request_body=probe.request_body,
        response_status=probe.status,
        response_content_type=probe.content_type,
        response_body=probe.response_body,
        receipt=read_receipt(probe.receipt),
        model=probe.model,
        leaf_index=probe.leaf_index,
        leaf_count=probe.leaf_count,
        leaf=probe.leaf,
        leaf_path=probe.leaf_path,
    )
