"""Four validators that watch each other, over real sockets: who does not judge, or judges wrong, is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from emcd.accounting.offence import OffenceKind
from emcd.inference.minilm import ModelFiles
from emcd.proto.messages import Verdict
from emcd.testing import make_key
from emcd.types import Address
from emcd_validator.judge import Judgement
from emcd_validator.role import ValidatorRole
from tests.support.inference_model import fp32_files
from tests.support.round_world import SealedBundle
from tests.support.validator_net import ROUND_S, Net, engine, running_net
from tests.support.validator_world import KEY_NAMES

__all__ = ["fp32_files"]

BAD = KEY_NAMES[3]


def say(verdict: Verdict) -> Any:
    async def judge(*args: object, **kwargs: object) -> Judgement:
        await trio.lowlevel.checkpoint()
        return Judgement(verdict, 10**13 if verdict is Verdict.GROSS else 0)

    return judge


def judge_blindly(role: ValidatorRole) -> None:
    """Its judge passes everything, and nothing looks after it."""
    role._judge.judge_exchange = role._judge.judge_transcript = say(Verdict.PASS)  # type: ignore[method-assign]


def hide_blindness(role: ValidatorRole) -> None:
    """As one whose keeper wants it so."""
    judge_blindly(role)
    role._voter.own_judge.note_passed = lambda *args: None  # type: ignore[method-assign]


def call_all_gross(role: ValidatorRole) -> None:
    role._judge.judge_exchange = say(Verdict.GROSS)  # type: ignore[method-assign]


async def list_tasks(net: Net, name: str, index: int) -> list[dict[str, Any]]:
    """What a validator shows of the tasks that it gave in a round."""
    with trio.fail_after(ROUND_S * 4):
        while True:
            status, page = await net.fetch(name, f"/tasks/{index}")
            if status == 200:
                return list(page["tasks"])
            await trio.sleep(0.1)


async def test_honest_validators_agree_about_every_task_and_accuse_nobody(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles
) -> None:
    honest = await engine(nursery, fp32_files)
    async with running_net(tmp_path, [honest] * 4) as net:
        answered: set[tuple[bool, str]] = set()
        index = net.index
        while len(answered) < 2:  # a busy machine may answer none in a round as short as this
            for name in KEY_NAMES:
                tasks = await list_tasks(net, name, index)
                answered |= {(task["is_decoy"], task["verdict"]) for task in tasks if task["verdict"]}
            index += 1
        assert answered == {(True, "GROSS"), (False, "PASS")}
        for name in KEY_NAMES:
            assert (await net.fetch(name, "/offences"))[1] == {"offences": []}
            assert len((await net.fetch(name, f"/results/{net.index}"))[1]["results"]) == len(KEY_NAMES)
        await net.find_round(lambda closed: True)
        closed = net.hub.closed[net.index]
        reasons = {row.node: row.reason for row in closed.bundle.results}
        assert {reasons[make_key(name).address] for name in KEY_NAMES} == {""}
        assert not closed.result.strikes


async def test_validator_that_passes_everything_blindly_is_proven_false_and_slashed(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles
) -> None:
    honest = await engine(nursery, fp32_files)
    async with running_net(tmp_path, [honest] * 4, corrupt={BAD: hide_blindness}) as net:
        for name in KEY_NAMES[:3]:
            orders = await net.wait_orders(name, net.chain.deployment.params.epoch_of(net.index))
            assert {(order.node, order.bps) for order in orders} == {(make_key(BAD).address, 500)}
            _, page = await net.fetch(name, "/offences")
            kinds = {(item["kind"], item["offender"]) for item in page["offences"]}
            assert kinds == {(OffenceKind.FALSE_VERDICT, make_key(BAD).address)}


async def test_validator_whose_judge_broke_says_so_and_votes_nothing(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles
) -> None:
    honest = await engine(nursery, fp32_files)
    async with running_net(tmp_path, [honest] * 4, corrupt={BAD: judge_blindly}) as net:
        muted = net.validators[BAD].role._voter.own_judge.muted
        with trio.fail_after(ROUND_S * 6):
            while not muted:
                await trio.sleep(0.1)
        _, health = await net.fetch(BAD, "/healthz")
        assert health["state"] == "degraded"
        assert "EMC-1866" in health["reason"]
        index = min(muted)
        given = [task for name in KEY_NAMES[:3] for task in await list_tasks(net, name, index)]
        bad = make_key(BAD).address
        assert all(task["verdict"] is None for task in given if task["receiver"] == bad)
        await net.wait_decision(KEY_NAMES[0], index)
        assert (await net.fetch(BAD, f"/votes/{index}"))[1] == {"votes": []}


async def test_validator_that_calls_honest_answers_gross_loses_its_credits(
    tmp_path: Path, nursery: trio.Nursery, fp32_files: ModelFiles
) -> None:
    honest = await engine(nursery, fp32_files)
    async with running_net(tmp_path, [honest] * 4, corrupt={BAD: call_all_gross}) as net:
        bad = make_key(BAD).address
        index = await net.find_round(lambda closed: reason_of(closed, bad) == "mistake")
        rows = {row.node: row for row in net.hub.closed[index].bundle.results}
        assert rows[bad].credits_micro == 0
        assert all(rows[make_key(name).address].credits_micro > 0 for name in KEY_NAMES[:3])
        for closed in net.hub.closed.values():
            assert not closed.result.strikes
            assert all(reason_of(closed, make_key(name).address) != "mistake" for name in KEY_NAMES[:3])


def reason_of(closed: SealedBundle, node: Address) -> str:
    """Why a participant has no credits in a round; "" when it has."""
    return next(row.reason for row in closed.bundle.results if row.node == node)
