"""The commented plan that `emcd chain plan` writes."""

from __future__ import annotations

from datetime import datetime

_TEMPLATE = """\
# The plan of a network, for `emcd chain deploy`. What stands here can't be changed once it is deployed,
# but for [params] and [prices], which validators with more than 2/3 of the power may change later, and
# even of these not the clock: round_s, epoch_rounds, day_s, unbonding_rounds, challenge_delay_rounds.

profile = "{profile}"          # mainnet: rounds of two hours; devnet: of 15 seconds
chain_id = {chain_id}
genesis_time = {genesis}   # round 0 begins; a multiple of the round, validators stake before it
guardian = "0x..."           # may pause publishing and claiming, 7 days at most; never exits
# deployer = "0x..."         # refuse any other key; it holds no power afterwards

[chain]
rpc_urls = ["{rpc}"]
confirmations = {confirmations}
max_fee_gwei = 100

[holders]                    # who begins with how much token; exactly 900,000,000 together
"0x..." = "600_000_000"
"0x..." = "300_000_000"

[vault]
credits_per_token = 1000
# treasury = "0x..."         # gets a part of what credits cost; without it everything is burnt
# treasury_bps = 1000        # 10 %

# [params]                   # what differs from the profile
# validator_set_size = 13    # 3F + 1
# minimum_judges = 5
# compute_minimum_token = 3000

# [prices.default]           # micro-credits for a million tokens, and the least for a call
# input_micro_per_mtok = 10_000_000_000
# output_micro_per_mtok = 10_000_000_000
# minimum_micro = 10_000

[[validators]]               # who is to stake before genesis; repeat it for each. Compared with the
name = "first"               # holders here, and with the chain by `emcd chain status`.
wallet = "0x..."
# node = "0x..."
stake = "1_000_000"
"""


def make_template(profile: str, genesis: datetime) -> str:
    """TOML with every key; the addresses are left to fill in."""
    is_devnet = profile == "devnet"
    return _TEMPLATE.format(
        profile=profile,
        chain_id=31_337 if is_devnet else 1,
        genesis=genesis.strftime("%Y-%m-%dT%H:%M:%SZ"),
        rpc="http://127.0.0.1:8545",
        confirmations=1 if is_devnet else 12,
    )
