"""The embedded chain against web3.py, an independent client, over a real socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from eth_account import Account
from web3 import Web3
from web3.exceptions import (
    BlockNotFound,
    ContractCustomError,
    ContractLogicError,
    TransactionNotFound,
    Web3RPCError,
)

from emcd.chain.contracts import load_artifact
from emcd.ledger import Ledger
from tests.support.devchain import CHAIN_ID, ETHER, GWEI, POOR, RICH, running_devchain

GENESIS_WEI = 900_000_000 * ETHER


@pytest.fixture
async def run(ledger: Ledger, tmp_path: Path) -> Any:
    """Run a function of a Web3 in a thread, beside the role."""
    async with running_devchain(ledger, tmp_path) as url:
        web3 = Web3(Web3.HTTPProvider(url, request_kwargs={"timeout": 10}))

        async def in_thread(function: Callable[[Web3], Any]) -> Any:
            return await trio.to_thread.run_sync(function, web3)

        yield in_thread


def send(web3: Web3, fields: dict[str, Any]) -> Any:
    """Fill in, sign, send and wait, as any wallet does."""
    account = Account.from_key(RICH.reveal())
    fields = {
        "from": account.address,
        "nonce": web3.eth.get_transaction_count(account.address, "pending"),
        "chainId": CHAIN_ID,
        **fields,
    }
    if "gas" not in fields:
        fields["gas"] = web3.eth.estimate_gas(fields)  # type: ignore[arg-type]
    if "gasPrice" not in fields:
        tip = web3.eth.max_priority_fee
        base = web3.eth.get_block("latest")["baseFeePerGas"]
        fields |= {"maxPriorityFeePerGas": tip, "maxFeePerGas": 2 * base + tip}
    signed = account.sign_transaction({k: v for k, v in fields.items() if k != "from"})
    return web3.eth.wait_for_transaction_receipt(
        web3.eth.send_raw_transaction(signed.raw_transaction), 15, 0.1
    )


def deploy_token(web3: Web3) -> Any:
    artifact = load_artifact("EMCToken")
    factory = web3.eth.contract(abi=artifact.abi, bytecode=artifact.creation_code)
    data = factory.constructor(RICH.address, [RICH.address], [GENESIS_WEI]).data_in_transaction
    receipt = send(web3, {"data": data, "value": 0})
    return web3.eth.contract(address=receipt["contractAddress"], abi=artifact.abi)


async def test_web3_deploy_call_event_and_receipt(run: Any) -> None:
    def body(web3: Web3) -> None:
        token = deploy_token(web3)
        assert token.functions.totalSupply().call() == GENESIS_WEI
        assert token.functions.name().call() == "EMC"
        before = web3.eth.block_number
        receipt = send(web3, {"to": token.address, "data": token.encode_abi("transfer", [POOR.address, 5])})
        assert receipt["status"] == 1
        (event,) = token.events.Transfer().process_receipt(receipt)
        assert dict(event["args"]) == {"from": RICH.address, "to": POOR.address, "value": 5}
        assert token.functions.balanceOf(POOR.address).call() == 5
        assert token.functions.balanceOf(POOR.address).call(block_identifier=before) == 0
        assert token.functions.balanceOf(POOR.address).call(block_identifier=receipt["blockHash"]) == 5
        logs = token.events.Transfer().get_logs(from_block=before, argument_filters={"to": POOR.address})
        assert [entry["transactionHash"] for entry in logs] == [receipt["transactionHash"]]
        later = before + 1
        assert token.events.Transfer().get_logs(from_block=later, argument_filters={"to": RICH.address}) == []
        assert token.events.Transfer().get_logs(block_hash=receipt["blockHash"])[0]["logIndex"] == 0

    await run(body)


async def test_web3_custom_errors_and_reverts_reach_the_client(run: Any) -> None:
    def body(web3: Web3) -> None:
        token = deploy_token(web3)
        with pytest.raises(ContractCustomError):
            token.functions.transfer(RICH.address, 1).call({"from": POOR.address})
        with pytest.raises(ContractCustomError):
            token.functions.mint(POOR.address, 1).estimate_gas({"from": POOR.address})
        data = token.encode_abi("mint", [POOR.address, 10**30])
        receipt = send(web3, {"to": token.address, "data": data, "gas": 200_000})
        assert receipt["status"] == 0
        assert receipt["logs"] == []

    await run(body)


async def test_web3_legacy_transaction_blocks_and_transactions_agree(run: Any) -> None:
    def body(web3: Web3) -> None:
        receipt = send(web3, {"to": POOR.address, "value": 3, "gasPrice": 5 * GWEI})
        assert receipt["type"] == 0
        assert receipt["effectiveGasPrice"] == 5 * GWEI
        transaction = web3.eth.get_transaction(receipt["transactionHash"])
        assert transaction["from"] == RICH.address
        assert transaction["v"] in (CHAIN_ID * 2 + 35, CHAIN_ID * 2 + 36)
        block = web3.eth.get_block(receipt["blockNumber"], full_transactions=True)
        assert block["transactions"][0] == transaction
        assert block == web3.eth.get_block(receipt["blockHash"], full_transactions=True)
        parent = web3.eth.get_block(receipt["blockNumber"] - 1)
        assert block["parentHash"] == parent["hash"]
        assert block["timestamp"] > parent["timestamp"]
        assert web3.eth.get_balance(POOR.address) == 3

    await run(body)


async def test_web3_block_hash_is_the_header_of_the_standard(run: Any) -> None:
    """A client that checks headers computes the same hash from the fields it is given."""

    def body(web3: Web3) -> None:
        import rlp
        from eth.vm.forks.cancun.blocks import CancunBlockHeader

        receipt = send(web3, {"to": POOR.address, "value": 1})
        block = web3.eth.get_block(receipt["blockNumber"])
        header = CancunBlockHeader(
            difficulty=0,
            block_number=block["number"],
            gas_limit=block["gasLimit"],
            timestamp=block["timestamp"],
            coinbase=bytes.fromhex(block["miner"][2:]),
            parent_hash=bytes(block["parentHash"]),
            uncles_hash=bytes(block["sha3Uncles"]),
            state_root=bytes(block["stateRoot"]),
            transaction_root=bytes(block["transactionsRoot"]),
            receipt_root=bytes(block["receiptsRoot"]),
            bloom=int.from_bytes(bytes(block["logsBloom"]), "big"),
            gas_used=block["gasUsed"],
            extra_data=bytes(block["extraData"]),
            mix_hash=bytes(block["mixHash"]),
            nonce=bytes(block["nonce"]),
            base_fee_per_gas=block["baseFeePerGas"],
            withdrawals_root=bytes(block["withdrawalsRoot"]),
            blob_gas_used=block["blobGasUsed"],
            excess_blob_gas=block["excessBlobGas"],
            parent_beacon_block_root=bytes(block["parentBeaconBlockRoot"]),
        )
        assert header.hash == bytes(block["hash"])
        assert rlp.encode(header)

    await run(body)


async def test_web3_missing_things_are_not_found(run: Any) -> None:
    def body(web3: Web3) -> None:
        with pytest.raises(TransactionNotFound):
            web3.eth.get_transaction_receipt("0x" + "11" * 32)  # type: ignore[arg-type]
        with pytest.raises(TransactionNotFound):
            web3.eth.get_transaction("0x" + "11" * 32)  # type: ignore[arg-type]
        with pytest.raises(BlockNotFound):
            web3.eth.get_block(10**9)
        with pytest.raises(Web3RPCError, match="header not found"):
            web3.eth.get_balance(RICH.address, 10**9)

    await run(body)


async def test_web3_pending_nonce_and_replacement(run: Any) -> None:
    def body(web3: Web3) -> None:
        account = Account.from_key(RICH.reveal())

        def signed(nonce: int, fee: int, value: int) -> bytes:
            fields = {"to": POOR.address, "value": value, "gas": 21_000, "nonce": nonce, "chainId": CHAIN_ID}
            fields |= {"maxFeePerGas": fee, "maxPriorityFeePerGas": fee}
            return bytes(account.sign_transaction(fields).raw_transaction)

        start = web3.eth.get_transaction_count(account.address)
        late = web3.eth.send_raw_transaction(signed(start + 1, 10 * GWEI, 1))
        pending = web3.eth.get_transaction(late)
        assert pending["blockHash"] is None
        assert web3.eth.get_transaction_count(account.address, "pending") == start
        with pytest.raises(Web3RPCError, match="underpriced"):
            web3.eth.send_raw_transaction(signed(start + 1, 10 * GWEI, 2))
        better = web3.eth.send_raw_transaction(signed(start + 1, 11 * GWEI, 2))
        web3.eth.send_raw_transaction(signed(start, 10 * GWEI, 0))
        assert web3.eth.wait_for_transaction_receipt(better, 15, 0.1)["status"] == 1
        with pytest.raises(Web3RPCError, match="nonce too low"):
            web3.eth.send_raw_transaction(signed(start, 20 * GWEI, 9))
        assert web3.eth.get_balance(POOR.address) == 2

    await run(body)


async def test_web3_fees_code_storage_and_version(run: Any) -> None:
    def body(web3: Web3) -> None:
        token = deploy_token(web3)
        history = web3.eth.fee_history(3, "latest", [50.0])
        assert len(history["baseFeePerGas"]) == len(history["gasUsedRatio"]) + 1
        assert web3.eth.gas_price > web3.eth.max_priority_fee > 0
        assert len(web3.eth.get_code(token.address)) == load_artifact("EMCToken").deployed_bytes
        assert len(web3.eth.get_storage_at(token.address, 2)) == 32
        assert web3.net.version == str(CHAIN_ID)
        assert "py-evm" in web3.client_version
        with pytest.raises(ContractLogicError):
            web3.eth.call({"to": token.address, "data": "0xdeadbeef"})

    await run(body)
