"""One window of load on one gateway: what it answered, what it cost, how long it took."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.client import Ask, Load, Tally, finish, opened, run_closed, run_open
from tests.bench.openai_wire import MODEL, chat_body
from tests.bench.process_use import family_cpu_s, family_held_up_s, family_rss_mb
from tests.bench.statistic import percentile, spread

PATH = "/v1/chat/completions"
DRAIN_S = 1.0
QUIET_S = 20.0
"""How long a gateway may go on working at streams that were left, before the next window."""
LONGEST_S = 10.0
FEW = 100
"""The fewest answers whose 99th percentile says anything."""
WARM_S = 0.4
STREAM_WARM_S = 1.0
_FIGURES = (
    "calls_per_s",
    "calls_per_cpu_s",
    "chunks_per_s",
    "chunks_per_cpu_s",
    "cpu_share",
    "held_up_share",
    "rest_share",
    "rss_mb",
)


@dataclass(frozen=True)
class Target:
    """A gateway, or the engine itself, as its clients see it; `pid` is the process that is measured."""

    name: str
    port: int
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = MODEL
    others: tuple[int, ...] = ()
    """Processes of ours on the other core: nodes, the engine."""


@dataclass(frozen=True)
class Case:
    """What is asked at the same time by how many."""

    name: str
    connections: int
    prompt_bytes: int = 0
    chunks: int = 0


@dataclass
class Window:
    """What was measured in one."""

    calls_per_s: float
    calls_per_cpu_s: float
    chunks_per_s: float
    chunks_per_cpu_s: float
    cpu_share: float
    """Of its core, by the gateway's processes."""
    held_up_share: float
    """Of the time, that the gateway was ready to run while others had its core: 0 on a quiet machine."""
    rest_share: float
    """Of the other core, by the engine, the nodes and the load generator: near 1, they are the limit."""
    rss_mb: float
    latency_s: tuple[float, float]
    """Median and 99th percentile of whole answers."""
    chunk_s: tuple[float, float]
    """The same from a chunk's sending to its arrival."""
    errors: Counter[str]


def make_request(target: Target, body: bytes, path: str = PATH) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\nuser-agent: emcd-bench\r\n"
        f"accept: */*\r\ncontent-type: application/json\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def make_ask(target: Target, case: Case, pace_us: int = 0) -> Ask:
    body = chat_body(model=target.model, prompt_bytes=case.prompt_bytes, chunks=case.chunks, pace_us=pace_us)
    return Ask(make_request(target, body), case.chunks, stamped=pace_us > 0)


def run_closed_window(target: Target, case: Case, seconds: float, pace_us: int = 0) -> Window:
    """Every connection asks again as soon as it is answered."""
    ask = make_ask(target, case, pace_us)

    def run(load: Load, duration_s: float) -> float:
        return run_closed(load, case.connections, duration_s)

    warm_s = STREAM_WARM_S if case.chunks else WARM_S
    return _run_window(target, ask, run, seconds, warm_s, case.connections)


def run_open_window(target: Target, case: Case, seconds: float, rate: float, seed: int) -> Window:
    """Requests come at random times, so many a second on average, whoever has not answered yet."""
    draw = random.Random(seed)

    def run(load: Load, duration_s: float) -> float:
        return run_open(load, lambda: draw.expovariate(rate), duration_s)

    return _run_window(target, make_ask(target, case), run, seconds, WARM_S, FEW)


def _run_window(
    target: Target,
    ask: Ask,
    run: Callable[[Load, float], float],
    seconds: float,
    warm_s: float,
    enough: int,
) -> Window:
    """A gateway that gives fewer than `enough` answers in the time is given more of it."""
    with opened(Load(target.port, ask)) as load:
        run(load, warm_s)
        tally = load.tally
        calls, chunks = tally.calls, tally.chunks
        answers, delays = len(tally.latencies_s), len(tally.chunk_delays_s)
        before, rest_before = family_cpu_s(target.pid), _rest_cpu_s(target)
        held_up = family_held_up_s(target.pid)
        wall = run(load, seconds)
        while tally.chunks == chunks and tally.calls - calls < enough and wall < LONGEST_S:
            wall += run(load, seconds)
        cpu = max(family_cpu_s(target.pid) - before, 0.001)
        rest_cpu = _rest_cpu_s(target) - rest_before
        held_up = family_held_up_s(target.pid) - held_up
        rss_mb = family_rss_mb(target.pid)
        calls, chunks = tally.calls - calls, tally.chunks - chunks
        latencies, chunk_delays = tally.latencies_s[answers:], tally.chunk_delays_s[delays:]
        finish(load, DRAIN_S)
        was_cut = len(load.idle()) < len(load)
    if was_cut:
        wait_quiet(target.pid)
    return Window(
        calls_per_s=calls / wall,
        calls_per_cpu_s=calls / cpu,
        chunks_per_s=chunks / wall,
        chunks_per_cpu_s=chunks / cpu,
        cpu_share=cpu / wall,
        held_up_share=held_up / wall,
        rest_share=rest_cpu / wall,
        rss_mb=rss_mb,
        latency_s=(percentile(latencies, 0.5), percentile(latencies, 0.99)),
        chunk_s=(percentile(chunk_delays, 0.5), percentile(chunk_delays, 0.99)),
        errors=tally.errors,
    )


def _rest_cpu_s(target: Target) -> float:
    return time.process_time() + sum(map(family_cpu_s, target.others))


def wait_quiet(pid: int) -> None:
    """Until a process has done nearly nothing for a moment, or for so long that it will not."""
    until = time.monotonic() + QUIET_S
    busy = True
    while busy and time.monotonic() < until:
        before = family_cpu_s(pid)
        time.sleep(0.2)
        busy = family_cpu_s(pid) - before > 0.02


def prove(target: Target, case: Case) -> None:
    """One call, answered rightly before anything is measured. Raises: ConnectionError with what was wrong."""
    with opened(Load(target.port, make_ask(target, case))) as load:
        load.connect().send(time.monotonic())
        finish(load, 30.0)
        tally: Tally = load.tally
        if tally.calls != 1:
            reason = next(iter(tally.errors), "no answer")
            raise ConnectionError(f"{target.name}, {case.name}: {reason}")


def sum_up(windows: list[Window]) -> dict[str, Any]:
    """Median, lowest and highest of several windows, as JSON has it."""
    errors = sum((window.errors for window in windows), Counter[str]())
    found: dict[str, Any] = {"rounds": len(windows)}
    for name in _FIGURES:
        found[name] = _rounded(spread([getattr(window, name) for window in windows]))
    for name, field_name in (("latency_ms", "latency_s"), ("chunk_ms", "chunk_s")):
        for index, share in enumerate(("p50", "p99")):
            values = [getattr(window, field_name)[index] * 1000 for window in windows]
            if values == values and not any(value != value for value in values):
                found[f"{name}_{share}"] = _rounded(spread(values))
    found["errors"] = dict(errors.most_common(5))
    return found


def _rounded(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("median", "low", "high"), (float(f"{value:.4g}") for value in values), strict=True))
