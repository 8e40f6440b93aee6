"""py-evm, fitted to our store: Cancun rules after the merge, state nodes from SQLite.

Owns nothing but the adaptation. Blocks are packed here by hand instead of by py-evm's chain
classes: those write headers, scores and tries one by one, and look logs up by scanning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rlp  # type: ignore[import-untyped]
from eth.abc import AtomicWriteBatchAPI, BlockHeaderAPI
from eth.consensus.context import ConsensusContext
from eth.db.atomic import AtomicDBWriteBatch
from eth.db.backends.base import BaseAtomicDB
from eth.db.chain import ChainDB
from eth.vm.chain_context import ChainContext
from eth.vm.forks.cancun import CancunVM
from eth.vm.forks.cancun.blocks import CancunBlockHeader
from eth.vm.forks.cancun.state import CancunState
from eth_typing import Hash32

from emcd_devchain.store import ChainStore

GAS_LIMIT = 30_000_000
INITIAL_BASE_FEE_WEI = 1_000_000_000


class NodeDb(BaseAtomicDB):
    """py-evm's database interface over the store's state nodes. Nothing is ever deleted."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store

    def __getitem__(self, key: bytes) -> bytes:
        return self._store.get_node(key)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._store.put_node(key, value)

    def __delitem__(self, key: bytes) -> None:
        pass

    def _exists(self, key: bytes) -> bool:
        try:
            self._store.get_node(key)
        except KeyError:
            return False
        return True

    @contextmanager
    def atomic_batch(self) -> Iterator[AtomicWriteBatchAPI]:
        with AtomicDBWriteBatch._commit_unless_raises(self) as batch:
            yield batch


class DevState(CancunState):
    """Cancun without the beacon-root contract: there is no beacon chain here."""

    def set_system_contracts(self) -> None:
        pass


class DevVM(CancunVM):
    """One block's machine; BLOCKHASH reads the store."""

    _state_class = DevState

    def __init__(self, header: BlockHeaderAPI, store: ChainStore, db: NodeDb, chain_id: int) -> None:
        chaindb = ChainDB(db)
        super().__init__(header, chaindb, ChainContext(chain_id), ConsensusContext(db))
        self._store = store

    @property
    def previous_hashes(self) -> Iterator[Hash32]:
        number = self.get_header().block_number
        return (Hash32(h) for h in _Lazy(self._store, number))


class _Lazy:
    """Asks for ancestors only when a contract does."""

    def __init__(self, store: ChainStore, number: int) -> None:
        self._store, self._number = store, number

    def __iter__(self) -> Iterator[bytes]:
        return self._store.list_ancestor_hashes(self._number)


def decode_header(raw: bytes) -> CancunBlockHeader:
    header = rlp.decode(raw, sedes=CancunBlockHeader)
    assert isinstance(header, CancunBlockHeader)
    return header


def base_fee_of(header: BlockHeaderAPI) -> int:
    """The base fee, which py-evm's interface calls optional."""
    fee = header.base_fee_per_gas
    assert fee is not None
    return fee
