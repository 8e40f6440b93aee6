"""A deployment's plan as a TOML file, decoded strictly; and the plan of a profile without a file.

Owns the form. What the numbers mean together is judged in `plan_check`; nothing is asked of a chain.
Invariant: every fault of the file is reported, not the first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from emcd.cli.parameter_edit import assign, flatten
from emcd.config import Fault, decode, setting
from emcd.config.fault import SYNTAX, in_file
from emcd.money import MICRO_PER_CREDIT, parse_token
from emcd.proto.parameters import ParameterSet
from emcd.proto.params import PriceTable, devnet_params, mainnet_params
from emcd.types import Address

Profile = Literal["mainnet", "devnet"]
GENESIS_TOKEN = 900_000_000


@dataclass(frozen=True)
class GenesisTime:
    """When round 0 begins; in TOML a date with time and zone, or its text."""

    time_s: int

    @classmethod
    def from_text(cls, text: str) -> GenesisTime:
        """Parse 2027-01-01T00:00:00Z. Raises: ValueError."""
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is no time such as 2027-01-01T00:00:00Z") from None
        if parsed.tzinfo is None:
            raise ValueError("the time has no zone: end it with Z for UTC")
        if parsed.microsecond:
            raise ValueError("the time has a fraction of a second")
        return cls(int(parsed.timestamp()))


@dataclass(frozen=True)
class TokenAmount:
    """Token written as text, such as "450000000" or "0.5"."""

    wei: int

    @classmethod
    def from_text(cls, text: str) -> TokenAmount:
        """Raises: ValueError."""
        return cls(parse_token(text.replace("_", "").replace(",", "")))


@dataclass(frozen=True)
class PlanChain:
    """[chain]: how the chain is reached and what may be paid."""

    rpc_urls: tuple[str, ...] = setting((), doc="JSON-RPC addresses; --rpc overrides them.")
    confirmations: int = setting(2, minimum=1, maximum=1000, doc="How deep each creation must lie.")
    max_fee_gwei: int = setting(500, minimum=1, maximum=1_000_000, doc="The most a unit of gas may cost.")


@dataclass(frozen=True)
class PlanVault:
    """[vault]: what bought credits cost, and where the token goes."""

    credits_per_token: int = setting(1_000, minimum=1, maximum=10**9, doc="Credits for one token.")
    treasury: Address | None = setting(None, doc="Who gets a part; without it everything is burnt.")
    treasury_bps: int = setting(0, minimum=0, maximum=10_000, doc="The part, in 1/10000.")


@dataclass(frozen=True)
class PlannedValidator:
    """[[validators]]: who is expected to stake before the genesis time."""

    wallet: Address
    name: str = ""
    node: Address | None = None
    stake: TokenAmount = field(default_factory=lambda: TokenAmount(1_000_000 * 10**18))


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """The whole plan. `parameters` are those of the profile with [params] and [prices] laid over."""

    profile: Profile
    chain_id: int
    genesis: GenesisTime
    guardian: Address
    deployer: Address | None
    chain: PlanChain
    holders: dict[str, TokenAmount]
    vault: PlanVault
    validators: tuple[PlannedValidator, ...]
    parameters: ParameterSet


@dataclass(frozen=True)
class _Tables:
    """What is decoded by its types; [params] and [prices] by name."""

    genesis_time: GenesisTime
    guardian: Address
    holders: dict[str, TokenAmount]
    chain_id: int = setting(minimum=1)
    profile: Profile = "mainnet"
    deployer: Address | None = None
    chain: PlanChain = field(default_factory=PlanChain)
    vault: PlanVault = field(default_factory=PlanVault)
    validators: tuple[PlannedValidator, ...] = ()


def load_plan(file: Path) -> tuple[PlanFile | None, list[Fault]]:
    """Read and decode a plan.

    Returns: the plan, as far as it can be read at all, and every fault of the file; what the faults
    are about has its default in the plan.
    """
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        return None, [Fault("", f"is no TOML: {exc}", SYNTAX, str(file))]
    except OSError as exc:
        return None, [Fault("", f"can't be read: {exc.strerror}", SYNTAX, str(file))]
    plan, faults = read_plan(document)
    return plan, in_file(faults, str(file))


def read_plan(document: Mapping[str, Any]) -> tuple[PlanFile | None, list[Fault]]:
    """Decode a parsed plan; returns as `load_plan`."""
    rest = {key: _as_text(value) for key, value in document.items() if key not in ("params", "prices")}
    tables, faults = decode(_Tables, rest)
    if tables is None:
        known = {field.name for field in fields(_Tables)}
        tables, _ = decode(_Tables, {key: value for key, value in rest.items() if key in known})
    profile: Profile = "devnet" if rest.get("profile") == "devnet" else "mainnet"
    genesis_s = tables.genesis_time.time_s if tables else 0
    parameters, wrong = _lay_over(_profile_set(profile, genesis_s), document)
    faults += wrong
    if tables is None:
        return None, faults
    plan = PlanFile(
        profile=profile,
        chain_id=tables.chain_id,
        genesis=tables.genesis_time,
        guardian=tables.guardian,
        deployer=tables.deployer,
        chain=tables.chain,
        holders=tables.holders,
        vault=tables.vault,
        validators=tables.validators,
        parameters=parameters,
    )
    return plan, faults


def plan_of_profile(
    profile: Profile, *, chain_id: int, owner: Address, rpc_urls: Sequence[str], genesis_s: int
) -> PlanFile:
    """To try it out: one account owns everything and is the guardian."""
    return PlanFile(
        profile=profile,
        chain_id=chain_id,
        genesis=GenesisTime(genesis_s),
        guardian=owner,
        deployer=owner,
        chain=PlanChain(tuple(rpc_urls), confirmations=1),
        holders={owner: TokenAmount(GENESIS_TOKEN * 10**18)},
        vault=PlanVault(),
        validators=(),
        parameters=_profile_set(profile, genesis_s),
    )


def micro_per_token(vault: PlanVault) -> int:
    """Credits for a token in micro-credits, as the vault's constructor takes them."""
    return vault.credits_per_token * MICRO_PER_CREDIT


def _profile_set(profile: Profile, genesis_s: int) -> ParameterSet:
    """The profile's numbers; a genesis that is no multiple of the round is judged with the rest."""
    from msgspec.structs import replace

    base = devnet_params(0) if profile == "devnet" else mainnet_params(0)
    return ParameterSet(replace(base, genesis_time_s=genesis_s), PriceTable())


def _lay_over(base: ParameterSet, document: Mapping[str, Any]) -> tuple[ParameterSet, list[Fault]]:
    faults: list[Fault] = []
    for head in ("params", "prices"):
        table = document.get(head, {})
        if not isinstance(table, Mapping):
            faults.append(Fault(head, "expected a table"))
            continue
        for name, value in flatten(table, head):
            if name == "params.genesis_time_s":
                faults.append(Fault(name, "write genesis_time at the top of the plan instead"))
                continue
            try:
                base = assign(base, name, value)
            except ValueError as exc:
                faults.append(Fault(name, str(exc)))
    return base, faults


def _as_text(value: Any) -> Any:
    """TOML's own times as text, naive ones left for the fault that names the zone."""
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    return value
