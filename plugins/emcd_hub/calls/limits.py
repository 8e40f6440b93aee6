"""How long a call may take and how much it may bring: the settings of the call's path."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.proto.openai import UpstreamRequest
from emcd_hub.billing.book import UseFirst

_EVIDENCE_BYTES_A_TOKEN = 2048
"""A position with twenty alternatives; with five it is a third of that."""
_ID_BYTES = 8
_EVIDENCE_TIMES = 20
_MOST_EVIDENCE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class CallLimits:
    """See `HubConfig` for what each is."""

    use_first: UseFirst = "granted"
    default_output_tokens: int = 4096
    least_output_tokens: int = 16
    max_attempts: int = 3
    head_timeout_s: float = 60.0
    answer_head_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    call_timeout_s: float = 600.0
    answer_bytes: int = 64 * 1024 * 1024
    max_calls: int = 2048
    credit_wait_s: float = 2.0
    record_timeout_s: float = 30.0

    def node_bytes(self, request: UpstreamRequest) -> int:
        """The most bytes that a node may send for a request: evidence comes on top of what a client gets.

        It grows with the tokens that may come, and is bounded whatever a client asks for.
        """
        if not request.evidence:
            return self.answer_bytes
        output = request.output_bound_tokens
        if output is None:
            output = self.default_output_tokens * request.choices
        tokens = min(output, self.answer_bytes)  # a token is at least a byte
        evidence = tokens * _EVIDENCE_BYTES_A_TOKEN + request.input_bound_tokens * _ID_BYTES
        return self.answer_bytes + min(
            evidence, _EVIDENCE_TIMES * self.answer_bytes, max(_MOST_EVIDENCE_BYTES, self.answer_bytes)
        )

    def output_bound(self, request: UpstreamRequest, answer_bytes: int) -> int:
        """The most output tokens that an answer of this size can be charged for.

        Where the client set no bound: a token is at least a byte, and what was reserved may be used.
        """
        if request.output_bound_tokens is not None:
            return request.output_bound_tokens
        return max(answer_bytes, self.default_output_tokens * request.choices)
