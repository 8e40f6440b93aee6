"""The corpus: leaves, tree, file, and the generator."""

from __future__ import annotations

import stat
from pathlib import Path
from random import Random

import msgspec
import pytest

from emcd.errors import ConfigError, RemoteProtocolError
from emcd_validator.call_shape import CallShape
from emcd_validator.corpus import (
    Corpus,
    Leaf,
    decode_leaf,
    encode_leaf,
    find_fault,
    load_corpus,
    write_corpus,
)
from emcd_validator.corpus_store import CorpusStore, is_low
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.corpus_tree import is_leaf, leaf_hash

NONCE = bytes(16)
SHAPE = CallShape("chat", "", True, 700, None, 64, "max_tokens", False, 1, 1)
OLD_LEAF = Leaf(NONCE, ("one", "two"), True, "base64")


def make_corpus(count: int = 40) -> Corpus:
    return Corpus(tuple(encode_leaf(leaf) for leaf in generate_leaves(count, Random(1))))


def test_round_corpus_opens_every_leaf() -> None:
    tree = make_corpus().of_round(3, frozenset())
    assert tree is not None
    for index, data in enumerate(tree.leaves):
        assert is_leaf(tree.root, tree.count, index, leaf_hash(data), tree.path(index))


def test_round_corpus_wrong_index_count_or_path_does_not_open() -> None:
    tree = make_corpus().of_round(3, frozenset())
    assert tree is not None
    hashed, path = leaf_hash(tree.leaves[1]), tree.path(1)
    assert not is_leaf(tree.root, tree.count, 0, hashed, path)
    assert not is_leaf(tree.root, tree.count - 1, 1, hashed, path)
    assert not is_leaf(tree.root, tree.count, 1, hashed, (*path, path[0]))
    assert not is_leaf(tree.root, tree.count, 1, hashed, (path[1], path[0], *path[2:]))
    assert not is_leaf(tree.root, tree.count, 1, hashed, (b"", *path[1:]))
    assert not is_leaf(tree.root, 1 << 40, 1, hashed, path)


def test_round_corpora_of_neighbours_share_no_leaf() -> None:
    corpus = make_corpus()
    even, odd = corpus.of_round(4, frozenset()), corpus.of_round(5, frozenset())
    assert even is not None
    assert odd is not None
    assert not set(even.leaves) & set(odd.leaves)
    assert len(even.leaves) + len(odd.leaves) == len(corpus.leaves)


def test_round_corpus_leaves_out_used_leaves_until_none_is_left() -> None:
    corpus = make_corpus()
    first = corpus.of_round(4, frozenset())
    assert first is not None
    used = frozenset({first.levels[0][0]})
    second = corpus.of_round(6, used)
    assert second is not None
    assert first.leaves[0] not in second.leaves
    assert corpus.of_round(4, frozenset(corpus.hashes)) is None


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(b"short", ("a",), False, ""),
        Leaf(NONCE, (), True, ""),
        Leaf(NONCE, ("a", "b"), False, ""),
        Leaf(NONCE, ("a",) * 17, True, ""),
        Leaf(NONCE, (" ",), False, ""),
        Leaf(NONCE, ("a" * 60_001,), False, ""),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, turns=2)),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, turns=3)),
        Leaf(NONCE, ("a", "b"), False, "", msgspec.structs.replace(SHAPE, inputs=2)),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, temperature_milli=2_001)),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, top_p_milli=0)),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, max_tokens=-1)),
        Leaf(NONCE, ("a",), False, "", msgspec.structs.replace(SHAPE, system="s" * 4_001)),
    ],
)
def test_leaf_outside_its_bounds_is_a_fault(leaf: Leaf) -> None:
    assert find_fault(leaf)
    with pytest.raises(RemoteProtocolError, match="EMC-1803"):
        decode_leaf(encode_leaf(leaf))


def test_leaf_of_the_first_form_keeps_its_bytes_and_is_read_from_old_files(tmp_path: Path) -> None:
    old = msgspec.msgpack.encode((NONCE, ("one", "two"), True, "base64"))
    assert encode_leaf(OLD_LEAF) == old
    assert decode_leaf(old) == OLD_LEAF
    path = tmp_path / "corpus.jsonl"
    path.write_text('["AAAAAAAAAAAAAAAAAAAAAA==",["one","two"],true,"base64"]\n' * 2, "utf-8")
    with path.open("a") as file:
        file.write('["AAAAAAAAAAAAAAAAAAAAAA==",["three"],false,""]\n')
    path.chmod(0o600)
    assert load_corpus(path).leaves[0] == old


