"""A text run token by token says what one prefill of it says, but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emcd.inference import replay
from emcd.inference.decoder_session import DecoderSession
from emcd.inference.replay import LEAD_TOKENS, MOST_SINGLE, PART_TOKENS, replay_parts
from tests.support.decoder_model import make_toy


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    folder: Path = tmp_path_factory.mktemp("toy")
    return DecoderSession(make_toy(folder).onnx)


@pytest.mark.parametrize(("count", "first"), [(100, 0), (100, 60), (100, 99), (1, 0), (20, 3)])
def test_replay_gives_the_rows_of_a_prefill(session: DecoderSession, count: int, first: int) -> None:
    ids = np.random.default_rng(count).integers(3, 300, count).tolist()
    expected = session.prefill(ids, first)
    found = np.concatenate(list(replay_parts(session, ids, first)))
    assert found.shape == expected.shape == (count - first, expected.shape[1])
    assert np.abs(found - expected).max() < 1e-3


def test_replay_steps_are_whole_and_bounded() -> None:
    steps = list(replay._list_steps(2000, 500))
    assert [start for start, _ in steps] == [0, *(end for _, end in steps[:-1])]
    assert steps[-1][1] == 2000
    singles = [start for start, end in steps if end - start == 1]
    assert singles[0] == 500 - LEAD_TOKENS
    assert len(singles) == MOST_SINGLE
    assert max(end - start for start, end in steps) == PART_TOKENS
