"""What is wrong with a configuration: one fault per mistake, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from emcd.errors import ConfigError

SYNTAX = "EMC-1001"
UNKNOWN_KEY = "EMC-1002"
BAD_VALUE = "EMC-1003"
MISSING_KEY = "EMC-1004"
UNSET_VARIABLE = "EMC-1005"


@dataclass(frozen=True)
class Fault:
    """One mistake of a configuration file.

    `where` is the table path ("[[role]] hub.listen"), `file` is filled in by whoever read it.
    """

    where: str
    message: str
    code: str = BAD_VALUE
    file: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.where) if part)
        return f"{self.code}: {place}: {self.message}" if place else f"{self.code}: {self.message}"


class ConfigFaults(ConfigError):
    """Every fault of a configuration, at once. `code` is that of the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults[0].code, "; ".join(f"{fault.where}: {fault.message}" for fault in faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return "\n".join(f"{number}. {fault}" for number, fault in enumerate(self.faults, 1))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the closest known word, or ""."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def in_file(faults: Iterable[Fault], file: str) -> list[Fault]:
    """The same faults, with the file's name."""
    return [replace(fault, file=fault.file or file) for fault in faults]
