"""A user challenges a receipt through a validator, and the node shows its answer: over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result
from starlette.applications import Starlette

from emcd.command import CommandContext
from emcd.errors import EmcdError
from emcd.log import get_logger
from emcd.net.http_server import serve_http
from emcd.proto.json_form import to_json
from emcd.proto.openai import Endpoint, read_request
from emcd.proto.records import format_call_id
from emcd.testing import make_key, temporary_ledger
from emcd.types import Address
from emcd_node.challenge_watch import ChallengeWatch
from emcd_node.queries import ReceiptRow, insert_receipts
from emcd_node.role import SPEC as NODE_SPEC
from emcd_node.transcript import Transcript
from emcd_node.transcript_folder import TranscriptFolder
from emcd_node.transcript_keeper import TranscriptKeeper
from emcd_validator.challenge_cli import challenge
from emcd_validator.challenge_page import ChallengePages
from emcd_validator.role import SPEC as VALIDATOR_SPEC
from tests.support.validator_world import Call, FakeHub, make_call, make_parts, make_world, set_clock

NODE, VALIDATOR = make_key("node-0"), make_key("validator-1")
BODY = b'{"input":"what is a secret?","model":"all-MiniLM-L6-v2"}'
PATH, ANSWER, INDEX = "/v1/embeddings", b'{"object":"list","data":[]}', 20
CONTEXT = CommandContext(None, lambda path, roles: 0, cast("Any", None))
UPSTREAM = read_request(Endpoint.EMBEDDINGS, BODY, evidence=True).body


@dataclass
class Net:
    hub: FakeHub
    call: Call
    keeper: TranscriptKeeper
    watch: ChallengeWatch
    url: str
    folder: Path

    @property
    def call_id(self) -> str:
        return format_call_id(self.call.records.forward.call_id)

    async def keep(self, response: bytes = ANSWER, request: bytes = UPSTREAM) -> None:
        """As the node does when it has served the call."""
        records = self.call.records
        assert records.receipt is not None
        kept = Transcript(
            records.forward,
            records.receipt,
            PATH,
            "application/json",
            request,
            200,
            "application/json",
            response,
        )
        assert self.keeper.offer(INDEX, kept)
        with trio.fail_after(5):
            while await self.keeper.find(INDEX, records.forward.call_id) is None:
                await trio.sleep(0.01)

    async def run_cli(self, *arguments: str, body: bytes = BODY) -> Result:
        receipt, request = self.folder / "receipt.json", self.folder / "body.json"
        receipt.write_bytes(msgspec.json.encode(to_json(self.call.receipt)))
        request.write_bytes(body)
        given = [self.call_id, "--receipt", str(receipt), "--request", str(request), "--url", self.url]
        invoke = partial(CliRunner().invoke, challenge, [*given, *arguments], obj=CONTEXT)
        return await trio.to_thread.run_sync(invoke)  # it runs a loop of its own, in a thread of its own


class OneValidator:
    """A directory of validators with one in it."""

    def __init__(self, url: str, address: Address = VALIDATOR.address) -> None:
        self.found = {address: url}

    async def fetch_validators(self, round_index: int) -> dict[Address, str]:
        await trio.lowlevel.checkpoint()
        return self.found


@asynccontextmanager
async def running_net(tmp_path: Path) -> AsyncIterator[Net]:
    hub = make_world(("validator-1",), round_s=20)
    params = hub.deployment.params
    at_ms = params.round_start_ms(INDEX) + 1000
    set_clock(hub, at_ms + 2000)
    call = make_call(hub.deployment, NODE, UPSTREAM, ANSWER, at_ms)
    components = {"validator": VALIDATOR_SPEC.migrations, "node": NODE_SPEC.migrations}
    async with temporary_ledger(tmp_path, components) as ledger, trio.open_nursery() as nursery:
        parts = make_parts("validator-1", ledger, hub, tmp_path)
        app = Starlette(routes=ChallengePages(parts.watch.challenges).routes())
        port = await nursery.start(partial(serve_http, app, host="127.0.0.1", port=0))
        keeper = TranscriptKeeper(NODE.address, TranscriptFolder(tmp_path / "t", 1 << 20), get_logger())
        await nursery.start(keeper.run)
        records = call.records
        row = ReceiptRow(
            NODE.address, records.forward.call_id, records.forward.struct_hash(), bytes(32), b"", b"", INDEX
        )  # type: ignore[arg-type]
        await ledger.write(lambda con: insert_receipts(con, [row]))
        url = f"http://127.0.0.1:{port}"
        watch = ChallengeWatch(
            node=NODE.address,
            domain=hub.deployment.staking_domain,
            params=params,
            ledger=ledger,
            clock=hub.chain.clock,
            directory=cast("Any", OneValidator(url)),
            keeper=keeper,
            timeout_s=5,
            log=get_logger(),
        )
        yield Net(hub, call, keeper, watch, url, tmp_path)
        nursery.cancel_scope.cancel()


async def test_user_challenges_a_receipt_and_gets_the_answer_that_was_signed(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net:
        await net.keep()
        first = await net.run_cli()
        assert first.exit_code == 4, first.output
        assert "open: node" in first.output
        await net.watch.step()
        out = tmp_path / "answer.json"
        second = await net.run_cli("--out", str(out), "--json")
        assert second.exit_code == 0, second.output
        assert msgspec.json.decode(second.output)["state"] == "opened"
        assert out.read_bytes() == ANSWER


async def test_user_who_waits_is_answered_when_the_node_looks(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net, trio.open_nursery() as nursery:
        await net.keep()
        nursery.start_soon(net.watch.run)
        result = await net.run_cli("--wait", "10")
        assert result.exit_code == 0, result.output
        nursery.cancel_scope.cancel()


async def test_node_shows_nothing_to_a_validator_that_does_not_know_the_request(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net:
        await net.keep(request=UPSTREAM.replace(b"secret", b"riddle"))
        await net.run_cli()
        await net.watch.step()
        result = await net.run_cli()
        assert result.exit_code == 4, result.output


async def test_node_without_the_transcript_leaves_it_unanswered(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net:
        await net.run_cli()
        await net.watch.step()
        set_clock(net.hub, net.hub.now_ms() + 3_600_000)
        result = await net.run_cli("--json")
        assert result.exit_code != 0


async def test_node_believes_only_the_validator_that_the_chain_names(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net:
        await net.keep()
        await net.run_cli()
        directory = OneValidator(net.url, make_key("somebody else").address)
        net.watch._directory = cast("Any", directory)
        await net.watch.step()
        assert (await net.run_cli()).exit_code == 4
        net.watch._directory = cast("Any", OneValidator(net.url))
        await net.watch.step()
        assert (await net.run_cli()).exit_code == 0


@pytest.mark.parametrize(
    "page",
    [b"nonsense", b"[]", b'{"challenges": 5}', b'{"challenges": [5]}', b'{"challenges": [{"challenge": {}}]}',
     b"\xff" * 10, b'{"challenges": [{"challenge": null, "signature": "0xzz"}]}'],
)  # fmt: skip
async def test_node_survives_a_validator_that_serves_nonsense(tmp_path: Path, page: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": page})

    async with running_net(tmp_path) as net, trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_http, app, host="127.0.0.1", port=0))
        net.watch._directory = cast("Any", OneValidator(f"http://127.0.0.1:{port}"))
        await net.watch.step()
        nursery.cancel_scope.cancel()


async def test_command_refuses_what_is_no_receipt_of_the_call(tmp_path: Path) -> None:
    async with running_net(tmp_path) as net:
        receipt = tmp_path / "other.json"
        receipt.write_bytes(msgspec.json.encode(to_json(net.call.receipt)))
        body = tmp_path / "b.json"
        body.write_bytes(BODY)
        given = [
            format_call_id(b"\1" * 16),
            "--receipt",
            str(receipt),
            "--request",
            str(body),
            "--url",
            net.url,
        ]
        result = CliRunner().invoke(challenge, given, obj=CONTEXT)
        assert isinstance(result.exception, EmcdError)
        assert result.exception.code == "EMC-1870"
        wrong = await net.run_cli(body=b'{"input":"another","model":"all-MiniLM-L6-v2"}')
        assert isinstance(wrong.exception, EmcdError)
