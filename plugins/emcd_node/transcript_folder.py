"""Transcripts on disk: append-only segments by round, the oldest out first. Blocking: use it in one thread.

Invariants: never more bytes than granted, but for the one segment that is being written; files are
readable by their owner alone; a start begins a new segment, so that a torn end of the last run stays
where it is; nothing of a round before the pruned one is left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from emcd_node.transcript import Transcript, iter_frames, unpack

SEGMENT_BYTES = 8 << 20
_SUFFIX = ".transcripts"


@dataclass
class _Segment:
    round: int
    number: int
    path: Path
    size: int


class TranscriptFolder:
    """The segments of one node."""

    def __init__(self, path: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(1, max_bytes // 4))
        self._segments: list[_Segment] = []
        self._open: _Segment | None = None
        self.dropped_segments = 0
        self.dropped_frames = 0

    @property
    def size_bytes(self) -> int:
        """What all segments take."""
        return sum(segment.size for segment in self._segments)

    def open(self) -> None:
        """Look at what earlier runs left. Raises: OSError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [_read_name(path) for path in self._path.iterdir() if path.suffix == _SUFFIX]
        self._segments = sorted(
            (segment for segment in found if segment is not None), key=lambda item: (item.round, item.number)
        )
        self._open = None
        self._make_room()

    def append(self, round_index: int, frames: Sequence[bytes]) -> None:
        """Write frames of calls of one round; one that the folder has no room for is dropped.

        Raises: OSError; what was written of them may be torn.
        """
        largest, at = self._max_bytes - self._segment_bytes, 0
        fitting = [frame for frame in frames if len(frame) <= largest]
        self.dropped_frames += len(frames) - len(fitting)
        frames = fitting
        while at < len(frames):
            segment = self._writable(round_index)
            chunk, room = [frames[at]], self._segment_bytes - segment.size - len(frames[at])
            at += 1
            while at < len(frames) and len(frames[at]) <= room:
                chunk.append(frames[at])
                room -= len(frames[at])
                at += 1
            self._write(segment, b"".join(chunk))
            self._make_room()

    def find(self, round_index: int, call_id: bytes) -> Transcript | None:
        """The transcript of a call of that round. Raises: OSError."""
        for segment in reversed([item for item in self._segments if item.round == round_index]):
            found = _search(segment.path, call_id)
            if found is not None:
                return found
        return None

    def prune(self, before_round: int) -> int:
        """Drop the segments of earlier rounds. Returns: how many. Raises: OSError."""
        old = [segment for segment in self._segments if segment.round < before_round]
        for segment in old:
            self._drop(segment)
        return len(old)

    def _writable(self, round_index: int) -> _Segment:
        segment = self._open
        if segment is not None and segment.round == round_index and segment.size < self._segment_bytes:
            return segment
        number = max((item.number for item in self._segments if item.round == round_index), default=-1) + 1
        path = self._path / f"{round_index:012d}-{number:06d}{_SUFFIX}"
        segment = _Segment(round_index, number, path, 0)
        self._segments.append(segment)
        self._segments.sort(key=lambda item: (item.round, item.number))
        self._open = segment
        return segment

    def _write(self, segment: _Segment, data: bytes) -> None:
        try:
            handle = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(data)
            segment.size += len(data)
        except OSError:
            # what follows a torn frame is never found: go on in another segment
            segment.size = segment.path.stat().st_size if segment.path.exists() else 0
            self._open = None
            raise

    def _make_room(self) -> None:
        while self.size_bytes > self._max_bytes:
            oldest = next((item for item in self._segments if item is not self._open), None)
            if oldest is None:
                return
            self._drop(oldest)
            self.dropped_segments += 1

    def _drop(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
        if segment is self._open:
            self._open = None


def _read_name(path: Path) -> _Segment | None:
    index, _, number = path.name.removesuffix(_SUFFIX).partition("-")
    if not (index.isdigit() and number.isdigit()):
        return None
    return _Segment(int(index), int(number), path, path.stat().st_size)


def _search(path: Path, call_id: bytes) -> Transcript | None:
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        view = memoryview(data)
        try:
            places = [(start, end) for key, start, end in iter_frames(view) if key == call_id]
            return next((item for place in places if (item := unpack(view, *place)) is not None), None)
        finally:
            view.release()
