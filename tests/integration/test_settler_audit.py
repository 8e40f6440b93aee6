"""`emcd audit` fetches a round from a hub over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from emcd.accounting.audit import check_seal
from emcd.bundle_file import audit_file
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


async def test_audit_fetched_bundle_and_seal_are_what_the_hub_signed(
    world: SettlerWorld, tmp_path: Path
) -> None:
    closed = world.close_round(3)
    header = closed.bundle.header
    world.seal = hex_hash(sign(header.domain, closed.seal, secret_of("hub")))

    told: list[tuple[int, int]] = []
    source = await fetch_bundle(
        f"http://127.0.0.1:{world.port}", 3, tmp_path / "bundle", lambda *said: told.append(said)
    )

    assert source.path.read_bytes() == closed.data
    assert told[-1] == (len(closed.data), len(closed.data))
    assert audit_file(source.path).ok
    assert check_seal(header.domain, header.hub, 3, closed.bundle_hash, source.seal)


@pytest.mark.parametrize(("index", "seal"), [(4, ""), (3, "0xzz")])
async def test_audit_round_that_the_hub_does_not_give_is_refused(
    world: SettlerWorld, tmp_path: Path, index: int, seal: str
) -> None:
    world.close_round(3)
    world.seal = seal

    with pytest.raises(RecoverableError) as caught:
        await fetch_bundle(f"http://127.0.0.1:{world.port}", index, tmp_path / "bundle")

    assert caught.value.code == "EMC-1940"
