"""Carrying out the plan of a round: each probe once, at its time, like any user's call.

A probe is marked as sent before it is sent, so that none goes out twice, whatever crashes; what
comes back is on disk before it is judged. Invariants: every probe is sent so that it ends within the
round, or left out; a slow node, hub or reference holds up its own probe alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import trio

from emcd.accounting.evidence_rule import NO_CALL
from emcd.errors import ConfigError, RecoverableError, RemoteProtocolError
from emcd.ledger import Connection
from emcd.proto.bundle import ProbeResult
from emcd.proto.messages import Verdict
from emcd.types import ZERO_HASH, Address
from emcd_validator.api_keys import ApiKeys, key_hash
from emcd_validator.corpus import decode_leaf
from emcd_validator.events import PROBE, VERDICT, ProbeMoved, VerdictGiven
from emcd_validator.hub_client import HubClient, NodeOffer
from emcd_validator.judge import HTTP_OK, Exchange, Judgement
from emcd_validator.judge_desk import Judge
from emcd_validator.judge_ledger import make_row, note_statistics, record_judgement
from emcd_validator.liveness import ABSENT, name_failure
from emcd_validator.metrics import LIVENESS, VERDICTS
from emcd_validator.model import JudgedModel
from emcd_validator.plan import Draws, Slot, pick_model, probe_window_ms
from emcd_validator.probe_request import ProbeRequest, build_probe, path_of, upstream_hash
from emcd_validator.queries.key_uses import count_key_uses, find_key_hash, note_key_use
from emcd_validator.queries.rounds import (
    ProbeRow,
    ProbeState,
    find_round,
    keep_receipt,
    list_probes,
    mark_answered,
    mark_judged,
    mark_sent,
)
from emcd_validator.queries.verdicts import VerdictRow, list_suspects
from emcd_validator.statement import read_receipt
from emcd_validator.token_count import token_count_of
from emcd_validator.validator import Validator

MAX_PARALLEL_PROBES = 16
"""Calls under way at once: enough for a few hundred in two hours, and no burst that tells a prober."""
LEAST_TIMEOUT_S = 20.0
"""A probe near the end of its round has less time than another, and is left out with less than this."""
END_MARGIN_S = 1.0
KEY_DRAWS = 1 << 32


@dataclass(frozen=True)
class _Target:
    """What a probe is going to ask."""

    model: JudgedModel
    request: ProbeRequest


class _Offers:
    """What the nodes offer, asked of the hub at most once a second for all probes together."""

    def __init__(self, hub: HubClient, validator: Validator) -> None:
        self._hub = hub
        self._lock = trio.Lock()
        self._max_age_s = min(1.0, validator.poll_s)
        self._offers: Mapping[Address, NodeOffer] = {}
        self._fetched_at = -math.inf

    async def fetch(self) -> Mapping[Address, NodeOffer]:
        """Raises: RecoverableError."""
        async with self._lock:
            if trio.current_time() - self._fetched_at > self._max_age_s:
                self._offers = await self._hub.fetch_nodes()
                self._fetched_at = trio.current_time()
            return self._offers


class Prober:
    """The probes of one validator."""

    def __init__(
        self,
        validator: Validator,
        hub: HubClient,
        keys: ApiKeys,
        judge: Judge,
        call_timeout_s: float,
    ) -> None:
        self._validator = validator
        self._hub = hub
        self._keys = keys
        self._judge_desk = judge
        self._call_timeout_s = min(call_timeout_s, validator.params.round_s / 10)
        self._sending = trio.Semaphore(MAX_PARALLEL_PROBES)
        self._offers = _Offers(hub, validator)

    async def run_round(self, round_index: int) -> None:
        """Carry out what is left of a round's plan, until all is judged or the time for it is over.

        Cancellation: probes under way are lost; what was answered is judged at the next start.
        """
        validator = self._validator
        row = await validator.read(lambda con: find_round(con, validator.address, round_index))
        if row is None or row.beacon_hash is None:
            return
        draws = Draws(row.seed, row.beacon_hash)
        probes = await validator.read(lambda con: list_probes(con, validator.address, round_index))
        left_s = (validator.judging_end_ms(round_index) - validator.now_ms()) / 1000
        with trio.move_on_after(max(0.0, left_s)):
            async with trio.open_nursery() as nursery:
                for probe in probes:
                    nursery.start_soon(self._run_probe, draws, probe)

    async def _run_probe(self, draws: Draws, probe: ProbeRow) -> None:
        if probe.state is ProbeState.PLANNED:
            await self._validator.sleep_until(probe.due_at_ms)
            target = await self._find_target(draws, probe)
            if isinstance(target, Judgement):
                LIVENESS.labels(ABSENT).inc()
                await self._give(probe, target)
                return
            async with self._sending:
                probe = await self._send(draws, probe, target)
        if probe.state is ProbeState.ANSWERED and probe.model in self._validator.models:
            await self._judge(draws, probe)

    async def _find_target(self, draws: Draws, probe: ProbeRow) -> _Target | Judgement:
        """Choose the model, waiting for the node as long as the plan allows."""
        validator = self._validator
        last_ms = probe_window_ms(validator.params, probe.round)[1]
        while True:
            outcome = await self._look_for(draws, probe)
            if isinstance(outcome, _Target) or validator.now_ms() + validator.poll_s * 1000 >= last_ms:
                return outcome
            await trio.sleep(validator.poll_s)

    async def _look_for(self, draws: Draws, probe: ProbeRow) -> _Target | Judgement:
        validator = self._validator
        try:
            offer = (await self._offers.fetch()).get(probe.node)
        except RecoverableError as exc:
            return Judgement(Verdict.ERROR, reason=f"the hub shows no nodes: {exc.code}")
        if offer is None or not offer.is_online:
            return _judge_absent(offer, validator.params.round_start_ms(probe.round))
        name = pick_model(draws, Slot(probe.node, probe.slot), offer.models, validator.models)
        if name is None:
            return Judgement(Verdict.ERROR, reason="the node offers no model that this validator judges")
        model, slot = validator.models[name], Slot(probe.node, probe.slot)
        suspects = await validator.read(lambda con: list_suspects(con, validator.address))
        greedy = (probe.node, model.model_hash) in suspects
        try:
            request = await trio.to_thread.run_sync(_make_request, draws, slot, probe.leaf, model, greedy)
        except ConfigError as exc:
            return Judgement(Verdict.ERROR, reason=str(exc))
        return _Target(model, request)

    async def _send(self, draws: Draws, probe: ProbeRow, target: _Target) -> ProbeRow:
        """Mark, send, keep. Returns: the probe, answered; lost when it was taken before or is too late."""
        validator = self._validator
        name, request = target.model.name, target.request
        body = request.body
        left_s = (validator.params.round_end_ms(probe.round) - validator.now_ms()) / 1000
        timeout_s = min(self._call_timeout_s, left_s - min(END_MARGIN_S, self._call_timeout_s / 4))
        if timeout_s < min(self._call_timeout_s, LEAST_TIMEOUT_S) or not self._keys:
            return replace(probe, state=ProbeState.LOST)
        key = await self._pick_key(draws, probe)
        if not await validator.write(
            partial(_take, validator.address, probe, name, body, key, validator.now_ms())
        ):
            return replace(probe, state=ProbeState.LOST)
        self._tell(probe, "sent")
        answer = await self._hub.send_probe(request.path, body, key, timeout_s)
        answered = replace(
            probe,
            state=ProbeState.ANSWERED,
            model=name,
            request_body=body,
            status=answer.status,
            content_type=answer.content_type,
            response_body=answer.body,
            call_id=answer.call_id,
            reason=answer.reason,
        )
        await validator.write(lambda con: mark_answered(con, validator.address, answered))
        return answered

    async def _judge(self, draws: Draws, probe: ProbeRow) -> None:
        """Fetch the receipt, judge, and write the verdict down; tries as long as there is time."""
        failure = _describe_failure(probe)
        if failure:
            LIVENESS.labels(name_failure(probe.status)).inc()
        if not probe.call_id:
            await self._give(probe, Judgement(Verdict.ERROR, reason=failure))
            return
        while True:
            missing = "no receipt came"
            try:
                probe = await self._ensure_receipt(draws, probe)
                if probe.receipt:
                    await self._give(probe, await self._judge_answer(probe, failure))
                    return
            except RecoverableError as exc:
                missing = f"{exc.code}: {exc.detail}"
            if self._is_late(probe):
                await self._give(_without_word(probe), Judgement(Verdict.ERROR, reason=failure or missing))
                return
            await trio.sleep(min(1.0, self._validator.poll_s))

    async def _ensure_receipt(self, draws: Draws, probe: ProbeRow) -> ProbeRow:
        """The probe with its receipt, if the hub has it. Raises: RecoverableError."""
        if probe.receipt:
            return probe
        receipt = await self._hub.fetch_receipt(probe.call_id, await self._find_key(draws, probe))
        if receipt is None:
            return probe
        held = replace(probe, receipt=receipt)
        await self._validator.write(lambda con: keep_receipt(con, self._validator.address, held, receipt))
        return held

    async def _judge_answer(self, probe: ProbeRow, failure: str) -> Judgement:
        """Raises: RecoverableError when the judge can't run now."""
        if failure:
            return Judgement(Verdict.ERROR, reason=failure)
        try:
            exchange = read_exchange(probe, self._validator.models[probe.model])
        except RemoteProtocolError as exc:
            return Judgement(Verdict.ERROR, reason=f"receipt: {exc.detail}")
        return await self._judge_desk.judge_exchange(exchange)

    def _is_late(self, probe: ProbeRow) -> bool:
        """Whether the verdict has to be given now: a poll later there is no time left."""
        validator = self._validator
        return validator.now_ms() + validator.poll_s * 1000 >= validator.judging_end_ms(probe.round)

    async def _give(self, probe: ProbeRow, judgement: Judgement) -> None:
        validator = self._validator
        result = make_result(probe, judgement)
        model = validator.models.get(probe.model)
        row = make_row(
            judgement,
            round_index=probe.round,
            part="probe",
            node=probe.node,
            slot=probe.slot,
            call_id=probe.call_id,
            model_hash=b"" if model is None else model.model_hash,
            at_ms=validator.now_ms(),
        )
        if not await validator.write(partial(_write_verdict, validator.address, result, row, judgement)):
            return
        note_statistics(judgement)
        self._tell(probe, "judged")
        verdict = Verdict(result.verdict)
        VERDICTS.labels("probe", verdict.name).inc()
        validator.bus.publish(
            VERDICT,
            VerdictGiven(
                validator.address,
                probe.round,
                probe.node,
                result.call_id,
                verdict.name,
                result.statistic_e12,
                False,
            ),
        )
        if verdict is not Verdict.PASS:
            validator.log.warning(
                "probe not passed",
                node=probe.node,
                round=probe.round,
                verdict=verdict.name,
                reason=judgement.reason,
            )

    async def _pick_key(self, draws: Draws, probe: ProbeRow) -> str:
        """The key that the plan draws among those that are not retired."""
        validator = self._validator
        uses = await validator.read(lambda con: count_key_uses(con, validator.address))
        drawn = draws.below(Slot(probe.node, probe.slot), "key", KEY_DRAWS)
        return self._keys.pick(drawn, uses, validator.now_ms())

    async def _find_key(self, draws: Draws, probe: ProbeRow) -> str:
        """The key that asked; another one when it is gone from the file: the hub may refuse it."""
        address = self._validator.address
        hashed = await self._validator.read(
            lambda con: find_key_hash(con, address, probe.round, probe.node, probe.slot)
        )
        return self._keys.find(hashed) or await self._pick_key(draws, probe)

    def _tell(self, probe: ProbeRow, state: str) -> None:
        address = self._validator.address
        self._validator.bus.publish(PROBE, ProbeMoved(address, probe.round, probe.node, probe.slot, state))


