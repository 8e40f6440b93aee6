"""golden.json: its two forms, and what a check of it says. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from emcd.errors import ConfigError


class GoldenCheck(msgspec.Struct, frozen=True):
    """How a model's own run compares with its golden vectors.

    Args:
        detail: a sentence with the numbers.
        worst_e12: the largest share of a threshold that was used, times 10**12.
    """

    ok: bool
    detail: str
    worst_e12: int
    cases: int


class EmbeddingGolden(msgspec.Struct, frozen=True, tag_field="kind", tag="embedding",
                      forbid_unknown_fields=True):  # fmt: skip
    """`vectors`: base64 of little-endian float32, in the order of the texts."""

    texts: tuple[str, ...]
    vectors: tuple[str, ...]


class TokenRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What followed a prompt, sampled by `emcd-gumbel-v1`.

    Args:
        logprobs: of each token and of the five best beside it, as (id, natural logarithm).
    """

    temperature: float
    seed: int
    tokens: tuple[int, ...]
    logprobs: tuple[tuple[tuple[int, float], ...], ...]


class TextCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt in token ids: what follows at T = 0, and what a seed draws at T = 1."""

    prompt: tuple[int, ...]
    greedy: TokenRun
    seeded: TokenRun


class TextGolden(msgspec.Struct, frozen=True, tag_field="kind", tag="text",
                 forbid_unknown_fields=True):  # fmt: skip
    """The golden answers of a text model."""

    cases: tuple[TextCase, ...]


_Golden = TypeVar("_Golden", EmbeddingGolden, TextGolden)


def write_golden(golden: EmbeddingGolden | TextGolden) -> bytes:
    """The file's bytes, a value a line so that a difference can be read."""
    return msgspec.json.format(msgspec.json.encode(golden), indent=1) + b"\n"


def read_golden(name: str, data: bytes, kind: type[_Golden]) -> _Golden:
    """Raises: ConfigError EMC-1630 when the data are no golden vectors of this kind."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ConfigError("EMC-1630", f"{name}: {exc}") from exc
