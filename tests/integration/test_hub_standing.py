"""What the public API tells of verification, and that a delisted model is sold by nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from emcd.accounting.suspension import Conduct
from emcd.inference.manifest import Calibration, EmbeddingManifest, EngineManifest, canonical_json, model_hash
from emcd.net.http_client import request
from emcd.proto.params import ModelStanding
from emcd_hub.api.verification import show_conduct
from emcd_hub.nodes.suspension import NodeVerdicts
from tests.support.evidence_node import TEXT_MANIFEST, answer_with_evidence
from tests.support.hub_world import MODEL, HubWorld, StubNode, make_deployment, node_key, post, running_world

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
HASH = f"0x{model_hash(TEXT_MANIFEST).hex()}"


def text_node(number: int = 0, **fields: Any) -> StubNode:
    return StubNode(
        node_key(number), **{"manifests": (TEXT_MANIFEST,), "answer": answer_with_evidence, **fields}
    )


def standing(word: ModelStanding) -> Any:
    return make_deployment(models=((HASH, int(word)),))


async def get(world: HubWorld, path: str) -> Any:
    return (await request("GET", world.url + path)).json()


async def test_models_tell_how_they_are_verified(tmp_path: Path) -> None:
    embedder = EmbeddingManifest(
        name="vectors", files={"model.onnx": "ab" * 32, "tokenizer.json": "cd" * 32}, graph="onnx",
        dimension=3, max_tokens=9, calibration=Calibration(answers=2000, machines=3),
    )  # fmt: skip
    manifests = (TEXT_MANIFEST, embedder, EngineManifest(name="engine"))
    async with running_world(tmp_path, deployment=standing(ModelStanding.ENFORCED)) as world:
        await world.add_node(text_node(manifests=manifests))
        rows = {
            row["name"]: row["manifests"][0]["verification"]
            for row in (await get(world, "/api/models"))["models"]
        }
        assert rows["engine"] == {
            "verifiable": False, "standing": "unverified", "meaning": "only the name is promised",
        }  # fmt: skip
        assert rows["vectors"]["standing"] == "shadow"
        assert rows["vectors"]["kind"] == "embedding"
        assert rows["vectors"]["thresholds"] == {"relative_l2_e12": "100000000"}
        assert rows["vectors"]["calibration"] == {"answers": 2000, "machines": 3}
        text = rows[MODEL]
        assert (text["standing"], text["kind"], text["sampler"]) == ("enforced", "text", "emcd-gumbel-v1")
        assert (text["engine"], text["numeric_class"], text["calibration"]) == ("emcd-onnx", "fp32", None)
        assert text["challenges"] == ["gen.seeded", "gen.greedy", "first"]
        assert text["thresholds"]["d_e12"] == str(TEXT_MANIFEST.thresholds.d_e12)


async def test_a_manifest_is_served_by_its_hash_in_the_bytes_that_it_is_the_hash_of(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(text_node())
        found = await request("GET", f"{world.url}/api/models/{HASH}")
        assert (found.status, found.body) == (200, canonical_json(TEXT_MANIFEST))
        for path, status in (
            (f"/api/models/0x{'0' * 64}", 404),
            ("/api/models/x", 400),
            ("/api/nodes/x/counts", 400),
        ):
            answer = await request("GET", world.url + path)
            assert (answer.status, answer.json()["error"]["emc_code"][:6]) == (status, "EMC-17")


async def test_a_delisted_model_is_refused_and_shown_and_its_node_is_told_once(tmp_path: Path) -> None:
    other = EngineManifest(name="other")
    async with running_world(tmp_path, deployment=standing(ModelStanding.DELISTED)) as world:
        node = await world.add_node(text_node(manifests=(TEXT_MANIFEST, other)))
        refused = await post(world, ASKED, CHAT)
        assert (refused.status, refused.json()["error"]["emc_code"]) == (404, "EMC-1794")
        assert refused.json()["error"]["code"] == "model_not_found"
        assert (await post(world, ASKED | {"model": "other"}, CHAT)).status == 200
        for _ in range(3):
            await node.send_status()
        await world.until(lambda: node.notices)
        await post(world, ASKED | {"model": "other"}, CHAT)
        assert [notice.code for notice in node.notices] == ["EMC-1794"]
        rows = {row["name"]: row for row in (await get(world, "/api/models"))["models"]}
        assert rows[MODEL]["manifests"][0]["verification"]["standing"] == "delisted"
        assert rows[MODEL]["manifests"][0]["nodes_online"] == 0
        assert [row["name"] for row in (await get(world, "/api/nodes"))["nodes"][0]["models"]] == ["other"]
        assert (await get(world, f"/api/models/{HASH}"))["name"] == MODEL


async def test_another_manifest_of_the_name_is_still_sold(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(TEXT_MANIFEST, context_tokens=256)
    async with running_world(tmp_path, deployment=standing(ModelStanding.DELISTED)) as world:
        await world.add_node(text_node(0, capacity=900))
        good = await world.add_node(text_node(1, manifests=(newer,)))
        for _ in range(3):
            answer = await post(world, ASKED, CHAT)
            assert (answer.status, answer.headers["x-emc-node"]) == (200, good.key.address)


async def test_a_model_goes_and_comes_back_as_the_parameters_change(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.add_node(text_node())
        board = world.plane.board
        assert (await post(world, ASKED, CHAT)).status == 200
        board.delist(frozenset((bytes(model_hash(TEXT_MANIFEST)),)))
        assert board.list_names() == set()
        assert list(board.list_delisted()) == [MODEL]
        board.delist(frozenset())
        assert board.list_delisted() == {}
        assert (await post(world, ASKED, CHAT)).status == 200


def test_conduct_says_why_a_node_is_suspended() -> None:
    plain = show_conduct(None, None)
    assert (plain["round"], plain["verdicts"], plain["suspended_until_round"], plain["why"]) == (
        None,
        [],
        0,
        "",
    )
    shown = show_conduct(NodeVerdicts(7, ("PASS", "FAIL"), "suspended"), Conduct((5, 7), 1, 11, (6,)))
    assert (shown["round"], shown["verdicts"], shown["reason"]) == (7, ["PASS", "FAIL"], "suspended")
    assert (shown["strike_rounds"], shown["class_strike_rounds"], shown["suspended_until_round"]) == (
        [5, 7],
        [6],
        11,
    )
    assert shown["why"] == "convicted by the validators for its answers in rounds 5, 6, 7"
