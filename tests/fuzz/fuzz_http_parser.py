"""Fuzzes the request parser: any bytes in any cuts, compared with itself and with h11.

An input is a byte that seeds the cuts and the bytes of a connection. With atheris installed its
coverage guides the mutations; without it they are blind. A finding is written to the current
folder as `crash-*`; put it into tests/fuzz/http_inputs, where a test reads it from then on.

    python tests/fuzz/fuzz_http_parser.py --seconds 600 [--corpus FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

atheris: Any = import_module("atheris") if find_spec("atheris") else None
with atheris.instrument_imports(include=["emcd.net", "h11"]) if atheris else nullcontext():
    from tests.support import http_oracle

from tests.support.bad_requests import CHUNKED, REFUSED  # noqa: E402 -- after what is instrumented

WORDS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"\0", b"0", b"1", b"a", b"\xff",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"TE: trailers\r\n", b"Upgrade: x\r\n",
    b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"HTTP/1.0", b"0\r\n\r\n", b"5\r\nhello\r\n", b"hello", b"\r\n\r\n",
]  # fmt: skip


def cut(data: bytes) -> list[bytes]:
    """The reads of an input: one, byte by byte, at the ends of heads, or by chance."""
    mode, data = data[0], data[1:]
    if mode < 32:
        return [data]
    if mode < 64:
        return [data[at : at + 1] for at in range(len(data))]
    if mode < 160:
        ends = data.replace(b"\r\n\r\n", b"\r\n\r\n\0split").split(b"\0split")
        return [b"".join(ends[at : at + 1 + mode % 3]) for at in range(0, len(ends), 1 + mode % 3)]
    draw = random.Random(mode)
    reads, at = [], 0
    while at < len(data):
        size = draw.choice((1, 2, 5, 20, 80))
        reads.append(data[at : at + size])
        at += size
    return reads


def check(data: bytes) -> None:
    """Raises: for a finding, whatever it is."""
    if not 1 < len(data) <= 6000:
        return
    http_oracle.require_same_however_cut(cut(data))
    http_oracle.require_as_h11(data[1:])


def list_seeds() -> list[bytes]:
    one = b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    two = b"GET /?q=1 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n"
    three = CHUNKED + b"5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n"
    good = [one * 3, one + two * 2 + one, three + one + three, two * 5]
    bad = [data for _, data in REFUSED.values()] + [one + data + two for _, data in REFUSED.values()]
    return [bytes([mode]) + data for data in good + bad for mode in (0, 100, 101, 200)]


def mutate(data: bytes, seeds: list[bytes], draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice((0, 0, 1, 1, 2, 8, 40)))
        kind = draw.randrange(5)
        if kind == 0:
            piece = draw.choice(WORDS)
        elif kind == 1:
            piece = draw.randbytes(draw.choice((1, 1, 2)))
        elif kind == 2:
            other = draw.choice(seeds)
            start = draw.randrange(len(other))
            piece = other[start : start + draw.choice((3, 20, 100))]
        elif kind == 3:
            piece = data[at:to] * 2
        else:
            piece = b""
        data = data[:at] + piece + data[to:]
    return data[:6000]


def fuzz_blindly(seconds: float, seed: int) -> int:
    """Returns: how many inputs were tried."""
    seeds, draw = list_seeds(), random.Random(seed)
    until, tried = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = mutate(draw.choice(seeds), seeds, draw)
        tried += 1
        try:
            check(data)
        except Exception:
            Path("crash-" + hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            raise
        if draw.randrange(200) == 0:
            seeds.append(data or b"\0")
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="atheris keeps what it learnt here")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    args = parser.parse_args()
    if atheris is None:
        print(f"atheris is not installed: blind mutations, seed {args.seed}")
        print(f"{fuzz_blindly(args.seconds, args.seed)} inputs, no finding")
        return
    corpus: Path = args.corpus or Path(".fuzz-http")
    corpus.mkdir(parents=True, exist_ok=True)
    for data in list_seeds():
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    options = [f"-max_total_time={args.seconds}", "-max_len=6000", "-timeout=20", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, os.fspath(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
