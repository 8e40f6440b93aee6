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
AUDIT_SECONDS = histogram("emcd_validator_audit_seconds", "Audit of one bundle")
