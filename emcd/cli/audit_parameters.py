"""Which parameters and prices a bundle must name: the chain's, or what the deployment file can say."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from emcd.chain import Chain, ChainConfig
from emcd.chain.parameters import fetch_parameter_schedule
from emcd.errors import RecoverableError
from emcd.proto.bundle import BundleHeader
from emcd.proto.network import Deployment
from emcd.proto.parameter_rule import FIXED
from emcd.proto.parameter_schedule import ParameterSchedule

ASK_S = 60.0


def fetch_schedule(known: Deployment, rpc_url: str) -> ParameterSchedule:
    """The versions of the chain. Raises: RecoverableError EMC-150x, FatalError EMC-1542."""

    async def fetch() -> ParameterSchedule:
        with trio.move_on_after(ASK_S):
            return await fetch_parameter_schedule(Chain(ChainConfig((rpc_url,)), known))
        raise RecoverableError("EMC-1502", f"{rpc_url} did not answer within {ASK_S:.0f} s")

    return trio.run(fetch)


def expect_parameters(
    header: BundleHeader, known: Deployment | None, schedule: ParameterSchedule | None
) -> dict[str, Any]:
    """The fields of an Expectation about parameters and prices.

    With a schedule exactly what was in force; with a deployment file version 1 and, of a later one,
    what never changes. Raises: RecoverableError EMC-1540, EMC-1541 (the chain's are not known here).
    """
    if schedule is not None:
        tables = schedule.tables_for(0, header.round)
        return {
            "params": schedule.params_at(header.round),
            "prices": tuple(item.table for item in tables),
            "prices_from": tuple(item.from_round for item in tables),
        }
    if known is None:
        return {}
    if header.params.version == known.params.version:
        return {"params": known.params}
    fixed = {name: getattr(known.params, name) for name in FIXED}
    return {"params": msgspec.structs.replace(header.params, **fixed)}


def describe_parameters(header: BundleHeader, schedule: ParameterSchedule | None) -> str:
    """A line for people: which versions the bundle names, and who vouches for them."""
    tables = ", ".join(str(table.version) for table in header.prices)
    named = f"parameters version {header.params.version}, price tables {tables}"
    return named + (": as the chain has them" if schedule is not None else ", by the bundle's own word")
