"""Opening a key must not leave the process open to a stack overflow by nested JSON."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emcd.recursion import SAFE_LIMIT, cap_recursion
from tests.support.process import make_environment

PROGRAM = """
import sys, threading
import msgspec, json
from emcd.keys import encrypt_key, generate_key
encrypt_key(generate_key(), "password", kdf="light")
assert sys.getrecursionlimit() <= {limit}, sys.getrecursionlimit()
def attack():
    for decode in (json.loads, msgspec.json.decode, lambda text: msgspec.msgpack.decode(b"\\x91" * 200_000)):
        try:
            decode("[" * 200_000)
        except RecursionError:
            print("refused")
attack()
thread = threading.Thread(target=attack)
thread.start()
thread.join()
"""


def test_nested_json_after_opening_a_key_is_refused_in_every_thread() -> None:
    program = PROGRAM.replace("{limit}", str(SAFE_LIMIT))
    done = subprocess.run(
        [sys.executable, "-c", program], env=make_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * 6), done.stderr


def test_cap_recursion_leaves_a_low_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[int] = []
    monkeypatch.setattr(sys, "setrecursionlimit", lowered.append)
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 1000)
    cap_recursion()
    assert lowered == []
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 100_000)
    cap_recursion()
    assert lowered == [SAFE_LIMIT]
