"""Own runs: opened when needed, one at a time, closed when idle; and how far they lie apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import trio
import trio.testing

from emcd.accounting.verdict import NumericClass, max_statistic_e12
from emcd.errors import ConfigError
from emcd.inference.minilm import MINILM_NAME
from emcd.inference.rounded_graph import round_to_class
from emcd.testing import make_key
from emcd_validator.judge_desk import Judge
from emcd_validator.model import find_judged
from emcd_validator.reference import ReferenceSettings, Runner
from emcd_validator.reference_embedding import BATCH_TOKENS, EmbeddingReference, _batches
from tests.support.inference_model import shared_models_dir
from tests.support.validator_world import make_deployment


@dataclass
class Openings:
    """How often something was opened, and how many use it at once."""

    count: int = 0
    using: int = 0
    most: int = 0
    fault: Exception | None = None
    log: list[str] = field(default_factory=list)

    def open(self) -> Any:
        if self.fault is not None:
            raise self.fault
        self.count += 1
        return self

    def use(self, _: Any) -> int:
        self.using += 1
        self.most = max(self.most, self.using)
        self.using -= 1
        return self.count


def make_runner(openings: Openings) -> Runner[Any]:
    return cast("Runner[Any]", Runner(openings.open, trio.CapacityLimiter(1)))


async def test_reference_is_opened_once_and_anew_after_it_was_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    openings = Openings()
    runner = make_runner(openings)
    assert openings.count == 0
    assert await runner.run(openings.use) == 1
    assert await runner.run(openings.use) == 1
    await trio.sleep(5)
    await runner.close_idle(10)
    assert await runner.run(openings.use) == 1
    await trio.sleep(11)
    await runner.close_idle(10)
    assert await runner.run(openings.use) == 2


async def test_references_that_share_a_limiter_run_one_at_a_time() -> None:
    openings = Openings()
    limiter = trio.CapacityLimiter(1)
    runners = [Runner(openings.open, limiter) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for runner in runners:
            nursery.start_soon(runner.run, openings.use)
    assert openings.most == 1
    assert openings.count == 4


async def test_reference_that_can_not_be_opened_is_tried_again() -> None:
    openings = Openings(fault=ConfigError("EMC-1602", "a file"))
    runner = make_runner(openings)
    with pytest.raises(ConfigError, match="EMC-1602"):
        await runner.run(openings.use)
    openings.fault = None
    assert await runner.run(openings.use) == 1


async def test_judge_closes_what_is_idle(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    openings = Openings()
    runner = make_runner(openings)
    domain = make_deployment(1_800_000_000).staking_domain
    judge = Judge(domain, make_key("hub").address, {}, {"x": runner}, ReferenceSettings(idle_s=10))
    await nursery.start(judge.run)
    assert await runner.run(openings.use) == 1
    await trio.sleep(30)
    assert await runner.run(openings.use) == 2


def test_embedding_runs_differ_by_rounding_alone_and_keep_the_order() -> None:
    reference = EmbeddingReference(find_judged(MINILM_NAME, shared_models_dir()), 1)
    texts = ["one", "a longer text of several words " * 8, "two", "", "a third one"]
    run = reference.compute(texts)
    (again,) = reference.compute_again(texts)
    assert 0 < max_statistic_e12(run.vectors, again) < 5_000_000  # 5e-6
    assert max_statistic_e12(run.vectors[:1], again[2:3]) > 10**10
    assert run.prompt_tokens > 50


def test_batches_hold_every_text_once_within_their_bound() -> None:
    lengths = [300, 1, 5, 256, 4096, 7, 5000]
    batches = list(_batches([[0] * length for length in lengths]))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or len(batch) * longest <= BATCH_TOKENS


def test_rounding_is_to_the_nearest_number_of_the_class() -> None:
    values = np.array([1.0, 1 + 2**-9, 1 + 3 * 2**-8, -1e9, 3.1415926], np.float32)
    fp16 = round_to_class(values, NumericClass.FP16)
    assert fp16.tolist() == [1.0, 1 + 2**-9, 1 + 3 * 2**-8, -65504.0, 3.140625]
    bf16 = round_to_class(values, NumericClass.BF16)
    assert bf16.tolist() == [1.0, 1.0, 1 + 2**-6, -998244352.0, 3.140625]
