"""Makes a devnet's text model, keys, chain, contracts, bindings and stakes, before any daemon runs.

Owns the devnet's folder until the daemon starts. Everything here happens once: a folder that has
its devnet.json is used as it is. Invariants: every binding and stake is in a block before the
genesis time, so the first round has its participants; no secret leaves the folder (0700).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from emcd.chain import Chain, ChainConfig
from emcd.chain.deploy import DeploymentPlan, deploy_network
from emcd.chain.sender import send_call
from emcd.errors import ConfigError
from emcd.inference.manifest import model_hash
from emcd.inference.minilm import MINILM_MANIFEST
from emcd.inference.model_folder import read_manifest
from emcd.inference.training.tiny import ensure_tiny
from emcd.keys import SigningKey, generate_key, load_keystore, read_keystore_address, write_keystore
from emcd.proto.messages import Binding
from emcd.proto.network import Deployment, decode_deployment, encode_deployment
from emcd.proto.params import DEVNET_ROUND_S, ModelStanding, NetworkParams, devnet_params
from emcd_devchain.devnet.layout import CHAIN_ID, HOST, DevnetLayout
from emcd_devchain.devnet.roster import (
    BOUND,
    FOUNDATION,
    GAS_WEI,
    GENESIS_SUPPLY_WEI,
    HUB,
    MEMBERS,
    ROUTER,
    VALIDATORS,
    Member,
)
from emcd_devchain.genesis import prepare_chain

LEAD_S = 12
"""From now to the genesis time at least: what preparing and starting take, with some air."""

HISTORY_S = 600
"""The offline blocks' timestamps begin this long before genesis, one second apart."""

PACE_S = 5.0

OFFLINE_POLL_S = 0.01
"""The offline chain mines at once."""

Say = Callable[[str], None]


async def ensure_devnet(layout: DevnetLayout, say: Say) -> Deployment:
    """Prepare the folder unless it is prepared; returns the network.

    Raises: ConfigError EMC-2230 when it was prepared for another hub port: endpoints are on its chain;
        EMC-2238 when a version with other participants prepared it.

    A text model is trained first where there is none yet: about a minute, and before the genesis time is set.
    """
    if layout.summary.exists():
        made = json.loads(layout.summary.read_text())
        if made["hub_url"] != layout.hub_url:
            raise ConfigError("EMC-2230", f"the devnet in {layout.folder} has its hub at {made['hub_url']}")
        if missing := {member.name for member in BOUND} - {entry["name"] for entry in made["participants"]}:
            raise ConfigError("EMC-2238", f"{layout.folder} has no {', '.join(sorted(missing))}")
        await trio.to_thread.run_sync(ensure_tiny, layout.models, _paced(say))
        return decode_deployment(layout.deployment.read_bytes(), str(layout.deployment))
    if layout.folder.exists():
        _clear_half_made(layout)
    layout.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tiny = await trio.to_thread.run_sync(ensure_tiny, layout.models, _paced(say))
    catalogue = (model_hash(MINILM_MANIFEST), model_hash(read_manifest(tiny.parent, tiny.name)))
    say("making keys")
    keys = await trio.to_thread.run_sync(_make_keys, layout)
    round_s = DEVNET_ROUND_S
    genesis_s = (int(time.time()) + LEAD_S + round_s - 1) // round_s * round_s
    say("deploying the contracts, binding and staking")
    params = msgspec.structs.replace(
        devnet_params(genesis_s),
        models=tuple((f"0x{name.hex()}", int(ModelStanding.ENFORCED)) for name in sorted(catalogue)),
    )
    deployment = await _build_chain(layout, keys, params)
    write_private(layout.deployment, encode_deployment(deployment))
    write_private(layout.summary, json.dumps(summary(layout, deployment), indent=2))
    return deployment


def summary(layout: DevnetLayout, deployment: Deployment) -> dict[str, object]:
    """The content of devnet.json: what other people's scripts start from."""
    password = layout.password.read_text().strip()
    participants = []
    for member in BOUND:
        node, wallet = keystore(layout, member.name), keystore(layout, member.wallet_name)
        participants.append(
            {
                "name": member.name,
                "role": member.role.name.lower() if member.role else "",
                "node_address": read_keystore_address(node),
                "wallet_address": read_keystore_address(wallet),
                "node_keystore": str(node),
                "wallet_keystore": str(wallet),
                "keystore": str(wallet),
                "password": password,
            }
        )
    api_key = layout.api_key("demo")
    return {
        "hub_url": layout.hub_url,
        "api_key": api_key.read_text().strip() if api_key.exists() else "",
        "admin_url": layout.admin_url,
        "admin_token": layout.admin_token.read_text().strip(),
        "tunnel_url": f"ws://{HOST}:{layout.tunnel_port}",
        "router_url": f"ws://{HOST}:{layout.router_port}",
        "rpc_url": layout.rpc_url,
        "chain_id": deployment.chain_id,
        "contracts": {
            "token": deployment.token,
            "staking": deployment.staking,
            "distributor": deployment.distributor,
            "vault": deployment.vault,
            "parameters": deployment.parameters,
        },
        "deployment": str(layout.deployment),
        "round_seconds": deployment.params.round_s,
        "genesis_time": deployment.params.genesis_time_s,
        "password": password,
        "participants": participants,
        "user_wallet_keystore": str(keystore(layout, "user")),
        "pid_file": str(layout.process),
        "log_file": str(layout.log),
    }


