"""The hub beside nginx, LiteLLM and Portkey: what each answers per second of CPU, and how long it takes.

Every gateway has one core of its own, the same one, in turns; the engine, the hub's nodes and the load
generator share another. The hub does all that it does in service: keys, budgets, routing, receipts,
and every call on disk before its answer ends. The peers do less (tests/bench/peers.py says what).
What counts is calls per CPU-second of the gateway's processes: it does not depend on what the
other core leaves over. Latencies are differences to the same calls, straight to the engine, right after.

    PYTHONPATH=.:plugins python -m tests.bench.bench_gateway [--seconds 1.5] [--rounds 3] [--no-peers] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.hub_process import run_apart, running_hub
from tests.bench.mock_engine import MockEngine, listen
from tests.bench.openai_wire import ENGINE_MODEL
from tests.bench.peers import STARTERS, Unavailable
from tests.bench.process_use import Cores, choose_cores, on_core
from tests.bench.report import gateway_lines
from tests.bench.statistic import ratio, spread
from tests.bench.window import (
    Case,
    Target,
    Window,
    prove,
    run_closed_window,
    run_open_window,
    sum_up,
)

ONE, MANY, CROWD = Case("1 connection", 1), Case("32 connections", 32), Case("256 connections", 256)
PROMPTS = Case("256 kB prompts", 32, prompt_bytes=256 * 1024)
STREAMS = Case("100 streams", 100, chunks=200)
CASES = (ONE, MANY, CROWD, PROMPTS, STREAMS)
LIMIT_S = 330.0
CALIBRATE_S = 0.8
SLOW = ("LiteLLM", "Portkey")
Pairs = tuple[list[Window], list[Window]]
"""A gateway's windows, and those of the engine alone at the same rate."""
HUB, HUB_HTTP, DIRECT = "emcd", "emcd, HTTP engine", "engine alone"


def serve_engine(port_pipe: Any, core: int) -> None:
    os.sched_setaffinity(0, {core})
    sock = listen()
    port_pipe.send(sock.getsockname()[1])
    MockEngine(sock).run()


class Field:
    """Everything that runs while it is measured."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.targets: dict[str, Target] = {}
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    @contextmanager
    def opened(self, *, peers: bool) -> Iterator[None]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            engine = stack.enter_context(run_apart(serve_engine, self.cores.rest))
            engine_port = engine.first
            rest = (engine.pid,)
            self.targets[DIRECT] = Target(DIRECT, engine_port, engine.pid)
            hub = stack.enter_context(running_hub(self.cores, folder, f"http://127.0.0.1:{engine_port}/v1"))
            headers = {"authorization": f"Bearer {hub.api_key}"}
            port = hub.ports["public"]
            self.targets[HUB] = Target(HUB, port, hub.pid, headers, others=(*rest, *hub.nodes))
            self.targets[HUB_HTTP] = Target(
                HUB_HTTP, port, hub.pid, headers, ENGINE_MODEL, (*rest, *hub.nodes)
            )
            for name, start in STARTERS.items() if peers else ():
                _say(f"starting {name}")
                try:
                    with on_core(self.cores.gateway):
                        peer = start(engine_port, folder)
                except Unavailable as exc:
                    self.missing[name] = str(exc)
                    continue
                stack.callback(peer.close)
                self.versions[name] = peer.version
                self.targets[name] = Target(name, peer.port, peer.process.pid, peer.headers, others=rest)
            with on_core(self.cores.rest):
                yield

    def gateways(self, number: int = 0) -> list[tuple[str, Target]]:
        """All but the engine alone; after the first round without those that take long and have no goal."""
        left_out = (DIRECT, *SLOW) if number else (DIRECT,)
        return [(name, target) for name, target in self.targets.items() if name not in left_out]

    def prove(self, cases: tuple[Case, ...]) -> None:
        """One call of each case at each gateway; who can't answer it is left out, and named."""
        for name, target in list(self.targets.items()):
            try:
                for case in cases:
                    prove(target, case)
            except OSError as exc:
                self.drop(name, exc)

    def drop(self, name: str, exc: OSError) -> None:
        """Go on without a peer that broke. Raises: the fault, when it is not a peer's."""
        if name in (HUB, HUB_HTTP, DIRECT):
            raise exc
        _say(f"{name} broke: {exc}")
        self.missing[name] = str(exc)
        del self.targets[name]


