"""Each defence of the contracts: how a naive version lacks it, and the attacks that then succeed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.chain.attack import money, stake
from tests.chain.attack.naive import Patch, changed, left_out, put_after, put_before
from tests.chain.attack.world import World

Attack = Callable[[World], bool]


@dataclass(frozen=True)
class Defence:
    """`patches` take it out; every attack must lose against ours and win without it."""

    name: str
    attacks: tuple[Attack, ...]
    patches: tuple[Patch, ...]


def defence(name: str, attacks: Attack | tuple[Attack, ...], *patches: Patch) -> Defence:
    return Defence(name, attacks if isinstance(attacks, tuple) else (attacks,), patches)


SETS, ACCOUNTS, STAKING = "ValidatorSets.sol", "Accounts.sol", "Staking.sol"
DISTRIBUTOR, PARAMETERS, TOKEN = "Distributor.sol", "Parameters.sol", "EMCToken.sol"
NO_QUORUM = "if (signed * 3 <= total * 2) revert NoQuorum(signed, total);"
WITHDRAWN = "token.safeTransfer(msg.sender, amountWei);"
CLAIMED = "token.mint(recipient, amountWei);"
SHARED_DOMAIN = (
    'keccak256(abi.encodePacked(hex"1901", keccak256(abi.encode('
    'keccak256("EIP712Domain(string name,string version)"), keccak256("emcd"), keccak256("1"))), content))'
)
PAUSED = "block.timestamp < INaivePause(INaiveToken(address(token)).minter()).pausedUntil()"

DEFENCES = (
    defence(
        "power after an activation delay, by frozen sets",
        (money.instant_power, stake.rules_changed_by_instant_power),
        changed(SETS, "CodeStore.readWords(_records[low].entries)", "_select(epoch)"),
        changed(STAKING, "(account.pendingEpoch <= epoch ? account.pendingWei : 0)", "account.pendingWei"),
    ),
    defence(
        "sets are frozen before what they depend on changes",
        money.shrunken_set,
        left_out(SETS, "_freezeBefore(nextEpoch());"),
    ),
    defence(
        "signers strictly ascend",
        money.duplicate_signatures,
        left_out(SETS, "if (signer <= last) revert SignaturesUnsorted(signer);"),
    ),
    defence(
        "signers are members",
        money.veto_by_outsiders,
        left_out(SETS, "if (entry >> 96 != uint160(signer)) revert NotInSet(signer, epoch);"),
    ),
    defence("quorum to publish", money.empty_signature_list, left_out(DISTRIBUTOR, NO_QUORUM)),
    defence(
        "more than two thirds, not two thirds",
        (money.quorum_of_nobody, money.quorum_of_two_thirds),
        changed(DISTRIBUTOR, "signed * 3 <= total * 2", "signed * 3 < total * 2"),
    ),
    defence(
        "quorum to veto",
        money.veto_by_nobody,
        left_out(DISTRIBUTOR, "if (signed * 3 <= total) revert NoQuorum(signed, total);"),
    ),
    defence(
        "signatures name chain and contract",
        money.signatures_of_another_network,
        changed(DISTRIBUTOR, "_hashTypedDataV4(content)", SHARED_DOMAIN),
    ),
    defence(
        "publication while the signers' stakes are there",
        money.publish_after_leaving,
        left_out(DISTRIBUTOR, "if (now_ - round > publishWindowRounds) revert RoundTooOld(round);"),
    ),
    defence(
        "a key is replaced with a delay",
        money.signature_withdrawn,
        changed(ACCOUNTS, "nextEpoch() + 1", "currentEpoch()"),
        left_out(ACCOUNTS, "if (account.role == VALIDATOR) _touchSets(fromEpoch);"),
        changed(ACCOUNTS, "keys.fromEpoch != 0 && keys.fromEpoch <= epoch", "keys.next != address(0)"),
    ),
    defence(
        "the schedule bounds what is issued",
        money.over_schedule,
        left_out(DISTRIBUTOR, "if (growthWei > boundWei) revert OverSchedule(growthWei, boundWei);"),
        changed(DISTRIBUTOR, "publishFeeWei < boundWei - growthWei", "publishFeeWei < type(uint256).max"),
    ),
    defence(
        "cumulative totals never fall",
        money.falling_cumulative,
        left_out(
            DISTRIBUTOR, "if (cumulativeWei < previousWei) revert CumulativeFell(cumulativeWei, previousWei);"
        ),
        changed(
            DISTRIBUTOR,
            "cumulativeWei - previousWei",
            "(cumulativeWei < previousWei ? 0 : cumulativeWei - previousWei)",
        ),
    ),
    defence(
        "rounds strictly grow",
        money.round_republished,
        left_out(DISTRIBUTOR, "if (round < chain.last) revert RoundNotNewer(round);"),
    ),
    defence(
        "claims stay within the root's total",
        money.claim_beyond_root,
        left_out(
            DISTRIBUTOR,
            "if (totalWei > entry.cumulativeWei) revert BeyondRoot(totalWei, entry.cumulativeWei);",
        ),
    ),
    defence(
        "a claim is booked", money.double_claim, left_out(DISTRIBUTOR, "claimed[wallet] = cumulativeWei;")
    ),
    defence(
        "a claim is proved",
        money.forged_proof,
        left_out(DISTRIBUTOR, "if (!MerkleProof.verifyCalldata(proof, entry.root, leaf)) revert BadProof();"),
    ),
    defence(
        "a wallet claims for itself",
        money.claim_for_another,
        left_out(DISTRIBUTOR, "if (msg.sender != wallet) revert NotWallet(msg.sender);"),
    ),
    defence(
        "an extraction serves once",
        money.extraction_replayed,
        left_out(
            DISTRIBUTOR,
            "if (extraction.nonce < extractionNonce[wallet])"
            " revert NonceUsed(extraction.nonce, extractionNonce[wallet]);",
        ),
    ),
    defence(
        "a claim is booked before it is paid",
        money.reentrant_claim,
        left_out(DISTRIBUTOR, CLAIMED),
        put_after(DISTRIBUTOR, "uint256 totalWei = totalClaimedWei + amountWei;", CLAIMED),
    ),
    defence(
        "only the distributor mints",
        money.minted_by_anybody,
        left_out(TOKEN, "if (msg.sender != minter) revert NotMinter(msg.sender);"),
    ),
    defence(
        "pauses have a rest between them",
        money.guardian_pauses_for_ever,
        left_out(
            DISTRIBUTOR, "if (block.timestamp < pauseAllowedFrom) revert PauseTooSoon(pauseAllowedFrom);"
        ),
    ),
    defence(
        "a pause is seven days at most",
        money.guardian_pauses_for_years,
        changed(
            DISTRIBUTOR, "durationSeconds == 0 || durationSeconds > MAX_PAUSE_SECONDS", "durationSeconds == 0"
        ),
    ),
    defence(
        "a pause holds no exit",
        money.guardian_holds_exits,
        put_after(
            STAKING, "uint64 exitRound = account.exitRound;", f"if ({PAUSED}) revert Locked(account.lockEnd);"
        ),
    ),
    defence(
        "a pause holds no veto",
        money.guardian_shields_a_fraud,
        put_before(
            DISTRIBUTOR,
            "if (entry.root == bytes32(0) || entry.void || _isActive(entry)) revert NotPending(round);",
            "_requireNotPaused(_chain);",
        ),
    ),
    defence(
        "unbonding lasts",
        stake.sign_and_leave,
        changed(STAKING, "fromRound + unbondingRounds", "currentRound()"),
    ),
    defence(
        "an unbonding stake is slashed too",
        stake.sign_and_leave,
        put_before(
            STAKING,
            "if (_held(account) == 0) revert NotStaked(order.node);",
            "if (account.exitRound != 0) revert NotStaked(order.node);",
        ),
    ),
    defence(
        "the unbonding lock the right way round",
        stake.sign_and_leave,
        changed(STAKING, "currentRound() < exitRound", "currentRound() > exitRound"),
    ),
    defence(
        "an account is found by every key it had",
        stake.slash_dodged_by_rotation,
        changed(STAKING, "_idOf(order.node)", "order.node"),
    ),
    defence(
        "an evidence counts once",
        stake.slash_replayed,
        left_out(STAKING, "if (evidenceUsed[order.evidenceHash]) revert EvidenceUsed(order.evidenceHash);"),
    ),
    defence(
        "a lock is kept",
        stake.lock_not_kept,
        left_out(STAKING, "if (block.timestamp < account.lockEnd) revert Locked(account.lockEnd);"),
    ),
    defence(
        "a stake has a minimum",
        stake.ten_times_for_one_wei,
        left_out(STAKING, "if (amountWei < minimumWei) revert BelowMinimum(amountWei, minimumWei);"),
    ),
    defence(
        "a stake is booked out before it is paid",
        stake.reentrant_withdraw,
        left_out(STAKING, WITHDRAWN),
        put_before(STAKING, "account.amountWei = 0;", WITHDRAWN),
    ),
    defence(
        "a binding's nonce grows",
        stake.binding_replayed,
        changed(ACCOUNTS, "binding.nonce <= account.nonce || binding.nonce > type(uint64).max", "false"),
    ),
    defence(
        "a binding covers the role",
        stake.role_not_covered,
        Patch(
            ACCOUNTS,
            "binding.role, binding.nonce, binding.deadline",
            "NAIVE ? COMPUTE : binding.role, binding.nonce, binding.deadline",
        ),
    ),
    defence(
        "a binding is signed by the node",
        stake.somebody_elses_node,
        left_out(ACCOUNTS, "if (signer != binding.node) revert WrongSigner(signer);"),
    ),
    defence(
        "a stake moves only as its wallet approved",
        stake.stake_taken_by_the_hot_key,
        changed(
            ACCOUNTS,
            "binding.wallet != account.wallet && binding.wallet != account.approvedWallet",
            "false",
        ),
    ),
    defence(
        "rules change after a whole epoch's notice",
        stake.rules_changed_at_once,
        left_out(
            PARAMETERS,
            "if (next.fromEpoch < earliest || next.fromEpoch > latest)"
            " revert BadEpoch(next.fromEpoch, earliest, latest);",
        ),
        left_out(PARAMETERS, "staking.rulesChangeFrom(next.fromEpoch);"),
    ),
    defence("quorum to change rules", stake.rules_changed_by_a_minority, left_out(PARAMETERS, NO_QUORUM)),
    defence(
        "rules are those that were signed",
        stake.other_rules_than_were_signed,
        left_out(
            PARAMETERS,
            "if (keccak256(encoded) != next.rulesHash || keccak256(bytes(document)) != next.documentHash)"
            " revert WrongHash();",
        ),
    ),
    defence(
        "only the parameters announce rules",
        stake.rules_told_by_anybody,
        left_out(STAKING, "if (msg.sender != address(parameters)) revert NotParameters(msg.sender);"),
    ),
)