def write_summary(layout: DevnetLayout, deployment: Deployment) -> None:
    """Write devnet.json anew, whole or not at all."""
    write_private(layout.summary, json.dumps(summary(layout, deployment), indent=2))


def daemon_variables(layout: DevnetLayout) -> dict[str, str]:
    """The environment that conf/devnet.toml reads, for this folder."""
    token = layout.admin_token.read_text().strip()
    hub = read_keystore_address(keystore(layout, HUB.name))
    router = read_keystore_address(keystore(layout, ROUTER.name))
    return layout.environment(hub, router, hashlib.sha256(token.encode()).hexdigest())


def keystore(layout: DevnetLayout, name: str) -> Path:
    return layout.keys / f"{name}.json"


def open_key(layout: DevnetLayout, name: str) -> SigningKey:
    """Decrypt one of the devnet's keys. Blocking: derives a key."""
    return load_keystore(keystore(layout, name), layout.password.read_text().strip())


def _paced(say: Say) -> Say:
    """A line every few seconds of what tells its progress more often."""
    last_at = -math.inf

    def paced(line: str) -> None:
        nonlocal last_at
        if time.monotonic() - last_at >= PACE_S:
            last_at = time.monotonic()
            say(line)

    return paced


def _make_keys(layout: DevnetLayout) -> dict[str, SigningKey]:
    password = secrets.token_urlsafe(18)
    write_private(layout.password, password + "\n")
    write_private(layout.admin_token, "emc_admin_" + secrets.token_urlsafe(32) + "\n")
    layout.api_key("demo").parent.mkdir(mode=0o700)
    keys: dict[str, SigningKey] = {}
    for member in MEMBERS:
        for name in dict.fromkeys((member.name, member.wallet_name)):
            keys[name] = generate_key()
            write_keystore(keystore(layout, name), keys[name], password, kdf="light")
    return keys


async def _build_chain(
    layout: DevnetLayout, keys: dict[str, SigningKey], params: NetworkParams
) -> Deployment:
    wallets = {member: keys[member.wallet_name].address for member in MEMBERS}
    rest = GENESIS_SUPPLY_WEI - sum(m.holding_wei for m in MEMBERS if m is not FOUNDATION)
    plan = DeploymentPlan(
        chain_id=CHAIN_ID,
        holders={wallets[m]: m.holding_wei if m is not FOUNDATION else rest for m in MEMBERS},
        guardian=wallets[FOUNDATION],
        params=params,
    )
    with prepare_chain(
        layout.chain,
        chain_id=CHAIN_ID,
        timestamp_s=params.genesis_time_s - HISTORY_S,
        balances_wei=dict.fromkeys(wallets.values(), GAS_WEI),
    ) as offline:
        deployment = await deploy_network(offline, keys[FOUNDATION.name], plan, poll_s=OFFLINE_POLL_S)
        chain = Chain(ChainConfig(rpc_urls=()), deployment, offline)
        for member in BOUND:
            await _bind_and_stake(chain, layout, keys, member)
    return deployment


async def _bind_and_stake(
    chain: Chain, layout: DevnetLayout, keys: dict[str, SigningKey], member: Member
) -> None:
    node, wallet = keys[member.name], keys[member.wallet_name]
    deployment = chain.deployment
    assert member.role is not None
    binding = Binding(node.address, wallet.address, int(member.role), 1, deployment.params.genesis_time_s)
    calls = [chain.staking.submit_bind(binding, node.sign(deployment.staking_domain, binding))]
    if member.stake_token:
        amount_wei = member.stake_token * 10**18
        calls.append(chain.token.submit_approve(deployment.staking, amount_wei))
        calls.append(chain.staking.submit_stake(node.address, amount_wei, member.lock_days))
    endpoint = _endpoint(layout, member)
    if endpoint:
        calls.append(chain.staking.submit_set_endpoint(node.address, endpoint))
    for call in calls:
        await send_call(chain.rpc, deployment.chain_id, wallet, call, poll_s=OFFLINE_POLL_S)


def _endpoint(layout: DevnetLayout, member: Member) -> str:
    if member is HUB:
        return layout.hub_url
    if member is ROUTER:
        return f"http://{HOST}:{layout.router_port}"
    if member in VALIDATORS:
        return f"http://{HOST}:{layout.validator_ports[VALIDATORS.index(member)]}"
    return ""


def _clear_half_made(layout: DevnetLayout) -> None:
    """Remove what an interrupted preparation left; nothing was ever run on it."""
    shutil.rmtree(layout.keys, ignore_errors=True)
    shutil.rmtree(layout.api_key("demo").parent, ignore_errors=True)
    for path in layout.folder.glob(layout.chain.name + "*"):
        path.unlink()


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
