// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @title The bound on what may be issued: a table of periods, loose by at most one wei a round.
abstract contract EmissionSchedule {
    /// @dev `beforeWei`: the sum of all earlier rounds.
    struct Period {
        uint64 startRound;
        uint96 weiPerRound;
        uint96 beforeWei;
    }

    /// @notice All that is ever issued.
    uint256 public immutable capWei;
    Period[] private _periods;

    error BadSchedule(uint256 index);

    constructor(uint256 capWei_, uint64[] memory startRounds, uint96[] memory weiPerRoundCeil) {
        if (startRounds.length == 0 || startRounds.length != weiPerRoundCeil.length || startRounds[0] != 0) {
            revert BadSchedule(0);
        }
        capWei = capWei_;
        uint256 beforeWei = 0;
        for (uint256 i = 0; i < startRounds.length; ++i) {
            if (i > 0) {
                if (startRounds[i] <= startRounds[i - 1]) revert BadSchedule(i);
                beforeWei += uint256(weiPerRoundCeil[i - 1]) * (startRounds[i] - startRounds[i - 1]);
            }
            if (beforeWei > type(uint96).max) revert BadSchedule(i);
            _periods.push(Period(startRounds[i], weiPerRoundCeil[i], uint96(beforeWei)));
        }
    }

    /// @notice The most that rounds 0 to `round` may issue together.
    function scheduledWei(uint64 round) public view returns (uint256) {
        uint256 low = 0;
        uint256 high = _periods.length;
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (_periods[middle].startRound <= round) low = middle;
            else high = middle;
        }
        Period memory period = _periods[low];
        uint256 sumWei = period.beforeWei + (uint256(round) - period.startRound + 1) * period.weiPerRound;
        return sumWei < capWei ? sumWei : capWei;
    }

    function periods() external view returns (Period[] memory) {
        return _periods;
    }
}
