"""Results as tables: for the terminal, and in docs/performance.md between its marks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.detection_report import detection_lines
from tests.bench.markdown import table

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PLACES = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("embedded", "detection")}
"""Marks of benchmarks that have a place of their own in a page."""
OURS = ("emcd", "emcd, HTTP engine")
_RATIOS, _ADDED = ("gateway", "ratios"), ("gateway", "added_ms")
_MANY = (*_RATIOS, "32 connections", "emcd")
GOALS: tuple[tuple[str, tuple[str, ...], float | None, float | None], ...] = (
    ("calls per CPU-second at 32 connections, times LiteLLM's", (*_MANY, "LiteLLM"), 100, None),
    ("the same, times Portkey's", (*_MANY, "Portkey"), 10, None),
    ("the same, times nginx's", (*_MANY, "nginx"), 0.25, None),
    ("the same at 256 connections, times that at 32", (*_RATIOS, "256 to 32 connections"), 1, None),
    ("chunks/s of 100 streams, times LiteLLM's", (*_RATIOS, "chunks_per_s", "LiteLLM"), 20, None),
    (
        "added per chunk at half load, median ms",
        (*_ADDED, "half load, chunks", "emcd", "p50", "median"),
        None,
        1,
    ),
    ("added at one connection, median ms", (*_ADDED, "1 connection", "emcd", "p50", "median"), None, 1.5),
    ("added at half load, median ms", (*_ADDED, "half load", "emcd", "p50", "median"), None, 3),
    ("added at half load, p99 ms", (*_ADDED, "half load", "emcd", "p99", "median"), None, 8),
    ("loop lag while a round is closed, p99.9 ms", ("close", "lag_ms_p99.9_while_closing"), None, 50),
    (
        "embeddings per CPU-second of 64 small callers, times onnxruntime's at its best batch",
        ("embedded", "embeddings", "ratios", "embeddings_per_cpu_s_to_raw_best", "median"),
        0.95,
        None,
    ),
    ("memory gained in the soak, MB per million calls", ("soak", "mb_per_million_calls"), None, 5),
    ("calls lost in the soak", ("soak", "lost_calls"), None, 1),
)
"""What it is, where it stands in the results, and the bound that it must reach, or stay under."""


def _figure(value: float | None) -> str:
    if value is None or value != value:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(found: dict[str, float] | None) -> str:
    """Median, and how far the rounds lay around it."""
    if not found:
        return ""
    around = max(found["high"] - found["median"], found["median"] - found["low"])
    share = around / found["median"] if found["median"] else 0
    return f"{_figure(found['median'])} ±{share * 100:.0f}%"


def gateway_lines(found: dict[str, Any]) -> Iterator[str]:
    """Ratios first, then what they are made of."""
    others = [name for name in next(iter(found["cases"].values())) if name not in OURS]
    peers = [name for name in others if name in found["versions"]]
    if peers:
        yield "Times the peer's calls (of streams: chunks) per CPU-second of the gateway:"
        yield ""
        rows = [
            [f"{case}: {ours}", *(_figure(row[ours][peer]) for peer in peers)]
            for case, row in found["ratios"].items()
            if case in found["cases"]
            for ours in OURS
        ]
        yield from table(["", *(f"{peer} {found['versions'][peer]}" for peer in peers)], rows)
        yield ""
    yield "Calls (of streams: chunks) per second, and per CPU-second of the gateway:"
    yield ""
    yield from table(
        ["", "per s", "per CPU-s", "its core", "held up", "the other", "median ms", "p99 ms", "MB", "errors"],
        list(_case_rows(found)),
    )
    yield ""
    yield "Added by the gateway, in ms:"
    yield ""
    rows = []
    for case, row in found["added_ms"].items():
        for name, value in row.items():
            middle, high = (_figure(value[share]["median"]) for share in ("p50", "p99"))
            rates = (_figure(value[figure]) for figure in ("per_s", "per_cpu_s"))
            rows.append([f"{case}: {name}", *rates, middle, high, str(value["errors"])])
    yield from table(["", "at per s", "per CPU-s", "median", "p99", "errors"], rows)
    for name, reason in found["missing"].items():
        yield ""
        yield f"Not measured: {name}: {reason}"


def _case_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for case, row in found["cases"].items():
        for name, value in row.items():
            kind = "chunks" if value["chunks_per_s"]["median"] else "calls"
            latency = [value.get(f"latency_ms_{share}", {}).get("median") for share in ("p50", "p99")]
            yield [
                f"{case}: {name}",
                _spread(value[f"{kind}_per_s"]),
                _spread(value[f"{kind}_per_cpu_s"]),
                *(
                    f"{value[share]['median'] * 100:.0f}%"
                    for share in ("cpu_share", "held_up_share", "rest_share")
                ),
                *(map(_figure, latency) if kind == "calls" else ("", "")),
                _figure(value["rss_mb"]["median"]),
                str(sum(value["errors"].values())),
            ]


def goal_rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """What was to be reached, of what was measured: what it is, the figure, the bound, whether it holds."""
    for text, path, least, most in GOALS:
        value: Any = results
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, int | float) and value == value:
            reached = (least is None or value >= least) and (most is None or value < most)
            wanted = f"at least {least:g}" if least is not None else f"under {most:g}"
            yield [text, _figure(value), wanted, "yes" if reached else "no"]


def plain_lines(found: dict[str, Any]) -> Iterator[str]:
    """Any other benchmark: its figures by name."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield f"- {name}: " + ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            yield f"- {name}: {value}"


