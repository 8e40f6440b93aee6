"""A validator's private corpus: the requests it may send as probes, each at most once.

Owns the leaf, its canonical bytes, and the corpus file (JSON lines, mode 0600). A leaf is a whole call:
texts, and how they are asked; a leaf of the first form, without the latter, keeps its bytes. A round's tree
holds the unused leaves whose hash has the round's parity, so that the trees of two neighbouring
rounds share none and every leaf that a round reveals is new. A leaf carries a random nonce: the hashes
in a revealed path tell nothing about leaves still unused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from emcd.errors import ConfigError, RemoteProtocolError
from emcd.keys import require_private
from emcd.types import Hash
from emcd_validator.call_shape import CallShape, find_shape_fault
from emcd_validator.corpus_tree import MAX_LEAVES, build_levels, build_path, compute_root, leaf_hash

MAX_TEXTS = 16
MAX_TEXT_CHARS = 60_000
MAX_LEAF_BYTES = 65_536
NONCE_BYTES = 16

Encoding = Literal["", "float", "base64"]


class Leaf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request, whatever model it goes to.

    Args:
        texts: what is embedded; of a text model the turns of a conversation, the user's first.
        as_list, encoding: how an embeddings call sends and wants it ("" for no encoding).
        call: how a text model is asked; None: drawn from the default profile (leaves of the first form).
    """

    nonce: bytes
    texts: tuple[str, ...]
    as_list: bool
    encoding: Encoding
    call: CallShape | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Leaf)
_line_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(Leaf)


def encode_leaf(leaf: Leaf) -> bytes:
    """The bytes that are hashed into the tree and opened in evidence."""
    return _encoder.encode(_as_row(leaf))


def _as_row(leaf: Leaf) -> Any:
    return leaf if leaf.call is not None else (leaf.nonce, leaf.texts, leaf.as_list, leaf.encoding)


def decode_leaf(data: bytes) -> Leaf:
    """Read a peer's leaf. Raises: RemoteProtocolError EMC-1803."""
    if len(data) > MAX_LEAF_BYTES:
        raise RemoteProtocolError("EMC-1803", f"a leaf of {len(data)} bytes")
    try:
        leaf = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise RemoteProtocolError("EMC-1803", f"leaf: {exc}") from exc
    fault = find_fault(leaf)
    if fault or encode_leaf(leaf) != data:
        raise RemoteProtocolError("EMC-1803", fault or "the leaf is not in canonical form")
    return leaf


def find_fault(leaf: Leaf) -> str:
    """Why a leaf can't be used, or an empty text."""
    if len(leaf.nonce) != NONCE_BYTES:
        return f"a leaf's nonce has {NONCE_BYTES} bytes, not {len(leaf.nonce)}"
    is_plain = leaf.call is None
    if not 0 < len(leaf.texts) <= MAX_TEXTS or (is_plain and len(leaf.texts) != 1 and not leaf.as_list):
        return f"a leaf has 1 to {MAX_TEXTS} texts, several only as a list"
    if not all(text.strip() and len(text) <= MAX_TEXT_CHARS for text in leaf.texts):
        return f"a leaf's text is empty or longer than {MAX_TEXT_CHARS} characters"
    if len(encode_leaf(leaf)) > MAX_LEAF_BYTES:
        return f"a leaf has at most {MAX_LEAF_BYTES} bytes"
    return "" if leaf.call is None else find_shape_fault(leaf.call, len(leaf.texts), as_list=leaf.as_list)


@dataclass(frozen=True)
class Corpus:
    """All leaves of a corpus file, encoded, in the file's order."""

    leaves: tuple[bytes, ...]

    @cached_property
    def hashes(self) -> tuple[Hash, ...]:
        return tuple(leaf_hash(data) for data in self.leaves)

    def of_round(self, round_index: int, used: frozenset[bytes]) -> RoundCorpus | None:
        """The tree of a round; None when no leaf is left for it. Blocking for large corpora.

        Args:
            used: hashes of the leaves that earlier rounds drew.
        """
        positions = [
            i
            for i, hashed in enumerate(self.hashes)
            if hashed[-1] % 2 == round_index % 2 and hashed not in used
        ]
        if not positions:
            return None
        levels = build_levels([self.hashes[i] for i in positions])
        return RoundCorpus(tuple(self.leaves[i] for i in positions), levels)


@dataclass(frozen=True)
class RoundCorpus:
    """The leaves a round may draw, with their tree."""

    leaves: tuple[bytes, ...]
    levels: Sequence[Sequence[Hash]]

    @property
    def count(self) -> int:
        return len(self.leaves)

    @property
    def root(self) -> Hash:
        return compute_root(self.count, self.levels[-1][0])

    def path(self, index: int) -> tuple[Hash, ...]:
        return build_path(self.levels, index)


def write_corpus(path: Path, leaves: Iterable[Leaf]) -> int:
    """Write a new corpus file of mode 0600, synced. Blocking. Returns: the number of leaves.

    Raises: ConfigError EMC-1804 when the file exists, can't be written, or a leaf is at fault.
    """
    count = 0
    partial = path.with_name(path.name + ".part")
    try:
        if path.exists():
            raise ConfigError("EMC-1804", f"{path} exists already")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for leaf in leaves:
                if fault := find_fault(leaf):
                    raise ConfigError("EMC-1804", f"{path}: {fault}")
                file.write(_line_encoder.encode(_as_row(leaf)) + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as exc:
        raise ConfigError("EMC-1804", f"{path}: {exc.strerror}") from exc
    return count


def load_corpus(path: Path) -> Corpus:
    """Read a corpus file. Blocking.

    Raises: ConfigError EMC-1804 naming the first line at fault, EMC-1106 when others may read it.
    """
    leaves: dict[bytes, None] = {}
    try:
        require_private(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                leaves[encode_leaf(_parse_line(path, number, line))] = None
    except OSError as exc:
        raise ConfigError("EMC-1804", f"{path}: {exc.strerror}") from exc
    if not 1 < len(leaves) <= MAX_LEAVES:
        raise ConfigError("EMC-1804", f"{path} has {len(leaves)} leaves; a corpus has 2 to {MAX_LEAVES}")
    return Corpus(tuple(leaves))


def _parse_line(path: Path, number: int, line: bytes) -> Leaf:
    try:
        leaf = _line_decoder.decode(line)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ConfigError("EMC-1804", f"{path} line {number}: {exc}") from exc
    if fault := find_fault(leaf):
        raise ConfigError("EMC-1804", f"{path} line {number}: {fault}")
    return leaf
