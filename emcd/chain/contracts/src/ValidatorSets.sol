// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {CodeStore} from "./CodeStore.sol";
import {RoundClock} from "./RoundClock.sol";

/// @title The validator set of each epoch: the largest stakes over the minimum, frozen.
/// @dev Invariant: whatever changes what a set depends on (a stake, a key, the rules) first calls `_touchSets`, takes
/// effect from an epoch that has not begun, and marks that epoch. So the set of an epoch that has begun no longer
/// depends on when it is written down, and one record serves every epoch up to the next mark. Every loop is bounded
/// by MAX_CANDIDATES, and a freeze writes at most one record for each of MAX_LEAD marks.
abstract contract ValidatorSets is RoundClock {
    /// @dev `entries` is where the words node << 96 | power are kept as code, by ascending node.
    struct SetRecord {
        uint64 fromEpoch;
        address entries;
    }

    uint256 public constant MAX_CANDIDATES = 124;
    uint256 private constant SIGNATURE_BYTES = 65;
    /// @dev How far ahead of the first unfrozen epoch a mark may stand.
    uint64 private constant MAX_LEAD = 32;

    /// @notice The first epoch that no record covers yet.
    uint64 public firstUnfrozenEpoch;
    /// @dev Bit i: the set of epoch firstUnfrozenEpoch + i may differ from that of the epoch before.
    uint32 private _marks = 1;
    SetRecord[] private _records;
    address[] private _candidates;
    mapping(address account => uint256 indexPlusOne) private _candidateAt;

    event SetFrozen(uint64 indexed fromEpoch, uint256 totalPower, uint256 size);
    event CandidateEntered(address indexed account);
    event CandidateLeft(address indexed account);

    error BadSignatures(uint256 length);
    error EpochNotBegun(uint64 epoch);
    error SignaturesUnsorted(address signer);
    error NotInSet(address signer, uint64 epoch);
    error NotACandidate(address node);

    /// @notice Writes the set of every epoch up to `epoch`, which must have begun, down; anyone may. A backlog of many
    /// changes can be written in several calls.
    function freezeSet(uint64 epoch) external {
        if (epoch >= nextEpoch()) revert EpochNotBegun(epoch);
        if (epoch >= firstUnfrozenEpoch) _freezeBefore(epoch + 1);
    }

    /// @notice The set of an epoch, by ascending node; what is not frozen yet is computed from the present state,
    /// which for an epoch still to come may change.
    function validatorSet(uint64 epoch)
        external
        view
        returns (address[] memory nodes, uint256[] memory powers, uint256 totalPower)
    {
        uint256[] memory entries = _setOf(epoch);
        nodes = new address[](entries.length);
        powers = new uint256[](entries.length);
        for (uint256 i = 0; i < entries.length; ++i) {
            nodes[i] = address(uint160(entries[i] >> 96));
            powers[i] = uint96(entries[i]);
        }
        return (nodes, powers, _sum(entries));
    }

    /// @notice The power of `signatures` over `digest` in the set of `epoch`, and the set's total.
    /// @param signatures 65 bytes each (r, s, v), by strictly ascending signer; one that is no member's reverts.
    function signedPower(uint64 epoch, bytes32 digest, bytes calldata signatures)
        public
        view
        returns (uint256 signed, uint256 total)
    {
        if (signatures.length % SIGNATURE_BYTES != 0) revert BadSignatures(signatures.length);
        uint256[] memory entries = _setOf(epoch);
        address last = address(0);
        uint256 seat = 0;
        for (uint256 i = 0; i < signatures.length; i += SIGNATURE_BYTES) {
            address signer = _recover(digest, signatures, i);
            if (signer <= last) revert SignaturesUnsorted(signer);
            last = signer;
            uint256 entry = 0;
            for (; seat < entries.length; ++seat) {
                entry = entries[seat];
                if (entry >> 96 >= uint160(signer)) break;
            }
            if (entry >> 96 != uint160(signer)) revert NotInSet(signer, epoch);
            signed += uint96(entry);
        }
        return (signed, _sum(entries));
    }

    /// @notice The accounts, by the key in force, of every stake that may get a seat.
    function candidates() external view returns (address[] memory nodes) {
        nodes = new address[](_candidates.length);
        for (uint256 i = 0; i < nodes.length; ++i) nodes[i] = _keyIn(_candidates[i], currentEpoch());
    }

    /// @dev The power an account would have in `epoch` by the present state; 0 under the minimum.
    function _powerIn(address account, uint64 epoch, uint256 minimumWei) internal view virtual returns (uint256);

    /// @dev The key that signs for an account in `epoch` by the present state.
    function _keyIn(address account, uint64 epoch) internal view virtual returns (address);

    /// @dev How many seats the set of `epoch` has, and the least stake that gets one.
    function _seatRule(uint64 epoch) internal view virtual returns (uint256 seats, uint256 minimumWei);

    /// @dev Freezes what has begun, before what it depends on changes from `epoch` on.
    function _touchSets(uint64 epoch) internal {
        _freezeBefore(nextEpoch());
        uint64 lead = epoch - firstUnfrozenEpoch;
        assert(lead < MAX_LEAD);
        _marks |= uint32(1) << uint32(lead);
    }

    /// @dev Returns false when there is no room or no power. The candidates are full only with MAX_CANDIDATES
    /// stakes; then only a larger one pushes the smallest out.
    function _enroll(address account) internal returns (bool) {
        if (_candidateAt[account] != 0) return true;
        uint64 epoch = nextEpoch();
        (, uint256 minimumWei) = _seatRule(epoch);
        uint256 power = _powerIn(account, epoch, minimumWei);
        if (power == 0) return false;
        if (_candidates.length == MAX_CANDIDATES) {
            uint256 smallest = power;
            address loser = address(0);
            for (uint256 i = 0; i < _candidates.length; ++i) {
                uint256 other = _powerIn(_candidates[i], epoch, minimumWei);
                if (other < smallest) (smallest, loser) = (other, _candidates[i]);
            }
            if (loser == address(0)) return false;
            _unenroll(loser);
        }
        _candidates.push(account);
        _candidateAt[account] = _candidates.length;
        emit CandidateEntered(account);
        return true;
    }

    function _unenroll(address account) internal {
        uint256 position = _candidateAt[account];
        if (position == 0) return;
        address last = _candidates[_candidates.length - 1];
        _candidates[position - 1] = last;
        _candidateAt[last] = position;
        _candidates.pop();
        delete _candidateAt[account];
        emit CandidateLeft(account);
    }

    function _isCandidate(address account) internal view returns (bool) {
        return _candidateAt[account] != 0;
    }

    /// @param end at least `firstUnfrozenEpoch`, at most `nextEpoch()`
    function _freezeBefore(uint64 end) internal {
        uint64 first = firstUnfrozenEpoch;
        if (end == first) return;
        uint64 count = end - first;
        uint32 marks = _marks;
        for (uint64 i = 0; i < count && i < MAX_LEAD && marks >> i != 0; ++i) {
            if ((marks >> i) & 1 != 0) _record(first + i);
        }
        _marks = count < MAX_LEAD ? marks >> count : 0;
        firstUnfrozenEpoch = end;
    }

    function _record(uint64 epoch) private {
        uint256[] memory entries = _select(epoch);
        _records.push(SetRecord(epoch, CodeStore.writeWords(entries)));
        emit SetFrozen(epoch, _sum(entries), entries.length);
    }

    /// @dev The epochs asked for are nearly always new: records are searched from the newest back, then by halves.
    function _setOf(uint64 epoch) private view returns (uint256[] memory) {
        uint64 first = firstUnfrozenEpoch;
        if (epoch >= first) {
            uint64 ahead = epoch - first;
            uint32 upTo = ahead < MAX_LEAD - 1 ? (uint32(2) << uint32(ahead)) - 1 : type(uint32).max;
            if (_marks & upTo != 0) return _select(epoch);
        }
        uint256 high = _records.length;
        uint256 low = high - 1;
        for (uint256 step = 1; low > 0 && _records[low].fromEpoch > epoch; step *= 2) {
            high = low;
            low = low > step ? low - step : 0;
        }
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (_records[middle].fromEpoch <= epoch) low = middle;
            else high = middle;
        }
        return CodeStore.readWords(_records[low].entries);
    }

    /// @dev The largest powers for the seats, ties to the lower node.
    function _select(uint64 epoch) private view returns (uint256[] memory entries) {
        (uint256 seats, uint256 minimumWei) = _seatRule(epoch);
        uint256 count = 0;
        uint256[] memory keys = new uint256[](_candidates.length);
        for (uint256 i = 0; i < keys.length; ++i) {
            address account = _candidates[i];
            uint256 power = _powerIn(account, epoch, minimumWei);
            if (power != 0) keys[count++] = (power << 160) | uint160(~uint160(_keyIn(account, epoch)));
        }
        entries = new uint256[](count < seats ? count : seats);
        for (uint256 i = 0; i < entries.length; ++i) {
            uint256 best = i;
            for (uint256 j = i + 1; j < count; ++j) if (keys[j] > keys[best]) best = j;
            (keys[i], keys[best]) = (keys[best], keys[i]);
            uint256 entry = (uint256(uint160(~uint160(keys[i]))) << 96) | (keys[i] >> 160);
            uint256 slot = i;
            for (; slot > 0 && entries[slot - 1] > entry; --slot) entries[slot] = entries[slot - 1];
            entries[slot] = entry;
        }
    }

    /// @dev The signer of the 65 bytes from `start` on, which the caller knows are there.
    function _recover(bytes32 digest, bytes calldata signatures, uint256 start) private pure returns (address) {
        bytes32 r;
        bytes32 s;
        uint8 v;
        assembly ("memory-safe") {
            let position := add(signatures.offset, start)
            r := calldataload(position)
            s := calldataload(add(position, 0x20))
            v := byte(0, calldataload(add(position, 0x40)))
        }
        return ECDSA.recover(digest, v, r, s);
    }

    function _sum(uint256[] memory entries) private pure returns (uint256 total) {
        for (uint256 i = 0; i < entries.length; ++i) total += uint96(entries[i]);
    }
}
