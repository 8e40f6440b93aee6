"""A network's identity: chain id, contracts, parameters, prices; the content of deployment.json.

Whoever runs a role is given this file; with it every signature and every number is fixed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from emcd.errors import ConfigError, RemoteProtocolError
from emcd.proto.address import parse_address
from emcd.proto.eip712 import Domain
from emcd.proto.parameters import read_params, write_params
from emcd.proto.params import NetworkParams, PriceTable
from emcd.types import Address


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network on one chain."""

    chain_id: int
    token: Address
    staking: Address
    distributor: Address
    vault: Address
    parameters: Address
    deployed_block: int
    params: NetworkParams
    prices: PriceTable = PriceTable()

    @property
    def staking_domain(self) -> Domain:
        """For bindings and everything that no contract checks."""
        return Domain(self.chain_id, self.staking)

    @property
    def distributor_domain(self) -> Domain:
        """For round roots, vetoes and extraction requests."""
        return Domain(self.chain_id, self.distributor)

    @property
    def parameters_domain(self) -> Domain:
        """For changes of the parameters."""
        return Domain(self.chain_id, self.parameters)


def encode_deployment(deployment: Deployment) -> str:
    """The JSON text of deployment.json; structs by field name, byte amounts as decimal strings."""
    table = msgspec.to_builtins(deployment)
    table["params"] = write_params(deployment.params)
    return msgspec.json.format(msgspec.json.encode(table), indent=2).decode()


def decode_deployment(text: str | bytes, where: str = "deployment.json") -> Deployment:
    """Read deployment.json strictly. Raises: ConfigError EMC-1020 naming the first fault."""
    try:
        table: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        table["params"] = read_params(dict(table["params"]))
        table["prices"] = msgspec.convert(table.get("prices", []), PriceTable)
        deployment = Deployment(**table)
        msgspec.convert(msgspec.to_builtins(deployment), Deployment)
        for name in ("token", "staking", "distributor", "vault", "parameters"):
            parse_address(getattr(deployment, name))
    except (msgspec.MsgspecError, RemoteProtocolError, ValueError, TypeError, KeyError, OverflowError) as exc:
        raise ConfigError("EMC-1020", f"{where}: {exc}") from exc
    return deployment
