"""What weighs: through a whole round, credits that were bought, and not those that were granted."""

from __future__ import annotations

from pathlib import Path

from emcd_hub.billing.queries import find_imbalance
from emcd_hub.billing.statement import read_statement
from tests.integration.test_hub_rounds import buy, network, result_of


async def test_grants_weigh_nothing_and_purchases_stand_in_the_bundle(tmp_path: Path) -> None:
    """One node works for bought credits, the other for a grant: the same work, one reward."""
    async with network(tmp_path, granted_micro=0) as net:
        bought, granted = net.nodes
        index = net.now_round() + 1
        await net.until_round(index)
        await net.wait_view(index)
        await buy(net, 10**9)
        await net.call(provider={"only": [bought.key.address]})
        paid_micro = 10**9 - (await net.world.balances())[1]
        await net.world.plane.office.grant(net.world.account_id, 10**9, "g", "")
        await net.call(provider={"only": [granted.key.address]})
        _, bundle = await net.wait_closed(index)

        assert [entry.credits_micro for entry in bundle.deposits] == [10**9]
        assert result_of(bundle, bought.key.address).credits_micro == paid_micro > 0
        assert result_of(bundle, granted.key.address).credits_micro == 0
        assert int.from_bytes(result_of(bundle, bought.key.address).reward_wei, "big") > 0
        assert int.from_bytes(result_of(bundle, granted.key.address).reward_wei, "big") == 0
        assert sum(call.delivery.vault_micro for call in bundle.calls) == paid_micro
        made = await net.world.ledger.read(
            lambda con: read_statement(con, net.world.account_id, net.params, 0, net.now_round())
        )
        assert made is not None
        assert (made.used.vault_micro, made.used.granted_micro) == (paid_micro, paid_micro)
        assert await net.world.ledger.read(find_imbalance) is None
