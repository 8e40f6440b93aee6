"""What the detection benchmark found, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bench.markdown import table


def detection_lines(found: dict[str, Any]) -> Iterator[str]:
    """Honest answers first: a judge that convicts them is worth nothing."""
    yield "Honest answers of class fp32, judged with the thresholds of the manifest:"
    yield ""
    rows = [
        [f"{kind}: {way}", *_honest(row)]
        for kind, table in found["honest"].items()
        for way, row in (("all", table["all"]), *table["ways"].items())
    ]
    yield from table(
        ["how they were run", "answers", "false FAILs", "95 % bound", "worst, in thresholds"], rows
    )
    for kind in ("text", "vectors"):
        yield ""
        yield f"Cheats, {kind}: share of answers that are a strike, with 95 % bounds."
        yield ""
        yield from table(*_cheats(found[kind], is_text=kind == "text"))
    yield ""
    yield "Rounds until a node with 2 probes a round is suspended, simulated by the network's own rule:"
    yield ""
    rows = [
        [f"{name}, on {row['cheated']:.0%} of its calls", str(row["median"]), str(row["p95"]), *_within(row)]
        for name, table in found["rounds"].items()
        for row in table
    ]
    head = ["cheat", "median", "95 % by", "in 1 round (formula)", "in 12", "in 84"]
    yield from table(head, rows)
    yield ""
    yield "CPU time of an answer (64 tokens alone on one thread; a text in a batch), and of judging it:"
    yield ""
    rows = [
        [name, f"{row['write_ms']:.1f} ms", f"{row['judge_ms']:.1f} ms", f"{row['share']:.1%}"]
        for name, row in found["cost"].items()
    ]
    yield from table(["model", "the node's", "the validator's", "share"], rows)


def _honest(row: dict[str, Any]) -> list[str]:
    caught = row["caught"]
    return [
        f"{caught['n']:,}",
        f"{round(caught['rate'] * caught['n'])}",
        f"{caught['high']:.2%}",
        f"{row['thresholds']['most']:.3f}",
    ]


def _cheats(rows: dict[str, Any], *, is_text: bool) -> tuple[list[str], list[list[str]]]:
    head = ["what the node does", "caught", "95 % bounds", "of 4 answers one", "n", "verdicts"]
    if is_text:
        head[3:3] = ["where tokens differ", "one token"]
    table = []
    for name, row in rows.items():
        caught = row["caught"]
        cells = [
            name if row["is_caught"] else f"{name} (out of reach)",
            f"{caught['rate']:.2f}",
            f"{caught['low']:.2f} to {caught['high']:.2f}",
        ]
        if is_text:
            cells += [_rate(row["caught_of_changed"]), _rate(row["first"])]
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(row["verdicts"].items()))
        table.append([*cells, _rate(row["caught_within_4"]), str(caught["n"]), verdicts])
    return head, table


def _rate(share: dict[str, float]) -> str:
    return f"{share['rate']:.2f}" if share["n"] else ""


def _within(row: dict[str, Any]) -> Iterator[str]:
    return (f"{share['rate']:.3f} ({share['formula']:.3f})" for share in row["within"].values())
