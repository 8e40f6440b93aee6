"""A wallet's pages over real sockets: the stream, the pages of requests, reports of settlers; an account's own pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from emcd.cli.wallet_stream import EventReader
from emcd.net.http_client import Response, request
from emcd.net.http_stream import StreamResponse, stream
from emcd.proto.address import hex_hash
from emcd.proto.hashing import keccak
from emcd.proto.json_form import to_json
from emcd.proto.messages import Extraction
from emcd.proto.settler_report import ReportKind, SettlerReport
from emcd.testing import make_key
from emcd.types import ZERO_HASH
from emcd_hub.api.events import MAX_PER_WALLET
from emcd_hub.billing.queries import vault_account
from tests.support.hub_rounds import StubChain, quick_deployment, wallet_of
from tests.support.hub_world import ADMIN_TOKEN, HubWorld, StubNode, node_key, post, running_world

NODE = node_key(0).address
WALLET_NAME = f"wallet of {NODE}"
WALLET = wallet_of(NODE)
SETTLER = make_key("settler")


@dataclass
class Hub:
    """A hub whose chain says what a test feeds."""

    world: HubWorld
    chain: StubChain

    def page(self, nonce: int, **changes: Any) -> dict[str, Any]:
        """A signed request."""
        at_s = self.chain.clock.now_ms() // 1000
        asked = msgspec.structs.replace(Extraction(WALLET, WALLET, 0, True, nonce, at_s + 3600), **changes)
        signature = make_key(WALLET_NAME).sign(self.chain.deployment.distributor_domain, asked)
        return {"extraction": to_json(asked), "signature": hex_hash(signature)}

    async def ask(self, nonce: int = 0) -> Any:
        url = f"{self.world.url}/api/wallets/{WALLET}/extractions"
        answer = await request("POST", url, json=self.page(nonce))
        assert answer.status == 202, answer.body
        return answer.json()

    async def get(self, path: str, key: str = "") -> Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await request("GET", self.world.url + path, headers=headers, max_bytes=1 << 22)

    async def feed(self, contract: str, name: str, **args: Any) -> int:
        return await self.chain.watchers[0].feed((contract, name, args))

    async def publish(self, index: int, active_at_s: int = 1) -> None:
        await self.feed(
            "distributor", "RootPublished", round=index, publisher=SETTLER.address, bundleHash=keccak(b"b"),
            root=keccak(b"r"), cumulativeWei=5, feeWei=0, activeAt=active_at_s,
        )  # fmt: skip

    async def report(self, signer: Any = SETTLER, **changes: Any) -> Response:
        now_ms = self.chain.clock.now_ms()
        word = SettlerReport(SETTLER.address, WALLET, 0, int(ReportKind.SUBMITTED), "", keccak(b"t"), now_ms)
        word = msgspec.structs.replace(word, **changes)
        signature = signer.sign(self.chain.deployment.staking_domain, word)
        page = {"report": to_json(word), "signature": hex_hash(signature)}
        return await request("POST", f"{self.world.url}/api/extractions/reports", json=page)


@asynccontextmanager
async def hub(folder: Path, **options: Any) -> AsyncIterator[Hub]:
    deployment = quick_deployment(60)
    chain = StubChain(deployment)
    chain.nodes = [NODE]
    async with running_world(folder, deployment=deployment, chain=chain, **options) as world:
        yield Hub(world, chain)


# ------------------------------------------------------------------------------------ the stream


class Reader:
    """Reads one stream."""

    def __init__(self, answer: StreamResponse) -> None:
        self.answer = answer
        self.events = EventReader()
        self.waiting: list[Any] = []

    async def next(self) -> Any:
        with trio.fail_after(10):
            while not self.waiting:
                self.waiting = [json.loads(text) for text in self.events.feed(await self.answer.__anext__())]
        return self.waiting.pop(0)

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        while not condition(state := await self.next()):
            pass
        return state


@asynccontextmanager
async def listening(net: Hub, last_id: str = "") -> AsyncIterator[Reader]:
    headers = {"last-event-id": last_id} if last_id else {}
    url = f"{net.world.url}/api/wallets/{WALLET}/events"
    async with stream("GET", url, headers=headers, idle_timeout_s=20) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        yield Reader(answer)


async def test_stream_shows_everything_first_and_then_every_step(tmp_path: Path) -> None:
    async with hub(tmp_path) as net, listening(net) as reader:
        first = await reader.next()
        assert first["rewards"] == (await net.get(f"/api/wallets/{WALLET}/rewards")).json()
        assert first["extractions"] == []
        await net.ask()
        asked = await reader.until(lambda state: bool(state["extractions"]))
        assert asked["extractions"][0]["state"] in ("requested", "waiting")
        await net.publish(0)
        await reader.until(lambda state: state["extractions"][0]["state"] == "synchronised")
        assert (await net.report()).status == 202
        sent = await reader.until(lambda state: state["extractions"][0]["state"] == "submitted")
        assert sent["extractions"][0]["submitted"]["tx_hash"] == hex_hash(keccak(b"t"))
        claimed = {"wallet": WALLET, "recipient": WALLET, "round": 0, "amountWei": 5, "cumulativeWei": 5}
        await net.feed("distributor", "Claimed", **claimed)
        paid = await reader.until(lambda state: state["extractions"][0]["state"] == "claimed")
        assert paid["extractions"][0]["claimed"]["amount_wei"] == "5"
        assert paid["rewards"]["claimed_wei"] == "5"


async def test_stream_taken_up_again_repeats_nothing(tmp_path: Path) -> None:
    async with hub(tmp_path) as net:
        async with listening(net) as reader:
            await reader.next()
            last_id = reader.events.last_id
        async with listening(net, last_id) as reader:
            with trio.move_on_after(2) as waited:
                await reader.next()
            assert waited.cancelled_caught
            await net.ask()
            assert (await reader.next())["extractions"]
        async with listening(net, "of another time") as reader:
            assert (await reader.next())["extractions"]


async def test_streams_of_a_wallet_are_bounded_and_free_their_place(tmp_path: Path) -> None:
    url = f"/api/wallets/{WALLET}/events"
    async with hub(tmp_path) as net:
        events = net.world.role._wallets.events  # type: ignore[union-attr]
        async with trio.open_nursery() as nursery:

            async def listen(task_status: trio.TaskStatus[None]) -> None:
                async with listening(net) as reader:
                    await reader.next()
                    task_status.started()
                    await trio.sleep_forever()

            for _ in range(MAX_PER_WALLET):
                await nursery.start(listen)
            refused = await net.get(url)
            assert (refused.status, refused.json()["error"]["emc_code"]) == (429, "EMC-1758")
            nursery.cancel_scope.cancel()
        await net.world.until(lambda: events.subscribers == 0)
        async with listening(net) as reader:
            await reader.next()


async def test_stream_ends_when_the_hub_stops(tmp_path: Path) -> None:
    async with hub(tmp_path) as net, listening(net) as reader:
        await reader.next()
        with trio.fail_after(10):
            await net.world.role.drain()
            with pytest.raises(StopAsyncIteration):
                while True:
                    await reader.answer.__anext__()


def test_event_reader_takes_pieces_cut_anywhere() -> None:
    whole = b'retry: 5\n\n: a comment\n\nid: 7\nevent: state\ndata: {"a":\ndata: 1}\n\nid: 8\ndata: {}\n\n'
    for size in range(1, len(whole)):
        reader = EventReader()
        events: list[str] = []
        for at in range(0, len(whole), size):
            events += reader.feed(whole[at : at + size])
        assert events == ['{"a":\n1}', "{}"]
        assert reader.last_id == "8"


# ------------------------------------------------------------------------------------ requests and reports


async def test_requests_are_paged_newest_first_and_listed_once_for_settlers(tmp_path: Path) -> None:
    async with hub(tmp_path) as net:
        for nonce in range(5):
            await net.ask(nonce)
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await net.get(f"/api/wallets/{WALLET}/extractions?limit=2&before={cursor}")).json()
            seen += [item["extraction"]["nonce"] for item in page["extractions"]]
            if not page["next"]:
                break
            cursor = page["next"]
        assert [int(nonce) for nonce in seen] == [4, 3, 2, 1, 0]
        everything = (await net.get("/api/extractions")).json()
        assert [int(item["extraction"]["nonce"]) for item in everything["extractions"]] == [0, 1, 2, 3, 4]
        assert everything["next"] is None
        last = everything["extractions"][2]
        after = f"{last['requested_at_ms']}.{WALLET}.2"
        rest = (await net.get(f"/api/extractions?after={after}")).json()["extractions"]
        assert [int(item["extraction"]["nonce"]) for item in rest] == [3, 4]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "before=1", "before=x.y", "before=1.-2", f"before={2**62}.1"]
)
async def test_page_of_nonsense_is_refused(tmp_path: Path, query: str) -> None:
    async with hub(tmp_path) as net:
        answer = await net.get(f"/api/wallets/{WALLET}/extractions?{query}")
        assert (answer.status, answer.json()["error"]["emc_code"]) == (400, "EMC-1744")
        assert (await net.get("/api/extractions?after=1.2")).status == 400
        assert (await net.get("/api/extractions?after=1.0x12.3")).status == 400


BAD_REPORTS: dict[str, tuple[int, dict[str, Any]]] = {
    "signed by another": (401, {"signer": make_key("liar")}),
    "of no publisher": (403, {"signer": make_key("liar"), "settler": make_key("liar").address}),
    "unknown kind": (400, {"kind": 9}),
    "no transaction": (400, {"tx_hash": ZERO_HASH}),
    "transaction of a held claim": (400, {"kind": int(ReportKind.HELD)}),
    "too long": (400, {"kind": int(ReportKind.HELD), "tx_hash": ZERO_HASH, "text": "x" * 301}),
    "control characters": (400, {"kind": int(ReportKind.HELD), "tx_hash": ZERO_HASH, "text": "a\nb"}),
    "old": (400, {"reported_at_ms": 5}),
    "of no request": (404, {"nonce": 7}),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
async def test_report_that_is_wrong_is_refused(tmp_path: Path, case: str) -> None:
    status, changes = BAD_REPORTS[case]
    async with hub(tmp_path) as net:
        await net.ask()
        await net.publish(0)
        answer = await net.report(**changes)
        assert (answer.status, answer.json()["error"]["emc_code"]) == (status, "EMC-1749")
        path = (await net.get(f"/api/wallets/{WALLET}/extractions")).json()["extractions"][0]
        assert (path["state"], path["submitted"], path["note"]) == ("synchronised", None, None)


async def test_report_signed_for_another_chain_is_refused(tmp_path: Path) -> None:
    async with hub(tmp_path) as net:
        await net.ask()
        await net.publish(0)
        word = SettlerReport(
            SETTLER.address, WALLET, 0, int(ReportKind.SUBMITTED), "", keccak(b"t"), net.chain.clock.now_ms()
        )
        for domain in (
            net.chain.deployment.distributor_domain,
            msgspec.structs.replace(net.chain.deployment.staking_domain, chain_id=1),
        ):
            page = {"report": to_json(word), "signature": hex_hash(SETTLER.sign(domain, word))}
            answer = await request("POST", f"{net.world.url}/api/extractions/reports", json=page)
            assert answer.status == 401


# ------------------------------------------------------------------------------------ an account's own pages


async def test_key_holder_reads_the_books_of_its_account(tmp_path: Path) -> None:
    async with hub(tmp_path, granted_micro=10**8) as net:
        world = net.world
        await world.add_node(StubNode(node_key(0)))
        await net.feed(
            "vault", "CreditsBought", account=vault_account(world.account_id), payer=WALLET, amountWei=7,
            creditsMicro=500, index=0,
        )  # fmt: skip
        for _ in range(3):
            assert (await post(world)).status == 200
        now = (await net.get("/api/account", world.api_key)).json()
        books = (await net.get("/api/account/statement", world.api_key)).json()
        shown = await request(
            "GET",
            f"{world.admin_url}/admin/accounts/{world.account_id}/statement?from=0&to=100000",
            headers={"authorization": f"Bearer {ADMIN_TOKEN}"},
        )

    assert now["vault_micro"] == "500"
    assert [item["kind"] for item in books["movements"]] == ["grant", "deposit"]
    assert books["moved"] == {"granted_micro": "100000000", "vault_micro": "500"}
    assert sum(item["calls"] for item in books["usage"]) == 3
    for part in ("granted_micro", "vault_micro"):
        assert int(books["opening"][part]) + int(books["moved"][part]) - int(books["used"][part]) == int(
            books["closing"][part]
        )
        assert books["closing"][part] == now[part]
    assert (books["reserved_micro"], books["calls_in_flight"]) == ("0", 0)
    assert shown.status == 400
    assert shown.json()["error"]["emc_code"] == "EMC-1744"


async def test_statement_of_another_account_is_nobodys_to_read(tmp_path: Path) -> None:
    async with hub(tmp_path) as net:
        for path in ("/api/account", "/api/account/statement"):
            assert (await net.get(path)).status == 401
            assert (await net.get(path, "emc_sk_" + "A" * 43)).status == 401
        for query in ("from=x", "to=-1", "from=9&to=3", "to=99999999999999"):
            answer = await net.get(f"/api/account/statement?{query}", net.world.api_key)
            assert answer.status == 400


async def test_purchase_for_nobody_here_is_shown_as_held(tmp_path: Path) -> None:
    async with hub(tmp_path) as net:
        await net.feed(
            "vault",
            "CreditsBought",
            account=keccak(b"nobody"),
            payer=WALLET,
            amountWei=5,
            creditsMicro=6,
            index=0,
        )
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        url = f"{net.world.admin_url}/admin/deposits"
        [held] = (await request("GET", url, headers=headers)).json()["held"]
        assert (held["index"], held["payer"], held["credits_micro"]) == (0, WALLET, "6")
        assert (await request("GET", f"{url}?before=0", headers=headers)).json()["held"] == []
        assert (await request("GET", f"{url}?before=x", headers=headers)).status == 400
        assert (await request("GET", url)).status == 401
