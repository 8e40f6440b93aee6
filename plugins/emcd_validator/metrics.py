"""The validator's numbers."""

from __future__ import annotations

from emcd.metrics import counter, histogram

VERDICTS = counter(
    "emcd_validator_verdicts_total",
    "Verdicts on own probes and votes on others' strikes",
    ("kind", "verdict"),
)
DECISIONS = counter(
    "emcd_validator_decisions_total", "Bundles signed (code empty) and refused (with their code)", ("code",)
)
PEER_FAULTS = counter(
    "emcd_validator_peer_faults_total", "Statements and evidence of peers refused", ("code",)
)
OFFENCES = counter("emcd_validator_offences_total", "Offences proven here", ("kind",))
SLASHES = counter("emcd_validator_slashes_total", "Orders to slash that were signed here")
AUDIT_SECONDS = histogram("emcd_validator_audit_seconds", "Audit of one bundle")
