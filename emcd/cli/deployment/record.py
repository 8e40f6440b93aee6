"""What is kept of a deployment: `deployments/<chain_id>.json`, and the deployment.json that daemons read.

The record says what was deployed from what, by which transactions, and what was compared; nothing in it
is secret. Invariant: a record is never overwritten by another deployment's; it is set aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcd.chain import TxReceipt
from emcd.chain.contracts import load_artifact
from emcd.cli.deployment.costing import ContractStep
from emcd.cli.deployment.plan_file import PlanFile
from emcd.cli.deployment.progress import progress_file, write_json, write_whole
from emcd.cli.deployment.verify import Check
from emcd.errors import ConfigError
from emcd.proto.address import hex_hash
from emcd.proto.hashing import keccak
from emcd.proto.network import Deployment, encode_deployment
from emcd.types import Address

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A record that is there: enough to tell which deployment it is."""

    file: Path
    block: int
    addresses: Mapping[str, Address]
    document: Mapping[str, Any]


def record_file(folder: Path, chain_id: int) -> Path:
    return folder / f"{chain_id}.json"


def deployment_file(folder: Path, chain_id: int) -> Path:
    """The file for [network] deployment."""
    return folder / str(chain_id) / "deployment.json"


def find_record(folder: Path, chain_id: int) -> Record | None:
    """Raises: ConfigError EMC-2154 when it can't be read."""
    file = record_file(folder, chain_id)
    try:
        document = json.loads(file.read_bytes())
        contracts = document["contracts"]
        addresses = {name: Address(entry["address"]) for name, entry in contracts.items()}
        return Record(file, int(document["block"]), addresses, document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError("EMC-2154", f"{file}: {type(exc).__name__} {exc}") from exc


def set_aside(folder: Path, chain_id: int) -> list[Path]:
    """Give an earlier deployment, finished or cut, names of its own. Returns: what there is now."""
    moved = []
    record = find_record(folder, chain_id)
    if record is not None:
        label = f"{chain_id}-{record.addresses['EMCToken'][2:10].lower()}"
        moved.append(record.file.rename(folder / f"{label}.json"))
        daemon = deployment_file(folder, chain_id)
        if daemon.parent.is_dir():
            moved.append(daemon.parent.rename(folder / label))
    progress = progress_file(folder, chain_id)
    if progress.exists():
        number = next(n for n in range(1, 10_000) if not (folder / f"{chain_id}.progress-{n}.json").exists())
        moved.append(progress.rename(folder / f"{chain_id}.progress-{number}.json"))
    return moved


def write_record(
    folder: Path,
    plan: PlanFile,
    deployer: Address,
    deployment: Deployment,
    steps: Sequence[ContractStep],
    receipts: Mapping[str, TxReceipt],
    checks: Sequence[Check],
) -> dict[str, Any]:
    """Write both files, deployment.json last; returns the record."""
    daemon = deployment_file(folder, plan.chain_id)
    daemon.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "format": FORMAT,
        "chain_id": plan.chain_id,
        "block": min(receipt.block for receipt in receipts.values()),
        "deployer": deployer,
        "deployment": str(daemon.relative_to(folder)),
        "sources_sha256": load_artifact(steps[0].contract).sources_sha256,
        "contracts": {step.contract: _contract(step, receipts[step.contract]) for step in steps},
        "plan": plan_table(plan),
        "verification": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks],
    }
    write_whole(daemon, encode_deployment(deployment) + "\n")
    write_json(record_file(folder, plan.chain_id), document)
    return document


def plan_table(plan: PlanFile) -> dict[str, Any]:
    """The plan as JSON: who begins with what and which powers there are; amounts in wei as text."""
    return {
        "profile": plan.profile,
        "genesis_time_s": plan.genesis.time_s,
        "guardian": plan.guardian,
        "treasury": plan.vault.treasury,
        "treasury_bps": plan.vault.treasury_bps,
        "credits_per_token": plan.vault.credits_per_token,
        "holders": {holder: str(amount.wei) for holder, amount in plan.holders.items()},
        "validators": [
            {"name": v.name, "node": v.node, "wallet": v.wallet, "stake_wei": str(v.stake.wei)}
            for v in plan.validators
        ],
    }


def _contract(step: ContractStep, receipt: TxReceipt) -> dict[str, Any]:
    artifact = load_artifact(step.contract)
    return {
        "address": step.address,
        "tx_hash": hex_hash(receipt.tx_hash),
        "block": receipt.block,
        "nonce": step.nonce,
        "gas_used": receipt.gas_used,
        "creation_hash": hex_hash(step.creation_hash),
        "code_hash": hex_hash(keccak(step.runtime)),
        "compiler": f"{artifact.compiler.name} {artifact.compiler.version}",
    }
