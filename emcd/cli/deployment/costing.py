"""What a deployment does, contract by contract: addresses, gas, cost. Rehearsed here, nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emcd.chain.contracts import CONTRACT_NAMES
from emcd.chain.deploy import DeploymentPlan, encode_constructor, list_constructors, predict_address
from emcd.chain.tx import Fees, gas_limit_ceil
from emcd.cli.deployment.replay import ConstructorRefused, Created, Replay
from emcd.config import Fault
from emcd.types import Address, Hash

CODE = "EMC-2151"
MAX_CODE_BYTES = 24_576
"""EIP-170."""


@dataclass(frozen=True)
class ContractStep:
    """One creating transaction. `gas` is what the rehearsal used, `gas_limit` what is offered."""

    contract: str
    address: Address
    nonce: int
    code: bytes
    creation_hash: Hash
    runtime: bytes
    gas: int

    @property
    def gas_limit(self) -> int:
        return gas_limit_ceil(self.gas)

    def expected_wei(self, base_fee_wei: int, fees: Fees) -> int:
        """At the fees of now."""
        return self.gas * min(base_fee_wei + fees.tip_wei, fees.max_fee_wei)

    def most_wei(self, fees: Fees) -> int:
        """What the account must own for it."""
        return self.gas_limit * fees.max_fee_wei


def predict_addresses(deployer: Address, nonce: int) -> tuple[Address, ...]:
    """Where the contracts will be, in the order of their creation."""
    return tuple(predict_address(deployer, nonce + index) for index in range(len(CONTRACT_NAMES)))


def rehearse(
    plan: DeploymentPlan, deployer: Address, nonce: int, time_s: int, addresses: Sequence[Address] = ()
) -> tuple[list[ContractStep], list[Fault], Replay]:
    """Run every constructor where it will be. Blocking: imports py-evm and web3 (2 s).

    Returns: the steps that work, what does not, and the chain on which they ran.
    """
    predicted = tuple(addresses) or predict_addresses(deployer, nonce)
    replay = Replay(plan.chain_id, time_s)
    steps: list[ContractStep] = []
    faults: list[Fault] = []
    for index, (name, args) in enumerate(list_constructors(plan, predicted).items()):
        code = encode_constructor(name, args)
        try:
            made: Created = replay.create(predicted[index], deployer, code)
        except ConstructorRefused as exc:
            faults.append(Fault(name, f"its constructor refuses the plan: {exc.reason.text}", CODE))
            break
        if len(made.runtime) > MAX_CODE_BYTES:
            faults.append(Fault(name, f"has {len(made.runtime)} bytes of at most {MAX_CODE_BYTES}", CODE))
        step = ContractStep(
            name, predicted[index], nonce + index, code, made.creation_hash, made.runtime, made.gas
        )
        steps.append(step)
    return steps, faults, replay
