// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {CodeStore} from "./CodeStore.sol";

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
    /// @dev Where the words startRound << 192 | weiPerRound << 96 | beforeWei are kept as code.
    address private immutable _table;

    error BadSchedule(uint256 index);

    constructor(uint256 capWei_, uint64[] memory startRounds, uint96[] memory weiPerRoundCeil) {
        if (startRounds.length == 0 || startRounds.length != weiPerRoundCeil.length || startRounds[0] != 0) {
            revert BadSchedule(0);
        }
        capWei = capWei_;
        uint256 beforeWei = 0;
        uint256[] memory words = new uint256[](startRounds.length);
        for (uint256 i = 0; i < startRounds.length; ++i) {
            if (i > 0) {
                if (startRounds[i] <= startRounds[i - 1]) revert BadSchedule(i);
                beforeWei += uint256(weiPerRoundCeil[i - 1]) * (startRounds[i] - startRounds[i - 1]);
            }
            if (beforeWei > type(uint96).max) revert BadSchedule(i);
            words[i] = (uint256(startRounds[i]) << 192) | (uint256(weiPerRoundCeil[i]) << 96) | beforeWei;
        }
        _table = CodeStore.writeWords(words);
    }

    /// @notice The most that rounds 0 to `round` may issue together.
    function scheduledWei(uint64 round) public view returns (uint256) {
        return _scheduledWei(CodeStore.readWords(_table), round);
    }

    function periods() external view returns (Period[] memory list) {
        uint256[] memory words = CodeStore.readWords(_table);
        list = new Period[](words.length);
        for (uint256 i = 0; i < words.length; ++i) list[i] = _period(words[i]);
    }

    /// @dev The most that rounds `first` to `last` may issue together.
    function _scheduledBetween(uint64 first, uint64 last) internal view returns (uint256) {
        uint256[] memory words = CodeStore.readWords(_table);
        return _scheduledWei(words, last) - (first == 0 ? 0 : _scheduledWei(words, first - 1));
    }

    function _scheduledWei(uint256[] memory words, uint64 round) private view returns (uint256) {
        uint256 low = 0;
        uint256 high = words.length;
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (words[middle] >> 192 <= round) low = middle;
            else high = middle;
        }
        Period memory period = _period(words[low]);
        uint256 sumWei = period.beforeWei + (uint256(round) - period.startRound + 1) * period.weiPerRound;
        return sumWei < capWei ? sumWei : capWei;
    }

    function _period(uint256 word) private pure returns (Period memory) {
        return Period(uint64(word >> 192), uint96(word >> 96), uint96(word));
    }
}
