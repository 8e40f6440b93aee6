"""The validator's numbers."""

from __future__ import annotations

from emcd.metrics import counter, histogram

VERDICTS = counter(
    "emcd_validator_verdicts_total",
    "Verdicts on own probes and votes on others' strikes",
    ("kind", "verdict"),
)
LIVENESS = counter(
    "emcd_validator_liveness_total",
    "Probes that were not answered, by how: silent, busy, loading, failed, refused, absent",
    ("kind",),
)
DECISIONS = counter(
    "emcd_validator_decisions_total", "Bundles signed (code empty) and refused (with their code)", ("code",)
)
PEER_FAULTS = counter(
    "emcd_validator_peer_faults_total", "Statements and evidence of peers refused", ("code",)
)
TASKS = counter("emcd_validator_tasks_taken_total", "Tasks of peers, by what came of them here", ("outcome",))
TASKS_GIVEN = counter(
    "emcd_validator_tasks_given_total", "Tasks given to peers: answered right, wrong, or not", ("outcome",)
)
CHALLENGES = counter(
    "emcd_validator_challenges_total", "Challenged receipts, by what came of them", ("outcome",)
)
OFFENCES = counter("emcd_validator_offences_total", "Offences proven here", ("kind",))
SLASHES = counter("emcd_validator_slashes_total", "Orders to slash that were signed here")
AUDIT_SECONDS = histogram("emcd_validator_audit_seconds", "Audit of one bundle")
STATISTICS = histogram(
    "emcd_validator_statistic_ratio",
    "Statistics of judged answers as shares of their thresholds (1 fails)",
    ("kind", "statistic"),
    buckets=(0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
DRIFTS = counter("emcd_validator_drifts_total", "Nodes whose statistics began to drift below the thresholds")
