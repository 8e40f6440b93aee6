"""The first sentence of a command's docstring, read from its source: `--help` imports no role."""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path


def find_summary(point: EntryPoint) -> str:
    """What `emcd --help` says about a command; "" when its source can't be read."""
    try:
        spec = find_spec(point.module)
        if spec is None or spec.origin is None:
            return "(not installed)"
        tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    except ModuleNotFoundError:
        return "(not installed)"
    except (ImportError, OSError, SyntaxError, UnicodeDecodeError):
        return "(can't be read)"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == point.attr:
            return (ast.get_docstring(node) or "").split("\n", 1)[0].rstrip(".")
    return ""
