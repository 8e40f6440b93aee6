"""What an operator may limit of an API key. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from emcd.proto.openai_shape import MAX_MODEL_CHARS
from emcd_hub.billing.period import Period

MAX_PATTERNS = 64
MAX_PER_MINUTE = 10**12
MAX_PARALLEL = 10**6
MAX_BUDGET_MICRO = 10**15


@dataclass(frozen=True)
class KeyLimits:
    """A key's limits; None, or an empty list of models: no such limit.

    Attributes:
        models: names, or beginnings of names with a star at their end.
        budget_micro: what its calls may cost in a period; a call is not begun, and a stream is cut, beyond.
    """

    models: tuple[str, ...] = ()
    expires_at_ms: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_calls: int | None = None
    budget_micro: int | None = None
    period: Period = Period.NONE

    def allows(self, model: str) -> bool:
        """Whether calls of a model may be made."""
        return not self.models or any(
            model == pattern or (pattern[-1] == "*" and model.startswith(pattern[:-1]))
            for pattern in self.models
        )

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def find_fault(self) -> tuple[str, str] | None:
        """The first field out of bounds, and what it must be; None when all are well."""
        for name, value, most in (
            ("expires_at_ms", self.expires_at_ms, 2**53),
            ("requests_per_minute", self.requests_per_minute, MAX_PER_MINUTE),
            ("tokens_per_minute", self.tokens_per_minute, MAX_PER_MINUTE),
            ("parallel_calls", self.parallel_calls, MAX_PARALLEL),
        ):
            if value is not None and not 1 <= value <= most:
                return name, f"must be 1 to {most}"
        if self.budget_micro is not None and not 0 <= self.budget_micro <= MAX_BUDGET_MICRO:
            return "budget_micro", f"must be 0 to {MAX_BUDGET_MICRO} in decimal digits"
        if self.period is not Period.NONE and self.budget_micro is None:
            return "period", "is for a budget: give budget_micro, or lift both"
        if len(self.models) > MAX_PATTERNS:
            return "models", f"holds at most {MAX_PATTERNS} names"
        for pattern in self.models:
            if not 0 < len(pattern) <= MAX_MODEL_CHARS or not pattern.isprintable() or "*" in pattern[:-1]:
                return (
                    "models",
                    f"must hold names of 1 to {MAX_MODEL_CHARS} characters; a star ends one, if any",
                )
        return None


NO_LIMITS = KeyLimits()
