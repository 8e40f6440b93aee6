"""Transcripts of a node: bounded, private, found again after a restart, and never in a call's way."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from emcd.inference.engine import EngineTimes
from emcd.log import get_logger
from emcd.proto.records import Forward, Receipt
from emcd.testing import make_key
from emcd.types import ZERO_ADDRESS, ZERO_HASH
from emcd_node import transcript_keeper
from emcd_node.transcript import Transcript, iter_frames, pack, unpack
from emcd_node.transcript_folder import TranscriptFolder
from emcd_node.transcript_keeper import KEPT_ROUNDS, TranscriptKeeper

NODE = make_key("node").address


def call_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def make(number: int, response: bytes = b"answer", request: bytes = b'{"input":"x"}') -> Transcript:
    forward = Forward(call_id(number), NODE, ZERO_ADDRESS, NODE, ZERO_HASH, ZERO_HASH, 1, 5)
    receipt = Receipt(forward.struct_hash(), ZERO_HASH, 200, 1, 1, 5, 6)
    return Transcript(
        forward, receipt, "/v1/embeddings", "application/json", request, 200, "text/plain", response
    )


def opened(path: Path, max_bytes: int = 1 << 20, segment_bytes: int = 1 << 16) -> TranscriptFolder:
    folder = TranscriptFolder(path, max_bytes, segment_bytes)
    folder.open()
    return folder


def test_transcript_comes_back_as_it_was() -> None:
    frame = pack(make(1, os.urandom(3000)))
    ((found, start, end),) = iter_frames(frame)
    assert found == call_id(1)
    assert unpack(frame, start, end) is not None
    assert unpack(pack(make(7)), 28, len(pack(make(7)))) == make(7)


@pytest.mark.parametrize("at", [0, 5, 21, 25, 40, -1])
def test_transcript_damaged_anywhere_is_none_or_not_found(at: int) -> None:
    data = bytearray(pack(make(1)))
    data[at] ^= 0x55
    found = [unpack(data, start, end) for key, start, end in iter_frames(data) if key == call_id(1)]
    assert found in ([], [None])


def test_segment_cut_short_keeps_what_was_whole() -> None:
    data = pack(make(1)) + pack(make(2))[:-3]
    assert [key for key, _, _ in iter_frames(data)] == [call_id(1)]


def test_folder_finds_calls_of_their_round_after_a_restart(tmp_path: Path) -> None:
    folder = opened(tmp_path / "t")
    folder.append(4, [pack(make(1)), pack(make(2, b"two"))])
    folder.append(5, [pack(make(3))])
    again = opened(tmp_path / "t")
    assert again.find(4, call_id(2)) == make(2, b"two")
    assert again.find(5, call_id(2)) is None
    again.append(5, [pack(make(4))])
    assert again.find(5, call_id(3)) == make(3)
    assert again.find(5, call_id(4)) == make(4)
    assert again.size_bytes == sum(path.stat().st_size for path in (tmp_path / "t").iterdir())


def test_folder_and_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = opened(tmp_path / "t")
    folder.append(4, [pack(make(1))])
    (file,) = (tmp_path / "t").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o700


def test_folder_never_takes_more_than_its_room_and_drops_the_oldest(tmp_path: Path) -> None:
    folder = opened(tmp_path / "t", max_bytes=40_000, segment_bytes=4_000)
    for number in range(100):
        folder.append(number // 20, [pack(make(number, os.urandom(1500)))])
        assert sum(path.stat().st_size for path in (tmp_path / "t").iterdir()) <= 40_000 + 4_000
    assert folder.dropped_segments > 0
    assert folder.find(0, call_id(0)) is None
    assert folder.find(4, call_id(99)) is not None
    smaller = opened(tmp_path / "t", max_bytes=10_000, segment_bytes=4_000)
    assert smaller.size_bytes <= 10_000


def test_folder_takes_no_frame_that_is_larger_than_its_room(tmp_path: Path) -> None:
    folder = opened(tmp_path / "t", max_bytes=40_000, segment_bytes=4_000)
    folder.append(3, [pack(make(1))])
    folder.append(3, [pack(make(2, os.urandom(39_000))), pack(make(3))])
    assert folder.dropped_frames == 1
    assert [folder.find(3, call_id(number)) is not None for number in (1, 2, 3)] == [True, False, True]
    folder.append(3, [pack(make(4, os.urandom(35_000)))])
    assert folder.find(3, call_id(4)) is not None
    assert folder.size_bytes == sum(path.stat().st_size for path in (tmp_path / "t").iterdir()) <= 40_000


def test_transcript_of_the_largest_answer_that_an_engine_may_give_is_kept(tmp_path: Path) -> None:
    largest = bytes(EngineTimes().max_bytes)
    keeper = make_keeper(tmp_path / "t")
    assert keeper.offer(3, make(1, largest, bytes(16 << 20)[:-2048]))
    frame = pack(make(1, largest))
    ((_, start, end),) = iter_frames(frame)
    assert unpack(frame, start, end) == make(1, largest)


def test_folder_prunes_by_round_and_leaves_foreign_files(tmp_path: Path) -> None:
    folder = opened(tmp_path / "t")
    (tmp_path / "t" / "notes.txt").write_text("mine")
    (tmp_path / "t" / "x-y.transcripts").write_text("mine too")
    for index in range(5):
        folder.append(index, [pack(make(index))])
    assert folder.prune(3) == 3
    assert [folder.find(index, call_id(index)) is not None for index in range(5)] == [False] * 3 + [True] * 2
    assert len(list((tmp_path / "t").iterdir())) == 4


def test_folder_goes_on_in_another_file_after_a_torn_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened(tmp_path / "t")
    folder.append(4, [pack(make(1))])
    real = os.fdopen

    def torn(handle: int, mode: str) -> Any:
        file = real(handle, mode)
        file.write(b"EMT1torn")
        file.flush()
        file.close()
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fdopen", torn)
    with pytest.raises(OSError, match="no space"):
        folder.append(4, [pack(make(2))])
    monkeypatch.undo()
    folder.append(4, [pack(make(3))])
    assert folder.find(4, call_id(1)) == make(1)
    assert folder.find(4, call_id(2)) is None
    assert folder.find(4, call_id(3)) == make(3)


def make_keeper(path: Path) -> TranscriptKeeper:
    return TranscriptKeeper(NODE, TranscriptFolder(path, 1 << 20), get_logger(name="node"))


async def test_keeper_writes_what_it_takes_and_finds_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    keeper = make_keeper(tmp_path / "t")
    assert all(keeper.offer(3, make(number)) for number in range(50))
    await nursery.start(keeper.run)
    with trio.fail_after(10):
        while await keeper.find(3, call_id(49)) is None:
            await trio.sleep(0.01)
    assert await keeper.find(3, call_id(0)) == make(0)
    await keeper.prune(3 + KEPT_ROUNDS)
    assert await keeper.find(3, call_id(0)) is not None
    await keeper.prune(4 + KEPT_ROUNDS)
    assert await keeper.find(3, call_id(0)) is None
    assert keeper.dropped == 0


async def test_keeper_drops_and_counts_what_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make_keeper(tmp_path / "t")
    taken = sum(keeper.offer(3, make(number)) for number in range(transcript_keeper.QUEUE_CALLS + 10))
    assert taken == transcript_keeper.QUEUE_CALLS
    assert keeper.dropped == 10
    monkeypatch.setattr(transcript_keeper, "QUEUE_BYTES", 5_000)
    tight = make_keeper(tmp_path / "u")
    assert [tight.offer(3, make(1, bytes(2_000))) for _ in range(3)] == [True, False, False]
    monkeypatch.setattr(transcript_keeper, "MAX_TRANSCRIPT_BYTES", 100)
    assert not tight.offer(3, make(1, b""))


async def test_keeper_counts_what_the_folder_has_no_room_for(tmp_path: Path, nursery: trio.Nursery) -> None:
    keeper = make_keeper(tmp_path / "t")
    await nursery.start(keeper.run)
    assert keeper.offer(3, make(1, os.urandom(1 << 20)))
    assert keeper.offer(3, make(2))
    with trio.fail_after(10):
        while await keeper.find(3, call_id(2)) is None:
            await trio.sleep(0.01)
    assert (keeper.dropped, keeper.complaint) == (1, "")
    assert await keeper.find(3, call_id(1)) is None


async def test_keeper_gives_room_back_once_written(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_keeper, "QUEUE_BYTES", 5_000)
    keeper = make_keeper(tmp_path / "t")
    await nursery.start(keeper.run)
    with trio.fail_after(10):
        for number in range(10):
            while not keeper.offer(3, make(number, bytes(3_000))):
                await trio.sleep(0.005)
        while await keeper.find(3, call_id(9)) is None:
            await trio.sleep(0.01)


async def test_keeper_without_a_disk_complains_and_serves_on(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "t").write_text("in the way")
    keeper = make_keeper(tmp_path / "t")
    await nursery.start(keeper.run)
    assert "EMC-2017" in keeper.complaint
    assert keeper.offer(3, make(1))
    with trio.fail_after(10):
        while keeper.dropped == 0:
            await trio.sleep(0.01)
    assert await keeper.find(3, call_id(1)) is None
    (tmp_path / "t").unlink()
    assert keeper.offer(3, make(2))
    with trio.fail_after(10):
        while await keeper.find(3, call_id(2)) is None:
            await trio.sleep(0.01)
    assert keeper.complaint == ""
