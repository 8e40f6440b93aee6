"""A node's registration: the binding that its key signs and the wallet sends.

Owns making and sending a `Binding`. Invariants: the nonce is the contract's next, the deadline is
near, and chain id and contract are in what is signed, so a binding can't be replayed, moved to
another network or hoarded; it is sent from exactly the wallet it names, which is the consent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emcd.chain import Chain, TxReceipt
from emcd.errors import ConfigError
from emcd.keys import SigningKey
from emcd.proto.address import hex_hash
from emcd.proto.eip712 import typed_data
from emcd.proto.json_form import to_json
from emcd.proto.messages import Binding
from emcd.proto.network import Deployment
from emcd.types import Address, ParticipantRole


@dataclass(frozen=True)
class SignedBinding:
    """What a wallet needs to register a node."""

    deployment: Deployment
    binding: Binding
    signature: bytes

    def to_json(self) -> dict[str, Any]:
        """For a file, the DApp, or a wallet of one's own: `typed_data` is what the node signed."""
        return {
            "chain_id": self.deployment.chain_id,
            "staking": self.deployment.staking,
            "binding": to_json(self.binding),
            "signature": hex_hash(self.signature),
            "typed_data": typed_data(self.deployment.staking_domain, self.binding),
        }


def sign_binding(
    deployment: Deployment,
    node: SigningKey,
    wallet: Address,
    role: ParticipantRole,
    nonce: int,
    deadline_s: int,
) -> SignedBinding:
    """Sign a binding with the node's key. Raises: ConfigError EMC-2022 when the wallet is that same key."""
    if wallet == node.address:
        raise ConfigError("EMC-2022", wallet)
    binding = Binding(node.address, wallet, role, nonce, deadline_s)
    return SignedBinding(deployment, binding, node.sign(deployment.staking_domain, binding))


async def fetch_next_nonce(chain: Chain, node: Address) -> int:
    """The nonce that the contract takes next from this node."""
    return await chain.staking.fetch_nonce(node) + 1


async def send_binding(chain: Chain, signed: SignedBinding, wallet: SigningKey) -> TxReceipt:
    """Send a binding from its wallet and wait until it is in a block.

    Raises: ConfigError EMC-2021 for another wallet's key; CallReverted EMC-1504 with the contract's
        reason; RecoverableError when the chain is away.
    Cancellation: it may have been sent; the same binding can't count twice.
    """
    if wallet.address != signed.binding.wallet:
        raise ConfigError("EMC-2021", f"it holds {wallet.address}, the binding names {signed.binding.wallet}")
    call = chain.staking.submit_bind(signed.binding, signed.signature)
    return await chain.send(wallet, call)
