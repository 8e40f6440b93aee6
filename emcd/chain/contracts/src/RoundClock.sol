// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @title The network's clock: round k = floor((t - genesisTime) / roundSeconds), epoch = k / epochRounds.
/// @dev Its bounds keep every time and round of centuries within 40 bits, where others pack them. Before genesis the current round and epoch read 0, and `nextEpoch` is 0: what is staked then counts at once.
abstract contract RoundClock {
    uint64 private constant MAX_ROUND_SECONDS = 7 days;
    uint64 private constant MAX_EPOCH_ROUNDS = type(uint16).max;

    uint64 public immutable genesisTime;
    uint64 public immutable roundSeconds;
    uint64 public immutable epochRounds;

    error BadClock();

    constructor(uint64 genesisTime_, uint64 roundSeconds_, uint64 epochRounds_) {
        if (
            roundSeconds_ == 0 || roundSeconds_ > MAX_ROUND_SECONDS || epochRounds_ == 0
                || epochRounds_ > MAX_EPOCH_ROUNDS || genesisTime_ > type(uint32).max
                || genesisTime_ % roundSeconds_ != 0
        ) revert BadClock();
        genesisTime = genesisTime_;
        roundSeconds = roundSeconds_;
        epochRounds = epochRounds_;
    }

    function started() public view returns (bool) {
        return block.timestamp >= genesisTime;
    }

    function currentRound() public view returns (uint64) {
        return started() ? uint64((block.timestamp - genesisTime) / roundSeconds) : 0;
    }

    function currentEpoch() public view returns (uint64) {
        return currentRound() / epochRounds;
    }

    /// @notice The first epoch that has not begun.
    function nextEpoch() public view returns (uint64) {
        return started() ? currentEpoch() + 1 : 0;
    }
}
