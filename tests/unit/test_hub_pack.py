"""Bundles at rest: any part is what it was, and a damaged file says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcd.errors import RecoverableError
from emcd_hub.rounds.pack import BLOCK_BYTES, MAGIC, PackedFile, pack_file

CONTENT = bytes(range(251)) * 1000 + b"end"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pack")


def pack(folder: Path, content: bytes) -> Path:
    plain, packed = folder / "plain", folder / "packed"
    plain.write_bytes(content)
    pack_file(plain, packed)
    return packed


@pytest.fixture
def packed(folder: Path) -> Iterator[PackedFile]:
    file = PackedFile(pack(folder, CONTENT))
    yield file
    file.close()


def test_packed_file_is_the_content_and_smaller(packed: PackedFile, folder: Path) -> None:
    assert len(packed) == len(CONTENT) > BLOCK_BYTES * 3
    assert packed[:] == CONTENT
    assert (folder / "packed").stat().st_size < len(CONTENT) / 10


_FILES: list[PackedFile] = []
"""One file for all examples."""


@pytest.fixture(autouse=True, scope="module")
def _open_once(folder: Path) -> Iterator[None]:
    (folder / "once").mkdir()
    _FILES.append(PackedFile(pack(folder / "once", CONTENT)))
    yield
    _FILES.pop().close()


@given(st.integers(-5, len(CONTENT) + 5), st.integers(-5, len(CONTENT) + 5))
@settings(max_examples=100, deadline=None)
def test_packed_file_slice_is_that_of_the_content(start: int, stop: int) -> None:
    (file,) = _FILES
    assert file[start:stop] == CONTENT[start:stop]


def test_packed_file_single_byte_and_its_bounds(packed: PackedFile) -> None:
    assert (packed[0], packed[-1]) == (CONTENT[0], CONTENT[-1])
    with pytest.raises(IndexError):
        packed[len(CONTENT)]


def test_empty_content_is_a_packed_file(folder: Path) -> None:
    file = PackedFile(pack(folder, b""))
    assert (len(file), file[:]) == (0, b"")
    file.close()


@pytest.mark.parametrize("at", [20, BLOCK_BYTES // 100, -5, -30, -60])
def test_damaged_file_is_refused_or_read_right(folder: Path, at: int) -> None:
    path = pack(folder, CONTENT)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)

    with pytest.raises(RecoverableError) as caught:
        file = PackedFile(path)
        try:
            file[:]
        finally:
            file.close()

    assert caught.value.code == "EMC-1756"


@pytest.mark.parametrize("content", [b"", MAGIC, MAGIC * 8, b"\xff" * 100])
def test_other_files_are_no_packed_files(folder: Path, content: bytes) -> None:
    path = folder / "other"
    path.write_bytes(content)

    with pytest.raises(RecoverableError) as caught:
        PackedFile(path)

    assert caught.value.code == "EMC-1756"


def test_truncated_file_is_refused(folder: Path) -> None:
    path = pack(folder, CONTENT)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(RecoverableError):
        PackedFile(path)