def _make_request(draws: Draws, slot: Slot, leaf: bytes, model: JudgedModel, greedy: bool) -> ProbeRequest:
    count = token_count_of(model)
    return build_probe(draws, slot, decode_leaf(leaf), model.manifest, count, greedy=greedy)


def _take(
    instance: Address, probe: ProbeRow, model: str, body: bytes, key: str, now_ms: int, con: Connection
) -> bool:
    """Mark a probe as sent, with the key that asks it. Returns: False when it was taken before."""
    if not mark_sent(con, instance, probe, model, body):
        return False
    note_key_use(con, instance, probe.round, probe.node, probe.slot, key_hash(key), now_ms)
    return True


def _write_verdict(
    instance: Address, result: ProbeResult, row: VerdictRow, judgement: Judgement, con: Connection
) -> bool:
    """Give a probe its verdict, with the numbers, once. Returns: False when it has one or was lost."""
    if not mark_judged(con, instance, row.round, result, judgement.reason):
        return False
    record_judgement(con, instance, row, judgement.numbers)
    return True


def read_exchange(probe: ProbeRow, model: JudgedModel) -> Exchange:
    """An answered probe as the judge wants it. Raises: RemoteProtocolError EMC-1499 (its receipt)."""
    return Exchange(
        node=probe.node,
        call_id=probe.call_id,
        model_hash=model.model_hash,
        request_path=path_of(probe.request_body),
        request_body=probe.request_body,
        status=probe.status,
        response_body=probe.response_body,
        receipt=read_receipt(probe.receipt),
    )