class Rounds:
    """How often the gateways take turns: `rounds` times, fewer where that would take too long."""

    def __init__(self, rounds: int, limit_s: float) -> None:
        self._rounds = rounds
        self._limit_s = limit_s

    def __call__(self, share: float) -> Iterator[int]:
        """The rounds of a part of the measurement that may take this share of the time."""
        started = time.monotonic()
        for number in range(self._rounds):
            taken_s = time.monotonic() - started
            if number and taken_s * (number + 1) / number > share * self._limit_s:
                _say(f"no time for a round {number + 1}")
                return
            yield number


def measure(field: Field, seconds: float, rounds: Rounds) -> dict[str, Any]:
    """Rounds in which the gateways take turns at every case; then the latencies at half of what each did."""
    found: dict[str, dict[str, list[Window]]] = {case.name: {} for case in CASES}
    for number in rounds(0.6):
        for case in CASES:
            _say(f"round {number + 1}: {case.name}")
            for name, target in list(field.targets.items()):
                try:
                    window = run_closed_window(target, case, seconds)
                except OSError as exc:
                    field.drop(name, exc)
                else:
                    found[case.name].setdefault(name, []).append(window)
    direct = found[ONE.name][DIRECT]
    added: dict[str, dict[str, Any]] = {
        ONE.name: {
            name: _difference(windows, direct, "latency_s")
            for name, windows in found[ONE.name].items()
            if name != DIRECT and name in field.targets
        }
    }
    added["half load"] = _measure_half(field, found[MANY.name], seconds, rounds)
    added["half load, chunks"] = _measure_streams(field, found[STREAMS.name], seconds, rounds)
    return {
        "cases": {
            case: {name: sum_up(windows) for name, windows in rows.items() if name in field.targets}
            for case, rows in found.items()
        },
        "added_ms": added,
    }


def _measure_half(
    field: Field, many: dict[str, list[Window]], seconds: float, rounds: Rounds
) -> dict[str, Any]:
    """Each gateway at half of what it answered, and the engine alone at the same right after it."""

    def take(target: Target, name: str, number: int) -> Window:
        rate = max(1.0, spread([window.calls_per_s for window in many[name]]).median / 2)
        return run_open_window(target, MANY, seconds, rate, seed=number)

    return _in_pairs(field, rounds, "half load", "latency_s", take)


def _measure_streams(
    field: Field, flooded: dict[str, list[Window]], seconds: float, rounds: Rounds
) -> dict[str, Any]:
    """The same for streams whose chunks come one by one."""
    paces: dict[str, int] = {}

    def take(target: Target, name: str, _number: int) -> Window:
        if name not in paces:
            _say(f"looking for half load of streams: {name}")
            paces[name] = find_pace_us(
                target, spread([window.chunks_per_s for window in flooded[name]]).median
            )
        return run_closed_window(target, STREAMS, seconds, paces[name])

    return _in_pairs(field, rounds, "half load of streams", "chunk_s", take)


def _in_pairs(
    field: Field, rounds: Rounds, what: str, kind: str, take: Callable[[Target, str, int], Window]
) -> dict[str, Any]:
    pairs: dict[str, Pairs] = {}
    for number in rounds(0.2):
        _say(f"round {number + 1}: {what}")
        for name, target in field.gateways(number):
            try:
                ours, theirs = take(target, name, number), take(field.targets[DIRECT], name, number)
            except OSError as exc:
                field.drop(name, exc)
                continue
            windows = pairs.setdefault(name, ([], []))
            windows[0].append(ours)
            windows[1].append(theirs)
    return {name: _difference(*pair, kind) for name, pair in pairs.items() if name in field.targets}


