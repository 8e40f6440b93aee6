"""How long a call may take and how much it may bring: the settings of the call's path."""

from __future__ import annotations

from dataclasses import dataclass

from emcd_hub.billing.book import UseFirst


@dataclass(frozen=True)
class CallLimits:
    """See `HubConfig` for what each is."""

    use_first: UseFirst = "granted"
    default_output_tokens: int = 4096
    least_output_tokens: int = 16
    max_attempts: int = 3
    head_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    call_timeout_s: float = 600.0
    answer_bytes: int = 64 * 1024 * 1024
    queue_timeout_s: float = 10.0
    max_waiting: int = 1024
    max_calls: int = 2048
    record_timeout_s: float = 30.0
