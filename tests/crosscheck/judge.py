"""Runs verify.mjs: one Node process for many cases."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.node_packages import node_and_packages as find_packages

HERE = Path(__file__).resolve().parent
RUN_S = 120


@dataclass(frozen=True)
class Case:
    """One thing to judge; `name` stands in the answer."""

    name: str
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """`why` says what is wrong; `refused` whether a rule of verify.mjs said so, or a package threw."""

    ok: bool
    why: str
    refused: bool


def judge(cases: Sequence[Case]) -> dict[str, Judgement]:
    """What the JavaScript side says of each case. Skips the test when Node.js or npm can't be had."""
    assert len({case.name for case in cases}) == len(cases), "two cases of one name"
    node, packages = node_and_packages()
    done = subprocess.run(
        [*node, str(HERE / "verify.mjs"), str(packages)],
        input=json.dumps([{"name": c.name, "kind": c.kind, "data": c.data} for c in cases]),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        row["name"]: Judgement(row["ok"], row["why"], row.get("refused", False))
        for row in json.loads(done.stdout)
    }


def node_and_packages() -> tuple[list[str], Path]:
    """The command that runs node, and the folder with the packages. Skips the test without them."""
    return find_packages(HERE)
