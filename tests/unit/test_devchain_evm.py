"""The chain itself: mining, state, calls, estimates; in one thread, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from eth.vm.forks.cancun.blocks import CancunBlockHeader

from emcd.proto.address import address_from_bytes
from emcd_devchain.evm import FEE_RECIPIENT, CallRequest, EvmChain
from emcd_devchain.fault import EXECUTION_REVERTED, PoolRefused, RpcFault
from emcd_devchain.store import ChainStore
from emcd_devchain.vm import INITIAL_BASE_FEE_WEI, DevVM, decode_header
from tests.support.devchain import (
    CHAIN_ID,
    ETHER,
    GENESIS_S,
    GWEI,
    POOR,
    RETURNS_42,
    RICH,
    creation,
    make_chain,
    raw,
    sign_raw,
)

REVERTS = bytes.fromhex("63deadbeef6000526004601cfd")
BLOCKHASH_OF_PARENT = bytes.fromhex("60014303405f5260205ff3")
TIME_AND_RANDAO = bytes.fromhex("425f5244602052604 05ff3".replace(" ", ""))
STORES_CALLVALUE = bytes.fromhex("345f555f545f5260205ff3")
NEEDS_GAS = bytes.fromhex("5a620f424010600c575f80fd5b00")
"""Reverts unless GAS > 1,000,000: an estimate by gas used alone is too low."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[EvmChain]:
    made = make_chain(tmp_path / "chain.sqlite")
    yield made
    made.store.close()


def deploy(chain: EvmChain, runtime: bytes) -> bytes:
    nonce = chain.state_at(chain.head).get_nonce(raw(RICH))
    tx_hash = chain.send_raw(sign_raw(to=None, data=creation(runtime), gas=200_000, nonce=nonce))
    chain.mine(0)
    found = chain.store.find_tx(tx_hash)
    assert found is not None
    assert found.status == 1
    assert found.contract is not None
    return found.contract


def test_mine_empty_block_moves_time_and_keeps_the_state(chain: EvmChain) -> None:
    genesis = chain.head
    header = chain.mine(GENESIS_S + 60)
    assert (header.block_number, header.timestamp, header.parent_hash) == (1, GENESIS_S + 60, genesis.hash)
    assert header.state_root == genesis.state_root


def test_mine_timestamps_grow_even_when_the_clock_does_not(chain: EvmChain) -> None:
    assert [chain.mine(0).timestamp - GENESIS_S for _ in range(3)] == [1, 2, 3]


def test_mine_transfer_moves_value_burns_the_base_fee_and_pays_the_tip(chain: EvmChain) -> None:
    base_fee = chain.next_header(0).base_fee_per_gas
    chain.send_raw(sign_raw(value=ETHER))
    header = chain.mine(0)
    state = chain.state_at(header)
    assert header.gas_used == 21_000
    assert state.get_balance(raw(POOR)) == ETHER
    assert state.get_balance(FEE_RECIPIENT) == 21_000 * GWEI
    assert state.get_balance(raw(RICH)) == 999 * ETHER - 21_000 * (base_fee + GWEI)


def test_mine_header_hashes_like_a_cancun_block_and_passes_its_rules(chain: EvmChain) -> None:
    chain.send_raw(sign_raw(value=1))
    parent = chain.head
    chain.mine(0)
    row = chain.store.find_head()
    assert row is not None
    header = decode_header(row.header)
    assert isinstance(header, CancunBlockHeader)
    assert header.hash == row.hash
    DevVM.validate_header(header, parent)


def test_base_fee_falls_in_empty_blocks_by_eip_1559(chain: EvmChain) -> None:
    assert chain.head.base_fee_per_gas == INITIAL_BASE_FEE_WEI
    assert chain.mine(0).base_fee_per_gas == INITIAL_BASE_FEE_WEI * 7 // 8


def test_mine_nonce_gap_waits_until_it_is_filled(chain: EvmChain) -> None:
    chain.send_raw(sign_raw(nonce=1))
    assert chain.mine(0).gas_used == 0
    chain.send_raw(sign_raw(nonce=0))
    assert chain.mine(0).gas_used == 42_000


def test_mine_failed_transaction_costs_gas_and_changes_nothing_else(chain: EvmChain) -> None:
    contract = deploy(chain, REVERTS)
    tx_hash = chain.send_raw(sign_raw(to=address_from_bytes(contract), value=5, gas=50_000, nonce=1))
    chain.mine(0)
    mined = chain.store.find_tx(tx_hash)
    assert mined is not None
    assert mined.status == 0
    assert chain.state_at(chain.head).get_balance(contract) == 0  # type: ignore[arg-type]


def test_mine_one_that_can_no_longer_pay_does_not_stop_the_others(tmp_path: Path) -> None:
    chain = make_chain(tmp_path / "chain.sqlite", second=ETHER, third=ETHER)
    from emcd.testing import make_key

    second, third = make_key("second"), make_key("third")
    spend = ETHER - 21_000 * 3 * GWEI
    chain.send_raw(sign_raw(second, value=spend))
    chain.send_raw(sign_raw(second, nonce=1, value=spend))
    ok = chain.send_raw(sign_raw(third))
    header = chain.mine(0)
    assert header.gas_used == 42_000
    assert chain.store.find_tx(ok) is not None
    chain.store.close()


