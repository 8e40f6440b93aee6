"""What a difference would do, and to whom, if nobody minded it: sentences for people.

Pure words over numbers that the audit has already; nothing is decided here. A sentence is empty
where the bundle does not tell whom it would touch.
"""

from __future__ import annotations

from emcd.accounting.price import charge_call_ceil, price_of
from emcd.accounting.terms import RoundTerms
from emcd.errors import RemoteProtocolError
from emcd.money import format_credits_floor, format_token_floor
from emcd.proto.bundle import ResultEntry, SnapshotEntry, Total, ValidatorPower
from emcd.proto.bundle_codec import BundleFault, Section
from emcd.proto.records import CallStatus, Delivery, Forward, Receipt
from emcd.types import Address

_PLACES = 6
_TOKEN_PLACES = 18


class Unequal(RemoteProtocolError):
    """A difference whose effect is known where it is found."""

    def __init__(self, code: str, detail: str, effect: str) -> None:
        super().__init__(code, detail)
        self.effect = effect


class UnequalRecord(BundleFault):
    """The same, with its place in the bundle."""

    def __init__(
        self, code: str, section: Section, index: int, record: str, detail: str, effect: str
    ) -> None:
        super().__init__(code, section, index, record, detail)
        self.effect = effect


def tell_result(stated: ResultEntry | None, due: ResultEntry | None, wallet: Address | None) -> str:
    """A participant's result that is another than it should be, missing (`stated`) or too many (`due`)."""
    entry = stated or due
    assert entry is not None
    given = 0 if stated is None else int.from_bytes(stated.reward_wei, "big")
    owed = 0 if due is None else int.from_bytes(due.reward_wei, "big")
    whose = f"{entry.node} (wallet {wallet})" if wallet else entry.node
    if given != owed:
        return f"{whose} would get {_emc(given - owed)} than it is due"
    if stated is not None and due is not None and stated.credits_micro != due.credits_micro:
        return f"{whose} would be shown {_credits(stated.credits_micro - due.credits_micro)} than it has"
    return f"{whose} would get what it is due, for another reason"


def tell_issue(stated_wei: int, due_wei: int) -> str:
    return f"the round would issue {_emc(stated_wei - due_wei)} than the schedule gives it"


def tell_cumulative(stated_wei: int, due_wei: int) -> str:
    return f"the wallets together would be owed {_emc(stated_wei - due_wei)} than they have earned"


def tell_total(stated: Total | None, due: Total | None) -> str:
    """A wallet's total before the round."""
    entry = stated or due
    assert entry is not None
    given = 0 if stated is None else int.from_bytes(stated.cumulative_wei, "big")
    owed = 0 if due is None else int.from_bytes(due.cumulative_wei, "big")
    return f"wallet {entry.wallet} could claim {_emc(given - owed)} than it has earned"


def tell_participant(stated: SnapshotEntry | None, due: SnapshotEntry | None) -> str:
    """A participant that stands otherwise on the chain, or in one of the two only."""
    if stated is None:
        assert due is not None
        return f"{due.node} would take no part in the round's reward"
    if due is None:
        return f"{stated.node} (wallet {stated.wallet}) would share in the round's reward unbound"
    if stated.wallet != due.wallet:
        return f"the reward of {stated.node} would go to {stated.wallet} instead of {due.wallet}"
    if stated.suspended_until_round != due.suspended_until_round:
        ends = f"until round {stated.suspended_until_round} instead of {due.suspended_until_round}"
        return f"{stated.node} would be kept from rewards {ends}"
    if stated.stake_wei != due.stake_wei:
        more = int.from_bytes(stated.stake_wei, "big") - int.from_bytes(due.stake_wei, "big")
        return f"{stated.node} would weigh with {_emc(more)} than it has staked"
    return f"the reward of {stated.node} would be weighed otherwise, everybody else's with it"


def tell_validator(stated: ValidatorPower | None, due: ValidatorPower | None) -> str:
    """A member of the frozen set that has another power, or stands in one of the two sets only."""
    entry = stated or due
    assert entry is not None
    return f"the word of {entry.node} would weigh otherwise in the verdicts of the round"


def tell_call(code: str, terms: RoundTerms, record: tuple[Forward, Receipt | None, Delivery]) -> str:
    """A call that may not stand there as it does."""
    forward, receipt, delivery = record
    if code == "EMC-1913":
        return _tell_charge(_due_micro(terms, forward, receipt, delivery), forward.node, delivery)
    why = {
        "EMC-1911": "for records that do not belong together",
        "EMC-1912": "for a call that is not proven",
        "EMC-1914": "in a round or at a price that is not the call's",
        "EMC-1915": "a second time",
    }[code]
    earned = f"earn {format_credits_floor(delivery.vault_micro, _PLACES)} credits"
    return f"node {forward.node} would {earned if delivery.vault_micro else 'count a call more'} {why}"


def _tell_charge(due_micro: int, node: Address, delivery: Delivery) -> str:
    parts = []
    over = delivery.credits_micro - due_micro
    if over:
        parts.append(f"the caller pays {_credits(over)} than the price")
    if CallStatus(delivery.status).is_success and delivery.vault_micro > due_micro:
        parts.append(f"node {node} would earn {_credits(delivery.vault_micro - due_micro)}")
    elif over < 0 and delivery.vault_micro:
        parts.append(f"node {node} would earn that much less")
    return ", ".join(parts) or f"node {node} would earn credits that nobody bought"


def tell_root() -> str:
    return "wallets could claim what the results do not give them, or not claim what they do"


def tell_batch(signer: Address, nodes: dict[Address, int], calls: int) -> str:
    """A batch that proves nothing. Args: `nodes` what each node's calls with a record in it earn."""
    if not nodes:
        return ""
    who = f"node {next(iter(nodes))}" if len(nodes) == 1 else f"{len(nodes)} nodes"
    earned, micro = f"count {calls} calls", sum(nodes.values())
    if micro:
        earned = f"earn {format_credits_floor(micro, _PLACES)} credits for {calls} calls"
    return f"{who} would {earned} that {signer} did not sign for"


def tell_status(node: Address) -> str:
    return f"node {node} would count as online"


def tell_plan(validator: Address) -> str:
    return f"validator {validator} would be credited for probes of a plan that is not its own"


def tell_vote(validator: Address, node: Address | None) -> str:
    return f"the vote of {validator} would count in the verdict on node {node}" if node else ""


def _due_micro(terms: RoundTerms, forward: Forward, receipt: Receipt | None, delivery: Delivery) -> int:
    """The most that the call may cost."""
    if not CallStatus(delivery.status).is_success:
        return 0
    if receipt is None:
        return delivery.credits_micro
    price = price_of(terms.prices[forward.price_version], forward.model_hash)
    return charge_call_ceil(price, receipt.input_tokens, receipt.output_tokens)


def _credits(micro: int) -> str:
    word = "more" if micro > 0 else "less"
    return f"{format_credits_floor(abs(micro), _PLACES)} credits {word}"


def _emc(wei: int) -> str:
    word = "more" if wei > 0 else "less"
    return f"{format_token_floor(abs(wei), _TOKEN_PLACES)} EMC {word}"
