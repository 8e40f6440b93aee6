"""The traffic profile: what users' calls look like, so that probes look the same. A TOML file.

Shares within a list need not add up to 1: they are weights. The file is the operator's: who sees the
hub's traffic, or runs an application himself, writes down what he sees there. The default is a mix that
holds for nobody in particular.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from emcd.errors import ConfigError
from emcd_validator.client_shape import CLIENTS

UNSET: Final = "unset"
Unset = Literal["unset"]
MAX_PROFILE_BYTES = 256 * 1024
MAX_CHOICES = 256
MAX_TURNS = 15


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of what users send. A pair is a value and its weight; "unset" means that the field is not sent.

    Args:
        chat: of the calls to text models: conversations; the others are completions.
        stream: answers asked for in pieces.
        system: conversations with a system prompt, of `system_prompts`. Name those that many users send:
            one that only this validator has gives it away.
        turns: texts in a conversation, the user's first and last: odd numbers.
        words: first and last length of a text in words, and weight.
        whole: texts that end where a paragraph ends, as people copy them; programs cut at a length.
        long: calls whose prompt fills most of the context and that ask for one token (`first`).
        long_words: the texts of those.
        max_completion_tokens: conversations that name their limit so, and not max_tokens.
        languages: of the texts, by two letters ("code" for code); empty: as the texts come.
        clients: headers of the programs that call; a key keeps the one that it drew.
        inputs: texts of an embeddings call.
        encodings: of an embeddings call: base64, float, or unset.
    """

    chat: float = 0.85
    stream: float = 0.5
    system: float = 0.35
    system_prompts: tuple[tuple[str, float], ...] = (("You are a helpful assistant.", 1.0),)
    turns: tuple[tuple[int, float], ...] = ((1, 0.68), (3, 0.18), (5, 0.09), (7, 0.05))
    whole: float = 0.5
    words: tuple[tuple[int, int, float], ...] = (
        (4, 15, 0.3),
        (16, 60, 0.35),
        (61, 200, 0.25),
        (201, 600, 0.1),
    )
    long: float = 1 / 24
    long_words: tuple[int, int] = (1_200, 5_000)
    temperatures: tuple[tuple[float | Unset, float], ...] = (
        (UNSET, 0.3),
        (0.0, 0.22),
        (0.1, 0.04),
        (0.2, 0.08),
        (0.3, 0.06),
        (0.5, 0.05),
        (0.7, 0.15),
        (0.8, 0.04),
        (1.0, 0.06),
    )
    top_p: tuple[tuple[float | Unset, float], ...] = ((UNSET, 0.72), (1.0, 0.14), (0.95, 0.08), (0.9, 0.06))
    max_tokens: tuple[tuple[int | Unset, float], ...] = (
        (UNSET, 0.25),
        (32, 0.05),
        (64, 0.1),
        (100, 0.08),
        (128, 0.12),
        (150, 0.05),
        (200, 0.08),
        (256, 0.15),
        (500, 0.05),
        (512, 0.07),
    )
    max_completion_tokens: float = 0.3
    languages: dict[str, float] = {}
    clients: dict[str, float] = msgspec.field(default_factory=lambda: dict.fromkeys(CLIENTS, 1.0))
    inputs: tuple[tuple[int, float], ...] = ((1, 0.7), (2, 0.08), (4, 0.1), (8, 0.08), (16, 0.04))
    encodings: tuple[tuple[Literal["base64", "float", "unset"], float], ...] = (
        ("base64", 0.6),
        ("float", 0.2),
        (UNSET, 0.2),
    )


DEFAULT: Final = Profile()


def load_profile(path: Path | None) -> Profile:
    """Read a profile; None gives the default. Blocking. Raises: ConfigError EMC-1858."""
    if path is None:
        return DEFAULT
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise ConfigError("EMC-1858", f"{path} has more than {MAX_PROFILE_BYTES} bytes")
        profile = msgspec.convert(tomllib.loads(data.decode("utf-8")), Profile)
    except OSError as exc:
        raise ConfigError("EMC-1858", f"{path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as exc:
        raise ConfigError("EMC-1858", f"{path}: {exc}") from exc
    if fault := next(_list_faults(profile), ""):
        raise ConfigError("EMC-1858", f"{path}: {fault}")
    return profile


def _list_faults(profile: Profile) -> Iterator[str]:
    for name in ("chat", "stream", "system", "long", "max_completion_tokens", "whole"):
        if not 0 <= getattr(profile, name) <= 1:
            yield f"{name} is a share between 0 and 1"
    for name in ("turns", "temperatures", "top_p", "max_tokens", "inputs", "encodings", "words"):
        yield from _weight_faults(name, [row[-1] for row in getattr(profile, name)])
    yield from _weight_faults("clients", list(profile.clients.values()))
    if profile.system:
        yield from _weight_faults("system_prompts", [row[-1] for row in profile.system_prompts])
    if profile.languages:
        yield from _weight_faults("languages", list(profile.languages.values()))
    if unknown := sorted(set(profile.clients) - set(CLIENTS)):
        yield f"clients knows {', '.join(CLIENTS)}, not {unknown[0]}"
    yield from _value_faults(profile)


def _value_faults(profile: Profile) -> Iterator[str]:
    def numbers(rows: Sequence[tuple[Any, float]]) -> list[float]:
        return [value for value, _ in rows if value != UNSET]

    if not all(turn % 2 and 0 < turn <= MAX_TURNS for turn, _ in profile.turns):
        yield f"turns are odd, 1 to {MAX_TURNS}"
    if not all(0 <= value <= 2 for value in numbers(profile.temperatures)):
        yield "temperatures are between 0 and 2"
    if not all(0 < value <= 1 for value in numbers(profile.top_p)):
        yield "top_p is above 0 and at most 1"
    if not all(1 < value <= 1 << 20 for value in numbers(profile.max_tokens)):
        yield "max_tokens is above 1: one token is what `long` asks for"
    if not all(0 < value <= 16 for value, _ in profile.inputs):
        yield "inputs are 1 to 16 texts"
    if not all(0 < first <= last <= 1_200 for first, last, _ in profile.words):
        yield "words are pairs of ascending lengths, at most 1200"
    if not 0 < profile.long_words[0] <= profile.long_words[1] <= 8_000:
        yield "long_words are two ascending lengths, at most 8000"
    if any(not text.strip() or len(text) > 4_000 for text, _ in profile.system_prompts):
        yield "a system prompt has 1 to 4000 characters"


def _weight_faults(name: str, weights: Sequence[float]) -> Iterator[str]:
    if not 0 < len(weights) <= MAX_CHOICES:
        yield f"{name} has 1 to {MAX_CHOICES} rows"
    elif not all(0 <= weight <= 1_000 for weight in weights) or sum(weights) < 0.001:
        yield f"the weights of {name} are between 0 and 1000, and not all 0"
