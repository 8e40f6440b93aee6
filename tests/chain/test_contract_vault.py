"""CreditVault: token burnt, credits recorded, rounding down."""

from __future__ import annotations

import pytest

from emcd.proto.hashing import keccak
from emcd.types import ZERO_ADDRESS
from tests.support.contract_network import TOKEN, Network, actor, stranger
from tests.support.evm import Contract, refused

ACCOUNT = keccak(b"account at a hub")
BUYER = actor("buyer").address


def vault_of(
    network: Network, micro: int = 1_000_000, treasury: str = ZERO_ADDRESS, treasury_bps: int = 0
) -> Contract:
    deployer = stranger("vault deployer")
    return network.evm.deploy(deployer, "CreditVault", network.token.address, micro, treasury, treasury_bps)


def test_buy_burns_the_token_and_records_the_credits(network: Network) -> None:
    supply_wei = network.token.view("totalSupply")
    network.fund(BUYER, 3 * TOKEN, network.vault)
    outcome = network.vault.send(BUYER, "buy", ACCOUNT, 3 * TOKEN)
    assert outcome.result == 0
    assert outcome.event("CreditsBought") == {
        "account": ACCOUNT, "payer": BUYER, "amountWei": 3 * TOKEN, "creditsMicro": 3_000_000, "index": 0,
    }  # fmt: skip
    assert network.token.view("totalSupply") == supply_wei - 3 * TOKEN
    assert network.token.view("balanceOf", network.vault.address) == 0
    deposit = network.vault.view("deposits", 0)
    assert (deposit.account, deposit.payer, deposit.amountWei) == (ACCOUNT, BUYER, 3 * TOKEN)
    assert (deposit.creditsMicro, deposit.time) == (3_000_000, network.evm.now_s)


def test_buy_rounds_the_credits_down_and_refuses_none(network: Network) -> None:
    network.fund(BUYER, TOKEN, network.vault)
    micro_wei = TOKEN // 1_000_000
    with refused("ZeroCredits"):
        network.vault.send(BUYER, "buy", ACCOUNT, micro_wei - 1)
    with refused("ZeroCredits"):
        network.vault.send(BUYER, "buy", ACCOUNT, 0)
    outcome = network.vault.send(BUYER, "buy", ACCOUNT, 2 * micro_wei - 1)
    assert outcome.event("CreditsBought")["creditsMicro"] == 1


def test_buy_without_allowance_balance_or_account_is_refused(network: Network) -> None:
    with refused("ERC20InsufficientAllowance"):
        network.vault.send(BUYER, "buy", ACCOUNT, TOKEN)
    network.token.send(BUYER, "approve", network.vault.address, TOKEN)
    with refused("ERC20InsufficientBalance"):
        network.vault.send(BUYER, "buy", ACCOUNT, TOKEN)
    with refused("ZeroAccount"):
        network.vault.send(BUYER, "buy", bytes(32), TOKEN)
    with refused("BadAmount"):
        network.vault.send(BUYER, "buy", ACCOUNT, 2**96)
    assert network.vault.view("depositCount") == 0


@pytest.mark.parametrize("treasury_bps", [1, 2_500, 10_000])
def test_buy_with_a_treasury_sends_it_its_share_and_burns_the_rest(
    network: Network, treasury_bps: int
) -> None:
    treasury = stranger("treasury")
    vault = vault_of(network, treasury=treasury, treasury_bps=treasury_bps)
    supply_wei, amount_wei = network.token.view("totalSupply"), TOKEN + 9_999
    network.fund(BUYER, amount_wei, vault)
    vault.send(BUYER, "buy", ACCOUNT, amount_wei)
    share_wei = amount_wei * treasury_bps // 10_000
    assert network.token.view("balanceOf", treasury) == share_wei
    assert network.token.view("totalSupply") == supply_wei - amount_wei + share_wei


def test_deposit_pages_list_every_deposit_once(network: Network) -> None:
    network.fund(BUYER, 10 * TOKEN, network.vault)
    for index in range(5):
        assert network.vault.send(BUYER, "buy", ACCOUNT, (index + 1) * TOKEN // 2).result == index
    pages = [network.vault.view("depositPage", offset, 2) for offset in (0, 2, 4, 6)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert [found.amountWei for page in pages for found in page] == [(i + 1) * TOKEN // 2 for i in range(5)]


@pytest.mark.parametrize(
    ("micro", "treasury", "treasury_bps"),
    [
        (0, ZERO_ADDRESS, 0),
        (10**24 + 1, ZERO_ADDRESS, 0),
        (1, ZERO_ADDRESS, 1),
        (1, stranger(), 0),
        (1, stranger(), 10_001),
    ],
)
def test_vault_with_an_unsound_configuration_is_not_deployed(
    network: Network, micro: int, treasury: str, treasury_bps: int
) -> None:
    with refused("BadConfig"):
        vault_of(network, micro, treasury, treasury_bps)
