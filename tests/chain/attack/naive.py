"""The contracts with one defence taken out, by exact text patches of their sources.

One compilation holds every patch: each naive version is the same code with the number of the defence
that it lacks in one far storage slot, so all of them cost one run of the compiler. Kept by content
in the temporary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

import emcd.chain.contracts as contracts
from emcd.chain.contracts import CONTRACT_NAMES, Artifact
from emcd.chain.contracts.compile import compile_contracts

SOURCES = Path(contracts.__file__).parent / "src"
EXTRA = Path(__file__).parent / "sol"
NAMES = (*CONTRACT_NAMES, "HostileToken", "Thief")
SLOT = 0x6E61697665
_PRAGMA = "pragma solidity 0.8.36;\n"
_IMPORT = '\nimport {naive, INaiveToken, INaivePause} from "./Naive.sol";\n'


@dataclass(frozen=True)
class Patch:
    """`find`, which stands once in `file`, becomes `instead`; there NAIVE is whether the defence lacks."""

    file: str
    find: str
    instead: str

    def apply(self, source: str, number: int) -> str:
        """Raises: AssertionError when the defence does not stand where the patch expects it."""
        assert source.count(self.find) == 1, f"{self.file}: {source.count(self.find)} times: {self.find}"
        return source.replace(self.find, self.instead.replace("NAIVE", f"naive({number})"))


def left_out(file: str, statement: str) -> Patch:
    """The naive version lacks a statement."""
    return Patch(file, statement, f"if (!NAIVE) {{ {statement} }}")


def put_before(file: str, statement: str, extra: str) -> Patch:
    """The naive version does something else first."""
    return Patch(file, statement, f"if (NAIVE) {{ {extra} }} {statement}")


def put_after(file: str, statement: str, extra: str) -> Patch:
    """The naive version does something more."""
    return Patch(file, statement, f"{statement} if (NAIVE) {{ {extra} }}")


def changed(file: str, expression: str, instead: str) -> Patch:
    """The naive version has another value."""
    return Patch(file, expression, f"(NAIVE ? {instead} : {expression})")


def patched_sources(defences: Sequence[tuple[Patch, ...]]) -> dict[str, str]:
    """Every source, with all patches; a defence's number is its position from 1."""
    sources = {path.name: path.read_text() for path in SOURCES.glob("*.sol")}
    for number, patches in enumerate(defences, 1):
        for patch in patches:
            sources[patch.file] = patch.apply(sources[patch.file], number)
    touched = {patch.file for patches in defences for patch in patches}
    for name in touched:
        sources[name] = sources[name].replace(_PRAGMA, _PRAGMA + _IMPORT, 1)
    return sources | {path.name: path.read_text() for path in EXTRA.glob("*.sol")}


def compile_naive(defences: Sequence[tuple[Patch, ...]]) -> Callable[[str], Artifact]:
    """The artifacts by name. Raises: ToolUnavailable, RuntimeError with the compiler's words."""
    sources = patched_sources(defences)
    tools = b"".join((SOURCES.parent / name).read_bytes() for name in ("compile.mjs", "package-lock.json"))
    digest = hashlib.sha256(tools + msgspec.json.encode([NAMES, sorted(sources.items())])).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"emcd-naive-{os.getuid()}-{digest}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=folder.name) as work:
            inside, out = Path(work) / "src", Path(work) / "out"
            inside.mkdir()
            for name, text in sources.items():
                (inside / name).write_text(text)
            compile_contracts(out, inside, NAMES)
            with contextlib.suppress(OSError):  # another run made it meanwhile
                out.rename(folder)

    @cache
    def load(name: str) -> Artifact:
        return msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Artifact)

    return load
