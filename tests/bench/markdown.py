"""A table in Markdown that lines up in the source, too."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown that lines up: the first column to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "-" * (widths[0] + 2) + "".join(f"|{'-' * (width + 1)}:" for width in widths[1:]) + "|"
    return [line(head), rule, *map(line, rows)]
