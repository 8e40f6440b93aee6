"""EMCToken: 900 million at genesis, 100 million by the minter, never more."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from emcd.types import ZERO_ADDRESS
from tests.support.contract_network import GENESIS_S, TOKEN, Network, actor, stranger
from tests.support.evm import CHAIN_ID, Evm, refused


@pytest.fixture
def evm() -> Evm:
    return Evm(GENESIS_S)


def deploy(evm: Evm, minter: str, holders: list[str], amounts_wei: list[int]) -> object:
    return evm.deploy(actor("deployer").address, "EMCToken", minter, holders, amounts_wei)


def test_token_genesis_amounts_of_900_million_are_credited(evm: Evm) -> None:
    one, two = stranger("one"), stranger("two")
    token = evm.deploy(
        actor("deployer").address,
        "EMCToken",
        stranger(),
        [one, two],
        [300_000_000 * TOKEN, 600_000_000 * TOKEN],
    )
    assert token.view("balanceOf", one) == 300_000_000 * TOKEN
    assert token.view("balanceOf", two) == 600_000_000 * TOKEN
    assert token.view("totalSupply") == 900_000_000 * TOKEN


@pytest.mark.parametrize("sum_wei", [0, 900_000_000 * TOKEN - 1, 900_000_000 * TOKEN + 1, 10**9 * TOKEN])
def test_token_genesis_amounts_of_another_sum_are_refused(evm: Evm, sum_wei: int) -> None:
    with refused("GenesisSum"):
        deploy(evm, stranger(), [stranger("one")], [sum_wei])


def test_token_without_minter_or_with_uneven_lists_is_refused(evm: Evm) -> None:
    with refused("ZeroMinter"):
        deploy(evm, ZERO_ADDRESS, [stranger()], [900_000_000 * TOKEN])
    with refused("LengthMismatch"):
        deploy(evm, stranger(), [stranger()], [900_000_000 * TOKEN, 0])


def test_token_mint_by_anyone_but_the_minter_is_refused(network: Network) -> None:
    for caller in (network.holder.address, network.guardian.address, actor("deployer").address):
        with refused("NotMinter"):
            network.token.send(caller, "mint", caller, 1)


def test_token_minter_stops_at_100_million_even_after_burns(evm: Evm) -> None:
    minter, holder = stranger("minter"), stranger("holder")
    token = evm.deploy(actor("deployer").address, "EMCToken", minter, [holder], [900_000_000 * TOKEN])
    token.send(minter, "mint", holder, 100_000_000 * TOKEN)
    assert token.view("totalSupply") == 10**9 * TOKEN
    token.send(holder, "burn", 500_000_000 * TOKEN)
    with refused("MintBound"):
        token.send(minter, "mint", holder, 1)


def test_token_permit_signed_by_eth_account_gives_the_allowance_once(network: Network) -> None:
    owner, spender = network.holder, stranger("spender")
    message = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Permit": [
                {"name": "owner", "type": "address"},
                {"name": "spender", "type": "address"},
                {"name": "value", "type": "uint256"},
                {"name": "nonce", "type": "uint256"},
                {"name": "deadline", "type": "uint256"},
            ],
        },
        "primaryType": "Permit",
        "domain": {
            "name": "emcd",
            "version": "1",
            "chainId": CHAIN_ID,
            "verifyingContract": network.token.address,
        },
        "message": {
            "owner": owner.address,
            "spender": spender,
            "value": 7,
            "nonce": 0,
            "deadline": GENESIS_S,
        },
    }
    signed = Account.sign_message(encode_typed_data(full_message=message), owner.key)
    arguments = (owner.address, spender, 7, GENESIS_S, signed.v, signed.r.to_bytes(32), signed.s.to_bytes(32))
    network.token.send(stranger(), "permit", *arguments)
    assert network.token.view("allowance", owner.address, spender) == 7
    with refused("ERC2612InvalidSigner"):
        network.token.send(stranger(), "permit", *arguments)
