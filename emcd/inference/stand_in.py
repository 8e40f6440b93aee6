"""A cheaper model in the place of the one that is sold: what a devnet shows being caught.

Owns the folder `<name>.<kind>` beside the model's own. It has no manifest, so that nobody takes it for a
model, and is what the honest folder is but for the graph. Invariant: it appears whole or not at all, and is
built anew when the model beside it is another. Blocks: call it in a thread.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from emcd.errors import ConfigError
from emcd.inference.manifest import GRAPH_FILE
from emcd.inference.model_folder import ModelFolder

StandIn = Literal["int8", "fewer-layers"]
_MADE_FROM = "made-from"


def build_stand_in(folder: ModelFolder, kind: StandIn) -> ModelFolder:
    """The folder with another graph under the same manifest, built unless it is there.

    `int8`: quantised dynamically; `fewer-layers`: without the last one.

    Raises: ConfigError EMC-1637 (no such form of this model), EMC-1604 (can't write).
    """
    target = folder.path.with_name(f"{folder.path.name}.{kind}")
    cheaper = replace(folder, path=target)
    try:
        if (target / _MADE_FROM).read_text() == folder.model_hash.hex():
            return cheaper
    except OSError:
        pass
    try:
        with tempfile.TemporaryDirectory(prefix=".stand-in-", dir=target.parent) as beside:
            part = Path(beside) / "new"
            part.mkdir()
            for name in folder.manifest.files:
                if name != GRAPH_FILE:
                    shutil.copyfile(folder.file(name), part / name)
            _write_graph(folder, kind, part / GRAPH_FILE)
            (part / _MADE_FROM).write_text(folder.model_hash.hex())
            if target.exists():
                target.rename(Path(beside) / "old")
            part.rename(target)
    except OSError as exc:
        raise ConfigError("EMC-1604", f"{target}: {exc}") from exc
    return cheaper


def _write_graph(folder: ModelFolder, kind: StandIn, target: Path) -> None:
    # onnx is slow to import, and only a devnet needs it here
    from emcd.inference.decoder_graph import build_decoder, read_tensors
    from emcd.inference.training.recipe import TINY_NAME, TINY_SHAPE
    from emcd.inference.variant import build_cheaper, quantise_dynamic

    source = folder.file(GRAPH_FILE)
    if kind == "int8":
        quantise_dynamic(source, target)
        return
    if folder.manifest.name != TINY_NAME:
        raise ConfigError("EMC-1637", f"{folder.manifest.name}: its layers are not known here")
    tensors, shape = build_cheaper(read_tensors(source), TINY_SHAPE, kind)
    target.write_bytes(build_decoder(tensors, shape).SerializeToString())
