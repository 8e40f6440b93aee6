"""kill -9 of the embedded chain at random moments: whole blocks, nothing acknowledged lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emcd_devchain.evm import EvmChain
from emcd_devchain.store import ChainStore, LogFilter
from emcd_devchain.vm import DevVM, decode_header
from tests.support.devchain import CHAIN_ID, ETHER, POOR, raw

pytestmark = pytest.mark.chaos
KILLS = 5
MINER = """
import sys
from pathlib import Path
from emcd_devchain.evm import EvmChain
from emcd_devchain.store import ChainStore
from tests.support.devchain import CHAIN_ID, GENESIS_S, ETHER, RICH, raw, sign_raw
chain = EvmChain(ChainStore(Path(sys.argv[1]), CHAIN_ID), CHAIN_ID)
if not chain.has_genesis:
    chain.create_genesis(GENESIS_S, {raw(RICH): 1_000 * ETHER})
nonce = chain.pool.next_nonce(raw(RICH), chain.state_at(chain.head).get_nonce(raw(RICH)))
while True:
    for _ in range(3):
        tx_hash = chain.send_raw(sign_raw(nonce=nonce, value=1))
        nonce += 1
        print("sent", tx_hash.hex(), flush=True)
    header = chain.mine(0)
    print("mined", header.block_number, header.hash.hex(), flush=True)
"""


def test_kill_9_leaves_whole_blocks_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "chain.sqlite"
    dice = random.Random(3)
    sent: list[bytes] = []
    mined: dict[int, bytes] = {}
    for _ in range(KILLS):
        for line in run_and_kill(file, 0.15 * dice.random()):
            word, *rest = line.split()
            if word == "sent":
                sent.append(bytes.fromhex(rest[0]))
            else:
                mined[int(rest[0])] = bytes.fromhex(rest[1])
        check(file, sent, mined)
    assert len(mined) > KILLS
    assert len(sent) > 3 * KILLS


def run_and_kill(file: Path, after_s: float) -> list[str]:
    """Run the miner, kill it `after_s` after its first line; returns its whole lines."""
    process = subprocess.Popen([sys.executable, "-c", MINER, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        first = process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
    return [line for line in lines if line.endswith("\n")]


def check(file: Path, sent: list[bytes], mined: dict[int, bytes]) -> None:
    chain = EvmChain(ChainStore(file, CHAIN_ID), CHAIN_ID)
    store = chain.store
    try:
        for tx_hash in sent:
            assert store.find_tx(tx_hash) is not None or chain.pool.find(tx_hash) is not None, (
                "a transaction is lost"
            )
        for number, block_hash in mined.items():
            row = store.find_block(number)
            assert row is not None
            assert row.hash == block_hash, "an announced block is lost"
        head = chain.head.block_number
        parent = None
        transactions = 0
        for number in range(head + 1):
            row = store.find_block(number)
            assert row is not None
            header = decode_header(row.header)
            if parent is not None:
                assert header.parent_hash == parent.hash
                DevVM.validate_header(header, parent)
            transactions += len(store.list_tx_hashes(number))
            assert header.gas_used == 21_000 * len(store.list_tx_hashes(number))
            parent = header
        assert chain.state_at(chain.head).get_balance(raw(POOR)) == transactions
        assert store.list_logs(LogFilter(head + 1, 2**62), 10) == []
        assert transactions < ETHER
    finally:
        store.close()