def test_leaf_with_a_call_that_is_null_is_not_canonical() -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1803"):
        decode_leaf(msgspec.msgpack.encode((NONCE, ("one",), True, "base64", None)))


def test_leaf_not_in_canonical_form_is_refused() -> None:
    data = encode_leaf(Leaf(NONCE, ("text",), False, "float"))
    longer = data.replace(b"\xa4text", b"\xd9\x04text")
    assert longer != data
    with pytest.raises(RemoteProtocolError, match="EMC-1803"):
        decode_leaf(longer)


def test_corpus_file_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    leaves = list(generate_leaves(10, Random(2)))
    assert write_corpus(path, leaves) == 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_corpus(path).leaves == tuple(map(encode_leaf, leaves))


def test_corpus_file_open_to_everybody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, generate_leaves(4, Random(2)))
    path.chmod(0o604)
    with pytest.raises(ConfigError, match="EMC-1106"):
        load_corpus(path)


def test_corpus_file_with_a_bad_line_names_it(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, generate_leaves(2, Random(2)))
    path.write_bytes(path.read_bytes() + b'["AAAA", [], true, ""]\n')
    with pytest.raises(ConfigError, match=r"EMC-1804.*line 3"):
        load_corpus(path)


@pytest.mark.parametrize("content", ["", "no json\n", '["AAAA"]\n', "[]\n"])
def test_corpus_file_of_garbage_or_one_leaf_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, generate_leaves(1, Random(2)))
    path.write_text(path.read_text("utf-8") + content, "utf-8")
    with pytest.raises(ConfigError, match="EMC-1804"):
        load_corpus(path)


def test_corpus_file_missing_or_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1804"):
        load_corpus(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="EMC-1804"):
        write_corpus(tmp_path / "no folder" / "corpus.jsonl", ())


def test_corpus_file_is_not_written_with_a_faulty_leaf(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    with pytest.raises(ConfigError, match="EMC-1804"):
        write_corpus(path, [Leaf(NONCE, (), True, "")])
    assert not path.exists()


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", bytes(70_000)])
def test_leaf_bytes_that_are_no_leaf_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="EMC-1803"):
        decode_leaf(data)


def test_leaf_too_large_in_all_is_a_fault() -> None:
    assert find_fault(Leaf(NONCE, ("字" * 8_000,) * 3, True, ""))


def test_corpus_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write_corpus(path, generate_leaves(2, Random(2)))
    with pytest.raises(ConfigError, match="EMC-1804"):
        write_corpus(path, generate_leaves(2, Random(3)))


def test_generated_leaves_differ_between_corpora_and_mix_their_forms() -> None:
    first, second = list(generate_leaves(300, Random(1))), list(generate_leaves(300, Random(2)))
    assert not {leaf.texts for leaf in first} & {leaf.texts for leaf in second}
    assert {leaf.as_list for leaf in first} == {True, False}
    assert {leaf.encoding for leaf in first} == {"", "float", "base64"}
    lengths = sorted(len(text.split()) for leaf in first for text in leaf.texts)
    assert lengths[0] < 12
    assert lengths[-1] > 80
    assert not any(map(find_fault, first))


def test_is_low_when_odd_rounds_alone_have_hardly_a_leaf_left(tmp_path: Path) -> None:
    corpus = CorpusStore(tmp_path / "v-corpus.jsonl", 120, is_generated=True).ensure()
    odd = [hashed for hashed in corpus.hashes if hashed[-1] % 2]
    assert not is_low(corpus, frozenset())
    assert is_low(corpus, frozenset(odd[1:]))


def test_store_generates_once_and_tops_up_what_was_used(tmp_path: Path) -> None:
    store = CorpusStore(tmp_path / "data" / "v-corpus.jsonl", 100, is_generated=True)
    corpus = store.ensure()
    assert store.ensure() == corpus
    used = frozenset(corpus.hashes[:80])
    assert is_low(corpus, used)
    fuller = store.top_up(corpus, used)
    assert len(fuller.leaves) == 100
    assert not set(fuller.hashes) & used
    assert set(corpus.hashes[80:]) <= set(fuller.hashes)
    assert store.ensure() == fuller


def test_store_never_generates_an_operators_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1804"):
        CorpusStore(tmp_path / "mine.jsonl", 100, is_generated=False).ensure()
