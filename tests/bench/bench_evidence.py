"""What evidence costs the hub: requests, chunks and whole answers with it and without, in turns, in microseconds.

Only the hub's own work on their bytes is measured (reading, cutting, hashing), in one process and no sockets:
what the rest of a call takes is in bench_feature. The chunks of both kinds carry the same words.

    PYTHONPATH=.:plugins python -m tests.bench.bench_evidence [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sha3

from emcd.proto.openai import Endpoint, UpstreamRequest, read_request
from emcd_hub.calls.evidence import read_piece
from emcd_hub.calls.passage import EventPassage, EvidencePassage
from tests.bench.statistic import spread

CHUNKS, TOKENS = 500, 64
ENTRY = {"token": " word", "logprob": -0.123456, "bytes": [32, 119, 111, 114, 100]}
LOGPROB = {**ENTRY, "top_logprobs": [ENTRY] * 5}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m"}
ASKED = {
    "model": "m", "messages": [{"role": "user", "content": "x" * 400}], "temperature": 0.7, "max_tokens": 99,
}  # fmt: skip
WITHOUT, TAKEN_OUT, PASSED = "no evidence", "evidence, taken out", "evidence, asked for"
Work = Callable[[], None]


def make_requests(stream: bool) -> dict[str, UpstreamRequest]:
    """The same request to a model that can't be verified, to one that can, and of who asks for all of it."""
    body = msgspec.json.encode({**ASKED, "stream": stream})
    hidden = read_request(Endpoint.CHAT, body, evidence=True, seed=5)
    return {
        WITHOUT: read_request(Endpoint.CHAT, body),
        TAKEN_OUT: hidden,
        PASSED: read_request(Endpoint.CHAT, hidden.body, evidence=True),
    }


def make_chunk(number: int, *, evidence: bool) -> bytes:
    choice: dict[str, Any] = {
        "index": 0,
        "delta": {"content": " word"},
        "logprobs": None,
        "finish_reason": None,
    }
    if evidence:
        choice |= {"logprobs": {"content": [LOGPROB], "refusal": None}, "token_ids": [number]}
    chunk = {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def make_answer(*, evidence: bool) -> bytes:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": " word" * TOKENS}}
    choice |= {"logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 99, "completion_tokens": TOKENS, "total_tokens": 99 + TOKENS}
    answer: dict[str, Any] = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
    if evidence:
        choice |= {
            "logprobs": {"content": [LOGPROB] * TOKENS, "refusal": None},
            "token_ids": list(range(TOKENS)),
        }
        answer["prompt_token_ids"] = list(range(99))
    return msgspec.json.encode(answer)


def pass_chunks(request: UpstreamRequest, chunks: Sequence[bytes]) -> None:
    """As a relay does: hash what comes, cut it, and hash what goes on where that differs."""
    passage = EvidencePassage(request) if request.evidence else EventPassage(request)
    received, sent = sha3.keccak_256(), sha3.keccak_256()
    for chunk in chunks:
        out = passage.take(chunk)
        received.update(chunk)
        if out is not chunk:
            sent.update(out)


def take_answer(request: UpstreamRequest, body: bytes) -> None:
    sha3.keccak_256(body).digest()
    if not request.evidence:
        return
    told = read_piece(Endpoint.CHAT, body, request.hidden).data
    if told is not body:
        sha3.keccak_256(told).digest()


def _repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()


def list_cases() -> dict[str, tuple[int, dict[str, Work]]]:
    """By name: how many there are of it in one piece of work, and the work of each kind."""
    body = msgspec.json.encode(ASKED)
    chunks = {kind: [make_chunk(n, evidence=kind) for n in range(CHUNKS)] for kind in (False, True)}
    answers = {kind: make_answer(evidence=kind) for kind in (False, True)}
    streamed, whole = make_requests(True), make_requests(False)

    def read(evidence: bool) -> Work:
        return lambda: _repeat(100, lambda: read_request(Endpoint.CHAT, body, evidence=evidence, seed=5))

    def relay(name: str) -> Work:
        return lambda: pass_chunks(streamed[name], chunks[name != WITHOUT])

    def answer(name: str) -> Work:
        return lambda: _repeat(20, lambda: take_answer(whole[name], answers[name != WITHOUT]))

    kinds = (WITHOUT, TAKEN_OUT, PASSED)
    return {
        "request": (100, {WITHOUT: read(False), TAKEN_OUT: read(True)}),
        f"chunk ({len(chunks[False][0])} and {len(chunks[True][0])} bytes)": (CHUNKS, {k: relay(k) for k in kinds}),
        f"answer of {TOKENS} tokens ({len(answers[False])} and {len(answers[True])} bytes)": (
            20, {kind: answer(kind) for kind in kinds},
        ),
    }  # fmt: skip


def run(rounds: int) -> dict[str, Any]:
    """Microseconds of CPU for one of each."""
    found: dict[str, Any] = {}
    for name, (number, kinds) in list_cases().items():
        spent: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, work in kinds.items():
                began = time.process_time()
                work()
                spent[kind].append((time.process_time() - began) / number * 1e6)
        found[name] = {kind: round(spread(values).median, 2) for kind, values in spent.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="in which they take turns (default 15)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = run(args.rounds)
    if args.json:
        print(json.dumps(results))
        return
    for case, rows in results.items():
        for kind, micro_s in rows.items():
            print(f"{case:48} {kind:24} {micro_s:>8.2f} us of CPU")


if __name__ == "__main__":
    main()
