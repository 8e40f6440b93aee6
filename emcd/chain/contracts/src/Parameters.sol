// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {CodeStore} from "./CodeStore.sol";
import {IStaking} from "./IStaking.sol";

/// @title What the quorum may change: the rules of staking, and the document with every other parameter.
/// @notice A version is in force from the start of its epoch, known at least one whole epoch before. The clock, the
/// unbonding and the challenge delay are none of it: they protect stakers and claimants from this very quorum.
/// @dev Invariants: versions ascend in number and epoch; what is in force in an epoch that has begun never changes.
contract Parameters is EIP712 {
    struct RoleRule {
        uint96 minimumWei;
        uint32 lockDays; // compute: ignored, its lock is chosen from the table
    }

    struct Rules {
        uint32 setSize;
        RoleRule[4] roles; // compute, router, validator, hub
        uint32[] computeLockDays; // ascending, from 0
        uint32[] computeMultiplierBps;
    }

    struct Change {
        uint64 version;
        uint64 fromEpoch;
        bytes32 rulesHash;
        bytes32 documentHash;
    }

    struct Version {
        uint64 version;
        uint64 fromEpoch;
        uint64 blockNumber;
        bytes32 rulesHash;
        bytes32 documentHash;
    }

    /// @dev `rules` is where the ABI-encoded Rules are kept as code.
    struct Entry {
        uint48 fromEpoch;
        uint48 blockNumber;
        address rules;
        bytes32 rulesHash;
        bytes32 documentHash;
    }

    uint256 public constant MAX_DOCUMENT_BYTES = 16_384;
    /// @notice How far ahead of the next epoch a change may be decided.
    uint64 public constant MAX_LEAD_EPOCHS = 16;
    uint32 public constant MAX_SET_SIZE = 31;
    uint32 public constant MAX_LOCK_DAYS = 3_650;
    uint256 public constant MAX_LOCKS = 32;
    uint32 public constant MAX_MULTIPLIER_BPS = 1_000_000;
    /// @notice No minimum may be so high that the supply can't fill a set, which nobody could ever change back.
    uint96 public constant MAX_MINIMUM_WEI = 10_000_000e18;

    uint8 private constant COMPUTE = 1;
    uint8 private constant VALIDATOR = 3;
    uint8 private constant HUB = 4;
    bytes32 private constant CHANGE_TYPEHASH =
        keccak256("ParametersChange(uint64 version,uint64 fromEpoch,bytes32 rulesHash,bytes32 documentHash)");

    IStaking public immutable staking;
    Entry[] private _entries;

    event ParametersChanged(
        uint64 indexed version, uint64 indexed fromEpoch, bytes32 rulesHash, bytes32 documentHash, string document
    );

    error NotStarted();
    error WrongVersion(uint64 version, uint64 next);
    error BadEpoch(uint64 fromEpoch, uint64 earliest, uint64 latest);
    error WrongHash();
    error DocumentTooLong(uint256 length);
    error BadRules();
    error BadRole(uint8 role);
    error NoQuorum(uint256 signed, uint256 total);
    error NoVersion(uint64 number);

    /// @param staking_ the staking contract's address, known before its creation (CREATE of deployer and nonce)
    constructor(IStaking staking_, Rules memory rules, string memory document) EIP712("emcd", "1") {
        staking = staking_;
        bytes memory encoded = abi.encode(rules);
        _add(Change(1, 0, keccak256(encoded), keccak256(bytes(document))), rules, encoded, document);
    }

    /// @notice Decides a version, by more than 2/3 of the frozen power of the current epoch; anyone may send it.
    function change(Change calldata next, Rules calldata rules, string calldata document, bytes calldata signatures)
        external
    {
        if (!staking.started()) revert NotStarted();
        if (next.version != _entries.length + 1) revert WrongVersion(next.version, uint64(_entries.length) + 1);
        uint64 latest = staking.nextEpoch() + MAX_LEAD_EPOCHS;
        uint64 earliest = staking.nextEpoch() + 1;
        uint64 lastEpoch = _entries[_entries.length - 1].fromEpoch;
        if (earliest <= lastEpoch) earliest = lastEpoch + 1;
        if (next.fromEpoch < earliest || next.fromEpoch > latest) revert BadEpoch(next.fromEpoch, earliest, latest);
        bytes memory encoded = abi.encode(rules);
        if (keccak256(encoded) != next.rulesHash || keccak256(bytes(document)) != next.documentHash) revert WrongHash();
        bytes32 digest = _hashTypedDataV4(
            keccak256(
                abi.encode(CHANGE_TYPEHASH, next.version, next.fromEpoch, next.rulesHash, next.documentHash)
            )
        );
        (uint256 signed, uint256 total) = staking.signedPower(staking.currentEpoch(), digest, signatures);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
        staking.rulesChangeFrom(next.fromEpoch);
        _add(next, rules, encoded, document);
    }

    // ------------------------------------------------------------------------------------------ views

    function versionCount() external view returns (uint64) {
        return uint64(_entries.length);
    }

    function version(uint64 number) public view returns (Version memory) {
        if (number == 0 || number > _entries.length) revert NoVersion(number);
        Entry storage entry = _entries[number - 1];
        return Version(number, entry.fromEpoch, entry.blockNumber, entry.rulesHash, entry.documentHash);
    }

    /// @notice The version in force in an epoch, by what is decided so far.
    function versionAt(uint64 epoch) external view returns (Version memory) {
        return version(uint64(_indexAt(epoch)) + 1);
    }

    function rulesAt(uint64 epoch) public view returns (Rules memory) {
        return abi.decode(CodeStore.read(_entries[_indexAt(epoch)].rules), (Rules));
    }

    function validatorRuleAt(uint64 epoch) external view returns (uint32 setSize, uint96 minimumWei) {
        Rules memory rules = rulesAt(epoch);
        return (rules.setSize, rules.roles[VALIDATOR - 1].minimumWei);
    }

    /// @notice What a stake of a role needs in an epoch, and whether it may be locked for so many days.
    function stakeRuleAt(uint64 epoch, uint8 role, uint32 lockDays)
        external
        view
        returns (uint96 minimumWei, bool allowed)
    {
        if (role < COMPUTE || role > HUB) revert BadRole(role);
        Rules memory rules = rulesAt(epoch);
        minimumWei = rules.roles[role - 1].minimumWei;
        if (role != COMPUTE) return (minimumWei, lockDays == rules.roles[role - 1].lockDays);
        for (uint256 i = 0; i < rules.computeLockDays.length; ++i) {
            if (rules.computeLockDays[i] == lockDays) return (minimumWei, true);
        }
    }

    function computeLocksAt(uint64 epoch)
        external
        view
        returns (uint32[] memory lockDays, uint32[] memory multiplierBps)
    {
        Rules memory rules = rulesAt(epoch);
        return (rules.computeLockDays, rules.computeMultiplierBps);
    }

    // ------------------------------------------------------------------------------------------ parts

    function _add(Change memory next, Rules memory rules, bytes memory encoded, string memory document) private {
        _requireSound(rules);
        if (bytes(document).length > MAX_DOCUMENT_BYTES) revert DocumentTooLong(bytes(document).length);
        _entries.push(
            Entry(
                uint48(next.fromEpoch), uint48(block.number), CodeStore.write(encoded), next.rulesHash, next.documentHash
            )
        );
        emit ParametersChanged(next.version, next.fromEpoch, next.rulesHash, next.documentHash, document);
    }

    function _requireSound(Rules memory rules) private pure {
        uint256 locks = rules.computeLockDays.length;
        if (
            rules.setSize % 3 != 1 || rules.setSize > MAX_SET_SIZE || locks == 0 || locks > MAX_LOCKS
                || locks != rules.computeMultiplierBps.length || rules.computeLockDays[0] != 0
                || rules.computeMultiplierBps[0] == 0 || rules.computeLockDays[locks - 1] > MAX_LOCK_DAYS
                || rules.computeMultiplierBps[locks - 1] > MAX_MULTIPLIER_BPS
                || rules.roles[COMPUTE - 1].minimumWei == 0 || rules.roles[VALIDATOR - 1].minimumWei == 0
        ) revert BadRules();
        for (uint256 i = 0; i < 4; ++i) {
            if (rules.roles[i].minimumWei > MAX_MINIMUM_WEI || rules.roles[i].lockDays > MAX_LOCK_DAYS) revert BadRules();
        }
        for (uint256 i = 1; i < locks; ++i) {
            if (
                rules.computeLockDays[i] <= rules.computeLockDays[i - 1]
                    || rules.computeMultiplierBps[i] < rules.computeMultiplierBps[i - 1]
            ) revert BadRules();
        }
    }

    /// @dev The epochs asked for are nearly always new: from the newest back, then by halves.
    function _indexAt(uint64 epoch) private view returns (uint256 low) {
        uint256 high = _entries.length;
        low = high - 1;
        for (uint256 step = 1; low > 0 && _entries[low].fromEpoch > epoch; step *= 2) {
            high = low;
            low = low > step ? low - step : 0;
        }
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (_entries[middle].fromEpoch <= epoch) low = middle;
            else high = middle;
        }
    }
}
