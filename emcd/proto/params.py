"""The network's numbers and its clock. Source: DESIGN 2.1 to 2.7.

Invariants: integers only; every duration is seconds or rounds; the devnet profile scales each
duration by its round length. A bundle names the version it was settled under.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from emcd.money import BPS
from emcd.types import Epoch, ParticipantRole, Round

MAINNET_ROUND_S = 7200
DEVNET_ROUND_S = 15
MAX_CLOCK_SKEW_MS = 30_000


class ModelPrice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Micro-credits per million tokens, and the least that a successful call costs."""

    input_micro_per_mtok: int = 10_000_000_000
    output_micro_per_mtok: int = 10_000_000_000
    minimum_micro: int = 10_000


class PriceTable(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Prices by manifest hash (0x-hex), with a default; `version` stands in every forward record.

    By hash and not by name: a bundle knows no names, and a name may have several manifests.
    """

    version: int = 1
    default: ModelPrice = ModelPrice()
    models: tuple[tuple[str, ModelPrice], ...] = ()

    def price_of(self, manifest: str) -> ModelPrice:
        return dict(self.models).get(manifest, self.default)


class ModelStanding(IntEnum):
    """What a verdict on a model's answers costs the node."""

    SHADOW = 0
    """Every model that the parameters do not name: FAIL and CLASS are written down and cost nothing."""
    ENFORCED = 1
    DELISTED = 2
    """Nobody may sell it: something about it is wrong, and no node is to blame."""


class NetworkParams(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All parameters of one version."""

    genesis_time_s: int
    version: int = 1
    round_s: int = MAINNET_ROUND_S
    epoch_rounds: int = 12
    challenge_delay_rounds: int = 6
    void_after_rounds: int = 12
    carry_rounds: int = 12
    unbonding_rounds: int = 24
    day_s: int = 86_400
    online_window_ms: int = 1_800_000
    status_interval_ms: int = 60_000
    close_within_ms: int = 300_000
    validator_set_size: int = 13
    minimum_judges: int = 5
    probes_per_node: int = 2
    standard_task_micro: int = 200_000_000
    validator_round_micro: int = 200_000_000
    router_round_micro: int = 20_000_000
    compute_minimum_wei: bytes = (3_000 * 10**18).to_bytes(32, "big")
    router_minimum_wei: bytes = (100_000 * 10**18).to_bytes(32, "big")
    validator_minimum_wei: bytes = (1_000_000 * 10**18).to_bytes(32, "big")
    publish_fee_wei: bytes = bytes(32)
    suspension_rounds: int = 3
    strike_window_rounds: int = 12
    beacon_blocks: int = 2
    hub_minimum_wei: bytes = bytes(32)
    router_lock_days: int = 180
    validator_lock_days: int = 360
    hub_lock_days: int = 0
    compute_locks: tuple[tuple[int, int], ...] = (
        (0, BPS),
        (7, 14_000),
        (30, 27_000),
        (90, 62_000),
        (180, 100_000),
    )
    """A compute node's locks, ascending: days and the multiplier in basis points; 0 days come first."""
    recheck_bps: int = 1_000
    """Of the probes that passed: how many another validator judges anew."""
    models: tuple[tuple[str, int], ...] = ()
    """The catalogue: manifest hashes (0x-hex, ascending) that are not in shadow, each with its standing."""

    def round_at(self, at_ms: int) -> Round:
        """The round of a time; negative before genesis."""
        return Round((at_ms - self.genesis_time_s * 1000) // (self.round_s * 1000))

    def round_start_ms(self, index: int) -> int:
        return (self.genesis_time_s + index * self.round_s) * 1000

    def round_end_ms(self, index: int) -> int:
        return self.round_start_ms(index + 1)

    def grace_end_ms(self, index: int) -> int:
        """When round `index` closes: its grace is the whole next round."""
        return self.round_start_ms(index + 2)

    def epoch_of(self, index: int) -> Epoch:
        return Epoch(index // self.epoch_rounds)

    def standing_of(self, manifest: bytes) -> ModelStanding:
        """The standing of the model with this manifest hash."""
        name = f"0x{manifest.hex()}"
        return ModelStanding(next((row[1] for row in self.models if row[0] == name), ModelStanding.SHADOW))

    def multiplier_bps(self, role: int, lock_days: int) -> int:
        """What a stake is multiplied with; a lock between two of the table earns the shorter one's."""
        if role != ParticipantRole.COMPUTE:
            return BPS
        return next(bps for days, bps in reversed(self.compute_locks) if lock_days >= days)


def mainnet_params(genesis_time_s: int) -> NetworkParams:
    """Two-hour rounds. Raises: ValueError when genesis is no multiple of the round."""
    return _aligned(NetworkParams(genesis_time_s=genesis_time_s))


def devnet_params(genesis_time_s: int, round_s: int = DEVNET_ROUND_S) -> NetworkParams:
    """The same network on a fast clock. Raises: ValueError when genesis is no multiple of the round."""
    base = NetworkParams(genesis_time_s=genesis_time_s)

    def scaled(duration: int) -> int:
        return max(1, duration * round_s // MAINNET_ROUND_S)

    return _aligned(
        msgspec.structs.replace(
            base,
            round_s=round_s,
            challenge_delay_rounds=1,
            day_s=scaled(base.day_s),
            online_window_ms=scaled(base.online_window_ms),
            status_interval_ms=scaled(base.status_interval_ms),
            close_within_ms=scaled(base.close_within_ms),
            minimum_judges=4,
        )
    )


def _aligned(params: NetworkParams) -> NetworkParams:
    if params.genesis_time_s % params.round_s:
        raise ValueError(f"genesis time {params.genesis_time_s} is no multiple of {params.round_s} s")
    return params
