"""A text model's folder without a model: a real tokenizer and template, for what only counts tokens."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from emcd.inference.manifest import EMBEDDED_ENGINE, TextManifest, canonical_json
from emcd.inference.training.bpe import CHAT_TEMPLATE, train_bpe

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 4
VOCAB = 320


@cache
def _tokenizer_json() -> bytes:
    tokenizer = train_bpe([TEXT], VOCAB)
    json: str = tokenizer.to_str()
    return json.encode()


def make_text_folder(models_dir: Path, name: str, engine: str = EMBEDDED_ENGINE) -> TextManifest:
    """Write the folder; its graph is none."""
    files = {
        "model.onnx": b"no graph",
        "tokenizer.json": _tokenizer_json(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "golden.json": b"{}",
    }
    folder = models_dir / name
    folder.mkdir(parents=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    manifest = TextManifest(
        name=name,
        files={file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        context_tokens=512,
        vocab_tokens=VOCAB,
        bos_token=None,
        stop_tokens=(0,),
        engine=engine,
        sampler="emcd-gumbel-v1" if engine == EMBEDDED_ENGINE else "engine",
    )
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    return manifest
