"""What is remembered of verdicts: once each, with their numbers; drifts and suspects; pruning."""

from __future__ import annotations

from pathlib import Path

from emcd.accounting.token_check import ProbeKind
from emcd.ledger import Connection, Ledger
from emcd.proto.messages import Verdict
from emcd.testing import make_key, temporary_ledger
from emcd_validator.judge import Blame, Judgement, Numbers
from emcd_validator.judge_ledger import make_row, read_drift, read_numbers, record_judgement
from emcd_validator.queries.verdicts import (
    find_verdict,
    list_drifts,
    list_suspects,
    list_verdicts,
    prune_verdicts,
)
from emcd_validator.schema import MIGRATIONS

ME = make_key("validator").address
NODE = make_key("node").address
MODEL = bytes(32)
TAU = 200_000_000


def make_judgement(
    d_share: float = 0.01, *, z: float | None = None, verdict: Verdict = Verdict.PASS
) -> Judgement:
    kind = ProbeKind.SEEDED if z is None else ProbeKind.FREE
    numbers = Numbers(
        kind,
        values={"d": int(TAU * d_share)},
        taus={"d": TAU},
        z_sum=0.0 if z is None else z,
        z_variance=0.0 if z is None else 1.0,
        facts={"tokens": 64},
    )
    statistic = 2**64 - 1 if verdict is Verdict.GROSS else int(d_share * 10**12)
    return Judgement(verdict, statistic, "a reason", Blame.NODE, numbers)


def give(
    con: Connection, call: int, judgement: Judgement, *, round_index: int = 3, part: str = "probe"
) -> bool:
    row = make_row(
        judgement, round_index=round_index, part=part, node=NODE, slot=0, call_id=call.to_bytes(16, "big"),
        model_hash=MODEL, at_ms=call,
    )  # fmt: skip
    return record_judgement(con, ME, row, judgement.numbers)


async def test_verdict_is_kept_once_with_its_numbers(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as ledger:
        gross = make_judgement(20, verdict=Verdict.GROSS)
        assert await ledger.write(lambda con: give(con, 1, gross))
        assert not await ledger.write(lambda con: give(con, 1, make_judgement()))
        (row,) = await ledger.read(lambda con: list_verdicts(con, ME, 3))
        assert row.verdict == Verdict.GROSS
        assert row.statistic_e12 == 2**64 - 1
        assert row.blame == "node"
        assert read_numbers(row.numbers) == gross.numbers
        assert await ledger.read(lambda con: find_verdict(con, ME, (1).to_bytes(16, "big"))) == row
        assert await ledger.read(lambda con: find_verdict(con, NODE, (1).to_bytes(16, "big"))) is None


async def test_drift_below_the_threshold_is_seen_and_honest_noise_is_not(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as ledger:
        for call in range(40):
            await ledger.write(lambda con, c=call: give(con, c, make_judgement(0.3)))
        assert not (await only_drift(ledger)).is_drifting
        for call in range(40, 80):
            await ledger.write(lambda con, c=call: give(con, c, make_judgement(0.9)))
        assert (await only_drift(ledger)).is_drifting
        assert read_drift((await only_drift(ledger)).state).answers == 80


async def test_drift_is_not_advanced_twice_by_one_verdict_nor_by_a_vote(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as ledger:
        for _ in range(3):
            await ledger.write(lambda con: give(con, 1, make_judgement(0.9)))
        await ledger.write(lambda con: give(con, 2, make_judgement(0.9), part="vote"))
        assert read_drift((await only_drift(ledger)).state).answers == 1


async def test_suspect_is_who_draws_oddly_over_sixteen_answers(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as ledger:
        for call in range(15):
            await ledger.write(lambda con, c=call: give(con, c, make_judgement(z=1.5)))
        assert await ledger.read(lambda con: list_suspects(con, ME)) == frozenset()
        await ledger.write(lambda con: give(con, 15, make_judgement(z=1.5)))
        assert await ledger.read(lambda con: list_suspects(con, ME)) == {(NODE, MODEL)}
        for call in range(16, 32):
            await ledger.write(lambda con, c=call: give(con, c, make_judgement(z=0.1)))
        assert await ledger.read(lambda con: list_suspects(con, ME)) == frozenset()


async def test_old_verdicts_and_drifts_are_pruned(tmp_path: Path) -> None:
    async with temporary_ledger(tmp_path, {"validator": MIGRATIONS}) as ledger:
        await ledger.write(lambda con: give(con, 1, make_judgement(), round_index=3))
        await ledger.write(lambda con: prune_verdicts(con, ME, 3))
        assert await ledger.read(lambda con: list_verdicts(con, ME, 3))
        await ledger.write(lambda con: prune_verdicts(con, ME, 4))
        assert not await ledger.read(lambda con: list_verdicts(con, ME, 3))
        assert not await ledger.read(lambda con: list_drifts(con, ME))


async def only_drift(ledger: Ledger):  # type: ignore[no-untyped-def]
    (row,) = await ledger.read(lambda con: list_drifts(con, ME))
    return row
