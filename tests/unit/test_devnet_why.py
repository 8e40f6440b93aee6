"""Why a node was convicted: words and numbers from a validator's evidence, and nothing from nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from emcd.errors import RecoverableError
from emcd.net.http_client import Response
from emcd_devchain.devnet import why as why_module
from emcd_devchain.devnet.layout import DevnetLayout, read_layout
from emcd_devchain.devnet.why import fetch_reasons, tell_own

NODE, PROBER = "0x" + "A" * 40, "0x" + "B" * 40
NAMES = {NODE: "node-4", PROBER: "validator-2"}


def own(kind: str, values: dict[str, int], taus: dict[str, int]) -> dict[str, Any]:
    return {"verdict": "GROSS", "numbers": {"kind": kind, "values": values, "taus": taus}}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            own("embed", {"l2": 430_000_000_000}, {"l2": 100_000_000}),
            "asked for vectors: the vectors are off by 0.43 (relative L2), 1.0e-04 is allowed",
        ),
        (
            own(
                "gen.seeded",
                {"d": 5, "m": 2_500_000_000_000, "w": 5_000_000_000_000},
                {"d": 200_000_000, "m": 100_000_000, "w": 400_000_000},
            ),
            ("asked for text drawn with a seed: its tokens fall short of those that the seed draws by 2.5, 1.0e-04 "
            "is allowed; 16 tokens in a row fall short by 5, 4.0e-04 is allowed"),
        ),
        (
            own("gen.greedy", {"count": 12_000_000_000_000}, {"count": 10**12}),
            "asked for text at temperature 0: it wants to be paid for 12 times the tokens that it delivered",
        ),
        (own("later kind", {"d": 10**9}, {"d": 1}), ("asked: the log-probabilities it reports are off by 1.0e-03"
         " a token, 1.0e-12 is allowed")),
    ],
)  # fmt: skip
def test_tell_own_says_what_is_above_its_threshold(said: object, words: str) -> None:
    assert tell_own(said) == words


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"numbers": None},
        {"numbers": {"kind": "embed"}},
        {"numbers": {"kind": "embed", "values": [], "taus": {}}},
        own("embed", {"l2": 5}, {"l2": 5}),
        own("embed", {"l2": 5}, {}),
        {"numbers": {"kind": "embed", "values": {"l2": "9"}, "taus": {"l2": 1}}},
    ],
)
def test_tell_own_of_no_numbers_says_nothing(said: object) -> None:
    assert tell_own(said) == ""


def detail(**fields: Any) -> dict[str, Any]:
    strike = {"validator": PROBER, "verdict": "GROSS", "statistic_e12": "7", "call_id": "emc-1"}
    return {"participants": [{"node": NODE, "reason": "verdict", "verdicts": [strike], **fields}]}


@pytest.fixture
def layout(tmp_path: Path) -> DevnetLayout:
    return read_layout({"EMCD_DEVNET_DIR": str(tmp_path)})


async def test_fetch_reasons_asks_the_prober_itself(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def request(method: str, url: str, **_: Any) -> Response:
        asked.append(url)
        page = {"own": own("embed", {"l2": 10**11}, {"l2": 10**8})}
        return Response(200, {}, msgspec.json.encode(page), url)

    monkeypatch.setattr(why_module, "request", request)
    found = await fetch_reasons(layout, detail(), NAMES)

    assert asked == [f"http://127.0.0.1:{layout.validator_ports[1]}/evidence/emc-1"]
    assert found == {
        NODE: "validator-2 asked for vectors: the vectors are off by 0.1 (relative L2), 1.0e-04 is allowed"
        " (`emcd verdict show emc-1`)"
    }


@pytest.mark.parametrize("status", [0, 404, 200])
async def test_fetch_reasons_of_evidence_that_can_not_be_had_is_empty(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def request(method: str, url: str, **_: Any) -> Response:
        if status == 0:
            raise RecoverableError("EMC-1301", "no connection")
        return Response(status, {}, b"[]", url)

    monkeypatch.setattr(why_module, "request", request)
    assert await fetch_reasons(layout, detail(), NAMES) == {}


@pytest.mark.parametrize("fields", [{"reason": "offline"}, {"reason": ""}, {"verdicts": []}])
async def test_fetch_reasons_asks_nobody_about_the_unconvicted(
    layout: DevnetLayout, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    async def request(*_: Any, **__: Any) -> Response:
        raise AssertionError("asked")

    monkeypatch.setattr(why_module, "request", request)
    assert await fetch_reasons(layout, detail(**fields), NAMES) == {}
    assert await fetch_reasons(layout, detail(), {NODE: "node-4"}) == {}