def test_call_reads_any_past_state(chain: EvmChain) -> None:
    contract = deploy(chain, STORES_CALLVALUE)
    heads = []
    for nonce, value in enumerate((7, 9), start=1):
        chain.send_raw(sign_raw(to=address_from_bytes(contract), value=value, gas=60_000, nonce=nonce))
        heads.append(chain.mine(0))
    slots = [chain.state_at(h).get_storage(contract, 0) for h in heads]  # type: ignore[arg-type]
    assert slots == [7, 9]


def test_call_sees_block_context_and_block_hashes(chain: EvmChain) -> None:
    hashes = deploy(chain, BLOCKHASH_OF_PARENT)
    times = deploy(chain, TIME_AND_RANDAO)
    chain.mine(GENESIS_S + 500)
    assert chain.call(CallRequest(hashes), chain.head) == chain.head.parent_hash  # type: ignore[arg-type]
    answer = chain.call(CallRequest(times), chain.head)  # type: ignore[arg-type]
    assert int.from_bytes(answer[:32], "big") == GENESIS_S + 500
    assert answer[32:64] == chain.head.mix_hash


def test_call_revert_carries_its_data(chain: EvmChain) -> None:
    contract = deploy(chain, REVERTS)
    with pytest.raises(RpcFault) as caught:
        chain.call(CallRequest(contract), chain.head)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.data) == (EXECUTION_REVERTED, "0xdeadbeef")


def test_call_keeps_nothing(chain: EvmChain) -> None:
    contract = deploy(chain, STORES_CALLVALUE)
    request = CallRequest(contract, sender=raw(RICH), value_wei=5)  # type: ignore[arg-type]
    assert int.from_bytes(chain.call(request, chain.head), "big") == 5
    assert chain.state_at(chain.head).get_storage(contract, 0) == 0  # type: ignore[arg-type]


def test_call_asked_again_runs_once_a_block(chain: EvmChain, monkeypatch: pytest.MonkeyPatch) -> None:
    times = deploy(chain, TIME_AND_RANDAO)
    runs = 0
    execute = chain.execute

    def counted(*args: object) -> object:
        nonlocal runs
        runs += 1
        return execute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(chain, "execute", counted)
    first = chain.call(CallRequest(times), chain.head)  # type: ignore[arg-type]
    assert chain.call(CallRequest(times), chain.head) == first  # type: ignore[arg-type]
    assert runs == 1
    chain.mine(0)
    assert chain.call(CallRequest(times), chain.head) != first  # type: ignore[arg-type]
    for gas in range(100_000, 100_300):
        chain.call(CallRequest(times, gas=gas), chain.head)  # type: ignore[arg-type]
    assert len(chain._answers) <= 256


def test_call_creation_returns_the_code(chain: EvmChain) -> None:
    assert chain.call(CallRequest(None, creation(RETURNS_42)), chain.head) == RETURNS_42


def test_call_value_without_money_is_a_fault(chain: EvmChain) -> None:
    with pytest.raises(RpcFault, match="insufficient funds"):
        chain.call(CallRequest(raw(RICH), value_wei=1, sender=raw(POOR)), chain.head)


def test_estimate_gas_is_enough_and_close(chain: EvmChain) -> None:
    contract = deploy(chain, STORES_CALLVALUE)
    request = CallRequest(contract, sender=raw(RICH), value_wei=5)  # type: ignore[arg-type]
    estimate = chain.estimate_gas(request, chain.head)
    used = 21_000 + 22_100
    assert used <= estimate <= used * 1.12
    tx_hash = chain.send_raw(sign_raw(to=address_from_bytes(contract), value=5, gas=estimate, nonce=1))
    chain.mine(0)
    mined = chain.store.find_tx(tx_hash)
    assert mined is not None
    assert mined.status == 1


def test_estimate_gas_transfer_is_exact(chain: EvmChain) -> None:
    assert chain.estimate_gas(CallRequest(raw(POOR), sender=raw(RICH), value_wei=1), chain.head) == 21_000


def test_estimate_gas_finds_what_used_gas_does_not_show(chain: EvmChain) -> None:
    contract = deploy(chain, NEEDS_GAS)
    request = CallRequest(contract)  # type: ignore[arg-type]
    assert 1_021_000 <= chain.estimate_gas(request, chain.head) <= 1_040_000


def test_estimate_gas_of_a_revert_is_the_revert(chain: EvmChain) -> None:
    contract = deploy(chain, REVERTS)
    with pytest.raises(RpcFault) as caught:
        chain.estimate_gas(CallRequest(contract), chain.head)  # type: ignore[arg-type]
    assert caught.value.code == EXECUTION_REVERTED


def test_send_raw_known_or_mined_is_refused(chain: EvmChain) -> None:
    signed = sign_raw()
    chain.send_raw(signed)
    for _ in range(2):
        with pytest.raises(PoolRefused, match="already known"):
            chain.send_raw(signed)
        chain.mine(0)


def test_reopen_goes_on_with_head_state_and_pool(tmp_path: Path) -> None:
    file = tmp_path / "chain.sqlite"
    chain = make_chain(file)
    chain.send_raw(sign_raw(value=7))
    head = chain.mine(0)
    waiting = chain.send_raw(sign_raw(nonce=1))
    chain.store.close()
    again = EvmChain(ChainStore(file, CHAIN_ID), CHAIN_ID)
    assert again.head == head
    assert again.state_at(again.head).get_balance(raw(POOR)) == 7
    assert again.pool.find(waiting) is not None
    again.mine(0)
    assert again.store.find_tx(waiting) is not None
    again.store.close()


def test_create_genesis_twice_is_refused(chain: EvmChain) -> None:
    with pytest.raises(ValueError, match="genesis"):
        chain.create_genesis(0, {})