def find_pace_us(target: Target, flood_per_s: float) -> int:
    """Microseconds between a stream's chunks that keep a core half busy: the gateway's, or the other if
    that is busier. Chunks one by one cost more than a flood of them, which a gateway takes in handfuls.
    """
    rate = max(STREAMS.connections / 10, flood_per_s / 8)
    for _ in range(2):
        window = run_closed_window(target, STREAMS, CALIBRATE_S, round(STREAMS.connections / rate * 1e6))
        rate = max(1.0, window.chunks_per_s / 2 / max(window.cpu_share, window.rest_share, 0.01))
    return max(1, round(STREAMS.connections / rate * 1e6))


def _difference(ours: list[Window], theirs: list[Window], kind: str) -> dict[str, Any]:
    """What a gateway adds, in ms: the median over the rounds of the differences of percentiles."""
    found: dict[str, Any] = {}
    for index, share in enumerate(("p50", "p99")):
        values = [
            (getattr(a, kind)[index] - getattr(b, kind)[index]) * 1000
            for a, b in zip(ours, theirs, strict=True)
        ]
        found[share] = {k: round(v, 3) for k, v in spread(values)._asdict().items()}
    unit = "chunks" if kind == "chunk_s" else "calls"
    for figure in ("per_s", "per_cpu_s"):
        found[figure] = round(spread([getattr(w, f"{unit}_{figure}") for w in ours]).median)
    found["errors"] = sum(w.errors.total() for w in ours)
    return found


def compare(cases: dict[str, Any]) -> dict[str, Any]:
    """How many times another gateway's figure ours is."""

    def of(case: str, name: str, figure: str) -> float:
        return float(cases[case][name][figure]["median"]) if name in cases[case] else 0.0

    ratios: dict[str, Any] = {}
    for case, rows in cases.items():
        figure = "chunks_per_cpu_s" if case == STREAMS.name else "calls_per_cpu_s"
        others = [name for name in rows if name not in (HUB, HUB_HTTP, DIRECT)]
        ratios[case] = {
            "figure": figure,
            **{
                ours: {name: _short(ratio(of(case, ours, figure), of(case, name, figure))) for name in others}
                for ours in (HUB, HUB_HTTP)
            },
        }
    ratios["chunks_per_s"] = {
        name: _short(ratio(of(STREAMS.name, HUB, "chunks_per_s"), of(STREAMS.name, name, "chunks_per_s")))
        for name in cases[STREAMS.name]
        if name not in (HUB, HUB_HTTP, DIRECT)
    }
    ratios["256 to 32 connections"] = _short(
        ratio(of(CROWD.name, HUB, "calls_per_cpu_s"), of(MANY.name, HUB, "calls_per_cpu_s"))
    )
    return ratios


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def run(seconds: float, rounds: int, *, peers: bool, limit_s: float = LIMIT_S) -> dict[str, Any]:
    field = Field(choose_cores())
    started = time.monotonic()
    with field.opened(peers=peers):
        field.prove((MANY, STREAMS))
        found = measure(field, seconds, Rounds(rounds, limit_s))
    return {
        "settings": {"seconds": seconds, "rounds": rounds},
        "versions": field.versions,
        "missing": field.missing,
        "ratios": compare(found["cases"]),
        **found,
        "took_s": round(time.monotonic() - started),
    }


def _say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="of each window (default 1.5)")
    parser.add_argument("--rounds", type=int, default=3, help="in which the gateways take turns (default 3)")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, help="seconds, about; then fewer rounds (330)"
    )
    parser.add_argument("--no-peers", action="store_true", help="the hub alone: nothing is installed")
    parser.add_argument("--json", action="store_true", help="the results as JSON instead of tables")
    args = parser.parse_args()
    results = run(args.seconds, args.rounds, peers=not args.no_peers, limit_s=args.limit)
    print(json.dumps(results) if args.json else "\n".join(gateway_lines(results)))


if __name__ == "__main__":
    main()
