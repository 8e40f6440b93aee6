"""`emcd audit` fetches a round from a hub over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from emcd.accounting.audit import audit_bundle, check_seal
from emcd.cli.audit import fetch_bundle
from emcd.errors import RecoverableError
from emcd.proto.address import hex_hash
from emcd.proto.signing import sign
from tests.support.round_world import secret_of
from tests.support.settler_world import Prepared, SettlerWorld, prepare, settler_world


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("chain")
    return trio.run(prepare, folder)


@pytest.fixture
async def world(prepared: Prepared, tmp_path: Path) -> AsyncIterator[SettlerWorld]:
    async with settler_world(prepared, tmp_path) as made:
        yield made


async def test_audit_fetched_bundle_and_seal_are_what_the_hub_signed(world: SettlerWorld) -> None:
    closed = world.close_round(3)
    header = closed.bundle.header
    world.seal = hex_hash(sign(header.domain, closed.seal, secret_of("hub")))

    source = await fetch_bundle(f"http://127.0.0.1:{world.port}", 3)

    assert source.data == closed.data
    assert audit_bundle(source.data).ok
    assert check_seal(header.domain, header.hub, 3, closed.bundle_hash, source.seal)


@pytest.mark.parametrize(("index", "seal"), [(4, ""), (3, "0xzz")])
async def test_audit_round_that_the_hub_does_not_give_is_refused(
    world: SettlerWorld, index: int, seal: str
) -> None:
    world.close_round(3)
    world.seal = seal

    with pytest.raises(RecoverableError) as caught:
        await fetch_bundle(f"http://127.0.0.1:{world.port}", index)

    assert caught.value.code == "EMC-1940"