def make_result(probe: ProbeRow, judgement: Judgement) -> ProbeResult:
    """What the reveal says of a probe; it names the call where there is one, so that others can judge it."""
    call_id, request_hash, response_hash = _name_call(probe)
    return ProbeResult(
        node=probe.node,
        slot=probe.slot,
        leaf_index=probe.leaf_index or 0,
        call_id=call_id,
        request_hash=request_hash,
        response_hash=response_hash,
        verdict=int(judgement.verdict),
        statistic_e12=judgement.statistic_e12,
    )


def _name_call(probe: ProbeRow) -> tuple[bytes, bytes, bytes]:
    """Call id, request and answer: as hub and node signed them, without a receipt what was asked."""
    none = bytes(ZERO_HASH)
    if not probe.call_id:
        return NO_CALL, none, none
    try:
        call = read_receipt(probe.receipt)
    except RemoteProtocolError:
        call = None
    if call is None or call.forward.call_id != probe.call_id:
        asked = upstream_hash(path_of(probe.request_body), probe.request_body)
        return (NO_CALL, none, none) if asked is None else (probe.call_id, asked, none)
    response_hash = none if call.receipt is None else call.receipt.response_hash
    return probe.call_id, call.forward.request_hash, response_hash


def _describe_failure(probe: ProbeRow) -> str:
    """Why a probe was not answered at all; "" where there is an answer to judge."""
    if probe.status == HTTP_OK and probe.call_id:
        return ""
    said = probe.reason or f"status {probe.status}, call id {probe.call_id.hex() or 'missing'}"
    return f"{name_failure(probe.status)}: {said}"


def _without_word(probe: ProbeRow) -> ProbeRow:
    """A probe whose verdict is due: whoever has the answer and could not judge it says nothing of its call."""
    return replace(probe, call_id=b"") if probe.receipt else probe


def _judge_absent(offer: NodeOffer | None, round_start_ms: int) -> Judgement:
    """A node the hub has not seen in the round is offline; one that went away is an error."""
    if offer is None or offer.last_status_at_ms < round_start_ms:
        return Judgement(Verdict.OFFLINE, reason="the hub shows no status of the node in this round")
    return Judgement(Verdict.ERROR, reason="the node was online in this round and went away")
