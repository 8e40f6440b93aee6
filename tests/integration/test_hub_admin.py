"""The admin listener and the commands that use it: scopes, accounts, keys, grants, statements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emcd.net.http_client import request
from emcd.proto.openai import ENDPOINTS
from emcd_hub.api.openapi import OPENAPI
from emcd_hub.billing.queries import find_imbalance
from emcd_hub.cli import api_key as api_key_command
from emcd_hub.cli import credits as credits_command
from tests.support.hub_admin import admin, run_command
from tests.support.hub_rounds import StubChain
from tests.support.hub_world import (
    ADMIN_TOKEN,
    DEPLOYMENT,
    MODEL,
    READ_TOKEN,
    StubNode,
    node_key,
    running_world,
)


async def test_account_key_and_grant_make_a_user(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(StubNode(node_key(0)))
        account = (await admin(world, "POST", "/admin/accounts", {"name": "ada"})).json()
        again = (await admin(world, "POST", "/admin/accounts", {"name": "ada"})).json()
        assert account == again
        assert account["account_id"].startswith("acct_")
        made = await admin(
            world, "POST", "/admin/api-keys", {"account_id": account["account_id"], "label": "x"}
        )
        assert made.status == 201
        call = {"model": MODEL, "input": "hi"}
        headers = {"authorization": f"Bearer {made.json()['api_key']}"}
        poor = await request("POST", world.url + "/v1/embeddings", json=call, headers=headers)
        assert poor.status == 429
        grant = {
            "account_id": account["account_id"],
            "credits_micro": "2000000",
            "key": "k1",
            "note": "start",
        }
        granted = (await admin(world, "POST", "/admin/credits", grant)).json()
        assert (granted["granted_micro"], granted["repeated"]) == ("2000000", False)
        assert (await admin(world, "POST", "/admin/credits", grant)).json()["repeated"] is True
        conflict = await admin(world, "POST", "/admin/credits", {**grant, "credits_micro": "1"})
        assert conflict.status == 409
        assert (await request("POST", world.url + "/v1/embeddings", json=call, headers=headers)).status == 200
        shown = (await admin(world, "GET", f"/admin/accounts/{account['account_id']}")).json()
        assert shown["granted_micro"] == "1950000"
        assert [row["kind"] for row in shown["movements"]] == ["grant"]
        assert shown["usage"][0]["calls"] == 1
        assert await world.ledger.read(find_imbalance) is None
        keys = (await admin(world, "GET", "/admin/api-keys")).json()["api_keys"]
        assert made.json()["api_key"] not in json.dumps(keys)
        revoked = await admin(world, "DELETE", f"/admin/api-keys/{made.json()['key_id']}")
        assert revoked.status == 200
        assert (await request("POST", world.url + "/v1/embeddings", json=call, headers=headers)).status == 401


async def test_scopes_hold_and_wrong_tokens_are_limited(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        assert (await admin(world, "GET", "/admin/accounts", token=READ_TOKEN)).status == 200
        for method, path in (
            ("POST", "/admin/accounts"),
            ("POST", "/admin/api-keys"),
            ("DELETE", "/admin/api-keys/key_1"),
            ("POST", "/admin/credits"),
        ):
            assert (await admin(world, method, path, {}, token=READ_TOKEN)).status == 403
        statuses = [(await admin(world, "GET", "/admin/accounts", token="wrong")).status for _ in range(14)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        assert (await request("GET", world.admin_url + "/admin/accounts")).status == 429
        assert (await admin(world, "GET", "/admin/accounts")).status == 200
        user = await request(
            "GET", world.admin_url + "/admin/accounts", headers={"authorization": f"Bearer {world.api_key}"}
        )
        assert user.status in (401, 429)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/accounts", {"name": ""}, 400),
        ("/admin/accounts", {"name": "x\n"}, 400),
        ("/admin/accounts", {"nam": "x"}, 400),
        ("/admin/api-keys", {}, 400),
        ("/admin/api-keys", {"account_id": "acct_none"}, 404),
        ("/admin/api-keys", {"account_id": "a", "account_name": "b"}, 400),
        ("/admin/credits", {"account_id": "acct_none", "credits_micro": "5", "key": "k"}, 404),
        ("/admin/credits", {"account_id": "a", "credits_micro": "-5", "key": "k"}, 400),
        ("/admin/credits", {"account_id": "a", "credits_micro": "0", "key": "k"}, 400),
        ("/admin/credits", {"account_id": "a", "credits_micro": "9" * 30, "key": "k"}, 400),
        ("/admin/credits", {"account_id": "a", "credits_micro": 5, "key": "k"}, 400),
        ("/admin/credits", {"account_id": "a", "credits_micro": "5", "key": ""}, 400),
    ],
)
async def test_wrong_admin_requests_are_refused(tmp_path: Path, path: str, body: Any, status: int) -> None:
    async with running_world(tmp_path) as world:
        answer = await admin(world, "POST", path, body)
        assert answer.status == status
        assert answer.json()["error"]["emc_code"].startswith("EMC-17")


async def test_commands_do_what_the_listener_does(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        token_file = tmp_path / "devnet.json"
        token_file.write_text(json.dumps({"admin_token": ADMIN_TOKEN}))
        common = ("--url", world.admin_url, "--token-file", str(token_file))
        made = await run_command(api_key_command, "create", "grace", "--label", "l", *common, "--json")
        assert made.exit_code == 0, made.output
        key = json.loads(made.output)
        assert key["api_key"].startswith("emc_sk_")
        granted = await run_command(credits_command, "grant", "grace", "2.5", "--key", "k", *common)
        assert "2.50 credits granted" in granted.output
        repeated = await run_command(credits_command, "grant", "grace", "2.5", "--key", "k", *common)
        assert "was granted before; 2.50" in repeated.output
        shown = await run_command(credits_command, "show", key["account_id"], *common)
        assert "vault account 0x" in shown.output
        listed = await run_command(api_key_command, "list", *common)
        assert key["key_id"] in listed.output
        assert key["api_key"] not in listed.output
        revoked = await run_command(api_key_command, "revoke", key["key_id"], *common)
        assert revoked.exit_code == 0
        again = await run_command(
            api_key_command, "list", "--url", world.admin_url, EMCD_ADMIN_TOKEN=READ_TOKEN
        )
        assert "revoked" in again.output


async def test_commands_fail_with_their_codes(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        url = ("--url", world.admin_url)
        none = await run_command(api_key_command, "list", *url, EMCD_ADMIN_TOKEN="")
        assert getattr(none.exception, "code", "") == "EMC-1771"
        wrong = await run_command(api_key_command, "list", *url, EMCD_ADMIN_TOKEN="x")
        assert getattr(wrong.exception, "code", "") == "EMC-1770"
        nobody = await run_command(credits_command, "show", "nobody", *url, EMCD_ADMIN_TOKEN=ADMIN_TOKEN)
        assert getattr(nobody.exception, "code", "") == "EMC-1742"


async def test_service_pages_answer(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = await world.add_node(StubNode(node_key(0)))
        nodes = (await request("GET", world.url + "/api/nodes")).json()["nodes"]
        assert [(entry["address"], entry["online"]) for entry in nodes] == [(node.key.address, True)]
        assert nodes[0]["models"][0]["name"] == MODEL
        assert (await request("GET", world.url + "/healthz")).status == 200
        assert (await request("GET", world.url + "/readyz")).json()["ready"] is True
        metrics = await request("GET", world.url + "/metrics", max_bytes=1 << 22)
        assert b"emcd_hub_calls_in_flight" in metrics.body
        assert (await request("GET", world.url + "/v1/models")).status == 401


async def test_openapi_names_exactly_the_routes_there_are(tmp_path: Path) -> None:
    """Every documented operation is served, and every served path is documented."""
    async with running_world(tmp_path, chain=StubChain(DEPLOYMENT)) as world:
        served = (await request("GET", world.url + "/openapi.json", max_bytes=1 << 22)).json()
        assert served == OPENAPI
        pages = world.role.public_routes
        documented = {
            (path.replace("{model}", "{model:path}"), method.upper())
            for path, operations in OPENAPI["paths"].items()
            for method in operations
        }
        hot = {(path, "POST") for path in ENDPOINTS}
        routed = {(route.path, method) for route in pages for method in (route.methods or set()) - {"HEAD"}}
        assert documented == hot | routed
