"""The benchmarks' own code, briefly: it must not rot between two measurements.

What is measured is never looked at here, only that right answers count and wrong ones don't.
"""

from __future__ import annotations

import importlib
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench import bench_embedded, bench_embeddings, bench_generation, bench_soak
from tests.bench.bench_gateway import CASES, DIRECT, HUB, HUB_HTTP, MANY, STREAMS, Field, Rounds, compare
from tests.bench.client import Ask, Load, finish, opened, run_closed, run_open
from tests.bench.mock_engine import MockEngine, frame, listen, whole_answer
from tests.bench.openai_wire import DONE, FINISH, WHOLE, make_chunk
from tests.bench.process_use import choose_cores
from tests.bench.report import BEGIN, END, PLACES, goal_rows, result_lines, write_docs
from tests.bench.run import USUAL, find_benchmarks, make_parser, make_plan
from tests.bench.window import Case, Target, make_ask, prove, run_closed_window, run_open_window, sum_up
from tests.support.decoder_model import TOY

STREAM = Case("stream", 2, chunks=3)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Target]:
    """The mock engine in a thread of this process."""
    stopped = threading.Event()
    listener = listen()
    thread = threading.Thread(target=MockEngine(listener).run, args=(lambda: not stopped.is_set(),))
    thread.start()
    yield Target("engine", listener.getsockname()[1], 0)
    stopped.set()
    thread.join()
    listener.close()


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that says these bytes to one request and then closes."""

    def serve() -> None:
        with closing(listener.accept()[0]) as sock:
            sock.recv(65536)
            sock.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def wait_for(load: Load, condition: Callable[[], bool]) -> None:
    """Read until something is so, for some seconds at most."""
    for _ in range(50):
        if condition():
            return
        load.wait(0.1)


def events(*parts: bytes) -> bytes:
    return STREAM_HEAD + b"".join(map(frame, parts)) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "chunks", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", 0, "status 503: busy"),
        (whole_answer(b'{"choices": []}'), 0, "without the engine's words"),
        (whole_answer(WHOLE)[:-1], 0, "closed by the gateway"),
        (b"rubbish\r\n\r\n", 0, "no HTTP"),
        (events(make_chunk(1), FINISH, DONE), 2, "a stream of 1 chunks instead of 2"),
        (events(make_chunk(1), make_chunk(2), FINISH), 2, "a stream of 2 chunks"),
        (events(make_chunk(1), make_chunk(2), DONE)[:-5], 2, "closed by the gateway"),
    ],
)
def test_client_of_a_wrong_answer_counts_an_error_and_no_call(
    answer: bytes, chunks: int, reason: str
) -> None:
    with answering(answer) as port, opened(Load(port, Ask(b"GET / HTTP/1.1\r\n\r\n", chunks))) as load:
        load.connect().send(0.0)
        wait_for(load, lambda: bool(load.tally.errors))
        assert load.tally.calls == 0
        assert [reason in found for found in load.tally.errors] == [True]


def test_client_of_events_cut_anywhere_counts_every_chunk(engine: Target) -> None:
    whole = make_chunk(7) + make_chunk(8) + FINISH + DONE
    for size in (1, 7, 40, len(whole)):
        answer = events(*(whole[at : at + size] for at in range(0, len(whole), size)))
        with answering(answer) as port, opened(Load(port, Ask(b"GET /", 2, stamped=True))) as load:
            load.connect().send(0.0)
            wait_for(load, lambda: bool(load.tally.calls or load.tally.errors))
            assert (load.tally.calls, load.tally.chunks, len(load.tally.chunk_delays_s)) == (1, 2, 2)
            assert not load.tally.errors


@pytest.mark.parametrize("case", [Case("whole", 3), Case("long", 2, prompt_bytes=300_000), STREAM])
def test_load_closed_on_the_engine_is_answered_rightly(engine: Target, case: Case) -> None:
    with opened(Load(engine.port, make_ask(engine, case))) as load:
        for _ in range(3):
            run_closed(load, case.connections, 0.02)
        finish(load, 5)
        assert load.tally.calls >= 3
        assert not load.tally.errors
        assert load.tally.chunks == load.tally.calls * case.chunks
        assert len(load) == len(load.idle()) == case.connections


def test_load_open_on_the_engine_asks_when_it_is_due(engine: Target) -> None:
    with opened(Load(engine.port, make_ask(engine, MANY))) as load:
        gaps = iter([0.0] * 5 + [60.0])
        run_open(load, lambda: next(gaps), 0.02)
        finish(load, 5)
        assert (load.tally.calls, load.tally.errors.total()) == (5, 0)


def test_engine_paced_stamps_every_chunk_with_the_common_clock(engine: Target) -> None:
    with opened(Load(engine.port, make_ask(engine, STREAM, pace_us=500))) as load:
        run_closed(load, 2, 0.0)
        finish(load, 5)
        assert load.tally.calls == 2
        assert all(0 <= delay < 60 for delay in load.tally.chunk_delays_s)
        assert len(load.tally.chunk_delays_s) == 6


def test_gateway_field_answers_every_case_and_tells_of_it(tmp_path: Path) -> None:
    field = Field(choose_cores())
    with field.opened(peers=False):
        field.prove((MANY, STREAMS))
        assert not field.missing
        windows = {
            name: [run_closed_window(target, MANY, 0.1), run_open_window(target, MANY, 0.1, 50, 1)]
            for name, target in field.targets.items()
        }
        with pytest.raises(ConnectionError, match="status 401"):
            hub = field.targets[HUB]
            prove(Target("stranger", hub.port, hub.pid), MANY)
    rows = {name: sum_up(found) for name, found in windows.items()}
    assert set(rows) == {HUB, HUB_HTTP, DIRECT}
    assert not any(row["errors"] for row in rows.values())
    found = make_results({case.name: rows for case in CASES})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs(page, found)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"32 connections: {HUB_HTTP}" in text
    assert "Not measured: nginx: none here" in text


def make_results(cases: dict[str, Any]) -> dict[str, Any]:
    gateway = {
        "cases": cases,
        "ratios": compare(cases) if cases else {},
        "versions": {},
        "missing": {"nginx": "none here"},
        "added_ms": {},
    }
    machine = {"cpu": "a processor", "cores": 2, "python": "3", "system": "Linux"}
    return {"date": "2026-01-01T00:00:00", "machine": machine, "results": {"gateway": gateway}}


@pytest.mark.parametrize("name", find_benchmarks())
def test_benchmark_of_any_name_runs_by_itself(name: str) -> None:
    module = importlib.import_module(f"tests.bench.bench_{name}")
    assert callable(module.main)
    assert f"tests.bench.bench_{name}" in (module.__doc__ or "")


def test_plan_of_names_keeps_their_flags() -> None:
    parser = make_parser()
    assert list(make_plan(parser.parse_args([]))) == list(USUAL)
    plan = make_plan(parser.parse_args(["gateway", "--only", "soak", "--minutes", "3", "--seconds", "1"]))
    assert plan == {"gateway": ["--seconds", "1.0"], "soak": ["--minutes", "3.0"]}
    assert make_plan(parser.parse_args(["--quick"]))["gateway"][0] == "--no-peers"
    assert set(make_plan(parser.parse_args(["--all"]))) == {*find_benchmarks()} - {"soak"}
    with pytest.raises(SystemExit):
        parser.parse_args(["nothing of the kind"])


def test_rounds_without_time_are_one_and_otherwise_all() -> None:
    assert list(Rounds(3, limit_s=0.0)(1.0)) == [0]
    assert list(Rounds(3, limit_s=1e9)(0.2)) == [0, 1, 2]


def test_field_drops_a_peer_that_broke_and_never_the_hub() -> None:
    field = Field(choose_cores())
    field.targets = {name: Target(name, 1, 1) for name in (HUB, "nginx")}
    field.drop("nginx", ConnectionError("closed"))
    assert field.missing == {"nginx": "closed"}
    with pytest.raises(ConnectionError, match="gone"):
        field.drop(HUB, ConnectionError("gone"))
    assert list(field.targets) == [HUB]


def test_embedded_engine_is_measured_and_written_into_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_generation, "SHAPES", {"toy": TOY})
    monkeypatch.setattr(bench_generation, "STREAMS", (1, 3))
    monkeypatch.setattr(bench_embeddings, "TEXTS", 8)
    monkeypatch.setattr(bench_embeddings, "BATCHES", (1, 4))
    rows = bench_embedded.measure(passes=1, tokens=4, repeat=1)
    assert json.dumps(rows)
    begin, end = PLACES["embedded"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nas it was\n{END}\n{begin}\nold\n{end}\n")
    write_docs(page, {**make_results({}), "results": {"embedded": rows}})
    text = page.read_text()
    assert "as it was" in text
    assert "old" not in text
    assert "toy, 3 streams: bare loop" in text
    assert "64 callers to raw batch" in text


def test_write_docs_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="no place"):
        write_docs(page, make_results({}))
    assert page.read_text() == "no marks\n"


def test_result_lines_of_a_failure_say_so() -> None:
    found = make_results({})
    found["results"] = {"gateway": {"failed": "ended with 1"}}
    assert "- failed: ended with 1" in list(result_lines(found))


def test_compare_divides_ours_by_theirs() -> None:
    def row(calls: float, chunks: float) -> dict[str, Any]:
        values = {"calls_per_cpu_s": calls, "chunks_per_cpu_s": chunks, "chunks_per_s": chunks}
        return {name: {"median": value, "low": value, "high": value} for name, value in values.items()}

    rows = {HUB: row(800, 6000), HUB_HTTP: row(400, 3000), DIRECT: row(9000, 9000), "LiteLLM": row(8, 60)}
    ratios = compare({case.name: rows for case in CASES})
    assert ratios[MANY.name] == {
        "figure": "calls_per_cpu_s",
        HUB: {"LiteLLM": 100},
        HUB_HTTP: {"LiteLLM": 50},
    }
    assert ratios[STREAMS.name][HUB] == {"LiteLLM": 100}
    assert ratios["chunks_per_s"] == {"LiteLLM": 100}
    assert ratios["256 to 32 connections"] == 1


def test_goal_rows_say_what_is_reached_and_leave_out_what_was_not_measured() -> None:
    ratios = {"32 connections": {HUB: {"nginx": 0.25, "LiteLLM": 99.9}}}
    added = {"half load": {HUB: {"p99": {"median": 8.0}, "p50": {"median": float("nan")}}}}
    rows = list(goal_rows({"gateway": {"ratios": ratios, "added_ms": added}, "close": {"failed": "so"}}))
    assert [(row[1], row[3]) for row in rows] == [("99.9", "no"), ("0.25", "yes"), ("8.00", "no")]


def test_soak_of_a_moment_balances_and_loses_nothing() -> None:
    found = bench_soak.run(minutes=0.005, connections=5)
    assert found["calls"] > 0
    assert found["errors"] == {}
    assert found["rows"] == found["calls"]
    assert (found["unbalanced_micro"], found["lost_calls"]) == (0, 0)
    assert json.dumps(found)


@pytest.mark.parametrize(
    ("spoil", "unbalanced", "lost"),
    [
        (lambda con: None, 0, 0),
        (lambda con: con.execute("DELETE FROM hub_calls WHERE call_id = ?", (bytes([1] * 16),)), 30, 1),
        (lambda con: con.execute("UPDATE hub_accounts SET granted_micro = granted_micro - 7"), 7, 0),
        (lambda con: con.execute("UPDATE hub_calls SET vault_micro = 1"), -2, 0),
    ],
)
def test_books_that_do_not_balance_are_found(
    tmp_path: Path, spoil: Callable[[sqlite3.Connection], Any], unbalanced: int, lost: int
) -> None:
    file = tmp_path / "ledger.db"
    with closing(sqlite3.connect(file)) as con:
        con.executescript(
            """
            CREATE TABLE hub_movements (granted_micro INTEGER, vault_micro INTEGER);
            CREATE TABLE hub_accounts (granted_micro INTEGER, vault_micro INTEGER);
            CREATE TABLE hub_calls (call_id BLOB, granted_micro INTEGER, vault_micro INTEGER);
            INSERT INTO hub_movements VALUES (100, 0);
            INSERT INTO hub_accounts VALUES (50, 0);
            """
        )
        for number, charge in ((1, 30), (2, 20)):
            con.execute("INSERT INTO hub_calls VALUES (?, ?, 0)", (bytes([number] * 16), charge))
        spoil(con)
        con.commit()
    found = bench_soak.check_books(file, bytes([1] * 16 + [2] * 16))
    assert (found["unbalanced_micro"], found["lost_calls"]) == (unbalanced, lost)