def feature_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "CPU of the hub per call and per chunk, in microseconds, and times that of a plain key:"
    yield ""
    rows = [
        [f"{case}: {name}", _figure(row["us"]), _figure(row["times_plain"])]
        for case, row_of in found.items()
        for name, row in row_of.items()
    ]
    yield from table(["", "us", "times"], rows)


def embedded_lines(found: dict[str, Any]) -> Iterator[str]:
    """The embedded engine: each row with its share of what bare onnxruntime does."""
    rows, ratios = found["embeddings"], found["embeddings"]["ratios"]
    best = f"raw_batch_{ratios['embeddings_per_cpu_s_raw_best_batch']}"
    yield "Embeddings, one text a call, one run of one thread; bare onnxruntime has the texts sorted beforehand:"
    yield ""
    table_rows = [
        [
            name.replace("_", " "),
            *(_figure(row[figure]) for figure in ("embeddings_per_s", "embeddings_per_cpu_s")),
        ]
        for name, row in rows.items()
        if name != "ratios"
    ]
    yield from table(["", "per s", "per CPU-s"], table_rows)
    yield ""
    yield (
        f"64 callers to {best.replace('_', ' ')}: {_spread(ratios['embeddings_per_cpu_s_to_raw_best'])} per CPU-second,"
        f" {_spread(ratios['embeddings_per_s_to_raw_best'])} per second."
    )
    yield ""
    yield "Text, one thread, prompts of 32 tokens, temperature 1, five log-probabilities a token:"
    yield ""
    table_rows = [
        [
            f"{shape}, {streams} streams: {name}",
            *(_figure(row[figure]) for figure in ("tokens_per_s", "tokens_per_cpu_s")),
            *(_spread(row[f"{figure}_to_bare"]) for figure in ("tokens_per_s", "tokens_per_cpu_s")),
        ]
        for shape, by_streams in found["text"].items()
        for streams, by_name in by_streams.items()
        for name, row in by_name.items()
    ]
    yield from table(["", "tokens/s", "per CPU-s", "of the bare loop, per s", "per CPU-s"], table_rows)


LINES: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "gateway": gateway_lines,
    "feature": feature_lines,
    "embedded": embedded_lines,
    "detection": detection_lines,
}
"""How a benchmark's results are told; others by `plain_lines`."""


def result_lines(found: dict[str, Any]) -> Iterator[str]:
    """Everything that one run found."""
    machine = found["machine"]
    yield (
        f"Measured {found['date'][:10]} on {machine['cores']} cores of {machine['cpu']}, "
        f"Python {machine['python']}."
    )
    goals = list(goal_rows(found["results"]))
    if goals:
        yield ""
        yield from table(["goal", "measured", "wanted", "reached"], goals)
    for name, row in found["results"].items():
        yield from ("", f"### {name}", "")
        yield from plain_lines(row) if "failed" in row else LINES.get(name, plain_lines)(row)


def write_docs(page: Path, found: dict[str, Any]) -> None:
    """Replace what stands between the marks of what was measured.

    What has a place of its own is passed over in a page without it. Raises: ValueError when nothing has one.
    """
    results = found["results"]
    usual = {name: row for name, row in results.items() if name not in PLACES}
    parts = [((BEGIN, END), usual)] if usual else []
    parts += [(PLACES[name], {name: row}) for name, row in results.items() if name in PLACES]
    text = page.read_text()
    here = [(marks, part) for marks, part in parts if marks[0] in text or marks[0] == BEGIN]
    parts = here or parts
    for (begin, end), part in parts:
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"{page} has no place for results: {begin} and {end}")
        text = before + "\n".join([begin, *result_lines({**found, "results": part}), end]) + after
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="bench-results.json, soak-results.json")
    parser.add_argument("--docs", type=Path, help="put the tables into this page, between its marks")
    args = parser.parse_args()
    found, *more = (json.loads(file.read_text()) for file in args.results)
    for other in more:
        found["results"] |= other["results"]
    if args.docs:
        write_docs(args.docs, found)
    else:
        print("\n".join(result_lines(found)))


if __name__ == "__main__":
    main()
