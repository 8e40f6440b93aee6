// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {RoundClock} from "./RoundClock.sol";

/// @title What was published: pending, then active by the clock alone, unless it was made void before.
/// @dev Publications that are not void form a chain from the oldest to `tip`, linked both ways. Those up to `active`
/// are active, those from `head` to `tip` were pending when last looked at: `_advance` catches up, from `head` on.
abstract contract RootChain is RoundClock {
    enum RootState {
        NONE,
        PENDING,
        ACTIVE,
        VOID
    }

    struct Publication {
        RootState state;
        bytes32 bundleHash;
        bytes32 root;
        uint256 cumulativeWei;
        uint64 activeAt;
        address publisher;
        uint256 feeWei;
        bool feePaid;
    }

    /// @dev Links, and keys in Chain, are rounds plus one: 0 is none. One slot for a publication's course.
    struct Entry {
        bytes32 root;
        bytes32 bundleHash;
        address publisher;
        uint96 feeWei;
        uint96 cumulativeWei;
        uint40 publishedAt;
        uint40 previous;
        uint40 next;
        bool void;
        bool feePaid;
    }

    /// @dev One slot: all that a claim needs to find its root.
    struct Chain {
        uint40 last; // the newest publication, void or not
        uint40 tip; // the newest that is not void
        uint40 active; // the newest that is known to be active
        uint40 head; // the one after it, 0 when there is none
        uint40 headActiveAt;
        uint40 pausedUntil;
        uint8 pending; // how many from head to tip
    }

    uint256 public constant MAX_PENDING = 16;

    uint64 public immutable challengeDelayRounds;
    Chain internal _chain;
    mapping(uint64 round => Entry) internal _entries;

    event RoundVoided(uint64 indexed round, uint64 indexed vetoedRound);

    constructor(uint64 challengeDelayRounds_) {
        challengeDelayRounds = challengeDelayRounds_;
    }

    /// @notice The newest root that can be claimed from; root 0 when there is none.
    function activeRoot()
        external
        view
        returns (uint64 round, bytes32 root, bytes32 bundleHash, uint256 cumulativeWei)
    {
        uint64 key = _advance().active;
        if (key == 0) return (0, 0, 0, 0);
        Entry storage entry = _entries[key - 1];
        return (key - 1, entry.root, entry.bundleHash, entry.cumulativeWei);
    }

    function published(uint64 round) external view returns (Publication memory) {
        Entry storage entry = _entries[round];
        RootState state = RootState.NONE;
        if (entry.root != bytes32(0)) {
            state = entry.void ? RootState.VOID : _isActive(entry) ? RootState.ACTIVE : RootState.PENDING;
        }
        return Publication({
            state: state,
            bundleHash: entry.bundleHash,
            root: entry.root,
            cumulativeWei: entry.cumulativeWei,
            activeAt: state == RootState.NONE ? 0 : _activeAt(entry.publishedAt),
            publisher: entry.publisher,
            feeWei: entry.feeWei,
            feePaid: entry.feePaid
        });
    }

    /// @notice The newest round ever published, void or not.
    function lastRound() external view returns (bool exists, uint64 round) {
        uint64 key = _chain.last;
        return key == 0 ? (false, 0) : (true, key - 1);
    }

    /// @notice The newest publication that is not void: the one that the next builds upon.
    function tipRound() external view returns (bool exists, uint64 round) {
        uint64 key = _chain.tip;
        return key == 0 ? (false, 0) : (true, key - 1);
    }

    /// @dev The chain as it is now: what has become active since it was last written is counted so.
    function _advance() internal view returns (Chain memory chain) {
        chain = _chain;
        while (chain.head != 0 && block.timestamp >= chain.headActiveAt) {
            chain.active = chain.head;
            chain.head = chain.active == chain.tip ? 0 : _entries[chain.active - 1].next;
            --chain.pending;
            if (chain.head != 0) chain.headActiveAt = uint40(_activeAt(_entries[chain.head - 1].publishedAt));
        }
    }

    /// @dev Puts a publication of now at the chain's end; returns when it becomes active.
    function _append(Chain memory chain, uint40 key) internal returns (uint64 activeAt) {
        activeAt = _activeAt(uint40(block.timestamp));
        if (chain.tip != 0) _entries[chain.tip - 1].next = key;
        if (chain.head == 0) (chain.head, chain.headActiveAt) = (key, uint40(activeAt));
        (chain.last, chain.tip, chain.pending) = (key, key, chain.pending + 1);
        _chain = chain;
    }

    /// @dev Voids a pending publication and all after it.
    function _voidFrom(uint64 round) internal {
        Chain memory chain = _advance();
        do {
            Entry storage last = _entries[chain.tip - 1];
            last.void = true;
            emit RoundVoided(chain.tip - 1, round);
            chain.tip = last.previous;
            --chain.pending;
        } while (chain.tip > round);
        if (chain.tip == chain.active) chain.head = 0;
        _chain = chain;
    }

    function _isActive(Entry storage entry) internal view returns (bool) {
        return block.timestamp >= _activeAt(entry.publishedAt);
    }

    function _activeAt(uint40 publishedAt) internal view returns (uint64) {
        return publishedAt + challengeDelayRounds * roundSeconds;
    }
}
