// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {RoundClock} from "./RoundClock.sol";

/// @title The validator set of each epoch: the largest stakes over the minimum, frozen.
/// @dev Invariant: whatever changes a validator's stake first calls `_touchSets`, and takes effect from the next
/// epoch. So the set of an epoch that has begun no longer depends on when it is written down, and one record
/// serves every epoch up to the next change. Every loop is bounded by CANDIDATES_PER_SEAT * setSize.
abstract contract ValidatorSets is RoundClock {
    /// @dev `entries` are node << 96 | power, ascending.
    struct SetRecord {
        uint64 fromEpoch;
        uint96 totalPower;
        uint256[] entries;
    }

    uint256 public constant CANDIDATES_PER_SEAT = 4;
    uint32 public constant MAX_SET_SIZE = 31;

    uint32 public immutable setSize;
    /// @notice The first epoch that no record covers yet.
    uint64 public firstUnfrozenEpoch;
    bool private _changed;
    SetRecord[] private _records;
    address[] private _candidates;
    mapping(address node => uint256 indexPlusOne) private _candidateAt;

    event SetFrozen(uint64 indexed fromEpoch, uint256 totalPower, uint256 size);
    event CandidateEntered(address indexed node);
    event CandidateLeft(address indexed node);

    error BadSetSize(uint32 setSize);
    error EpochNotBegun(uint64 epoch);
    error SignaturesUnsorted(address signer);
    error NotInSet(address signer, uint64 epoch);
    error NotACandidate(address node);

    constructor(uint32 setSize_) {
        if (setSize_ % 3 != 1 || setSize_ > MAX_SET_SIZE) revert BadSetSize(setSize_);
        setSize = setSize_;
    }

    /// @notice Writes the set of every epoch begun so far down; anyone may.
    function freezeSet(uint64 epoch) external {
        if (epoch >= nextEpoch()) revert EpochNotBegun(epoch);
        if (epoch >= firstUnfrozenEpoch) _freeze();
    }

    /// @notice The set of an epoch, by ascending node; what is not frozen yet is computed from the present state,
    /// which for an epoch still to come may change.
    function validatorSet(uint64 epoch)
        external
        view
        returns (address[] memory nodes, uint256[] memory powers, uint256 totalPower)
    {
        uint256[] memory entries;
        (entries, totalPower) = _setOf(epoch);
        nodes = new address[](entries.length);
        powers = new uint256[](entries.length);
        for (uint256 i = 0; i < entries.length; ++i) {
            nodes[i] = address(uint160(entries[i] >> 96));
            powers[i] = uint96(entries[i]);
        }
    }

    /// @notice The power of `signatures` over `digest` in the set of `epoch`, and the set's total.
    /// @param signatures 65 bytes each, by strictly ascending signer; one that is no member's reverts.
    function signedPower(uint64 epoch, bytes32 digest, bytes[] calldata signatures)
        public
        view
        returns (uint256 signed, uint256 total)
    {
        uint256[] memory entries;
        (entries, total) = _setOf(epoch);
        address last = address(0);
        uint256 seat = 0;
        for (uint256 i = 0; i < signatures.length; ++i) {
            address signer = ECDSA.recoverCalldata(digest, signatures[i]);
            if (signer <= last) revert SignaturesUnsorted(signer);
            last = signer;
            while (seat < entries.length && address(uint160(entries[seat] >> 96)) < signer) ++seat;
            if (seat == entries.length || address(uint160(entries[seat] >> 96)) != signer) {
                revert NotInSet(signer, epoch);
            }
            signed += uint96(entries[seat]);
        }
    }

    /// @notice Every stake that may get a seat.
    function candidates() external view returns (address[] memory) {
        return _candidates;
    }

    /// @notice Brings a stake that was pushed out of the candidates back, if it is larger than the smallest there.
    function enroll(address node) external {
        _touchSets();
        if (_candidateAt[node] != 0 || !_enroll(node)) revert NotACandidate(node);
    }

    /// @dev The power a node would have in `epoch` by the present state; 0 under the minimum.
    function _powerIn(address node, uint64 epoch) internal view virtual returns (uint256);

    /// @dev Freezes what has begun, before its state changes.
    function _touchSets() internal {
        if (nextEpoch() > firstUnfrozenEpoch) _freeze();
        _changed = true;
    }

    /// @dev Returns false when there is no room or no power. The candidates are full only with
    /// CANDIDATES_PER_SEAT stakes over the minimum for each seat; then only a larger one pushes the smallest out.
    function _enroll(address node) internal returns (bool) {
        if (_candidateAt[node] != 0) return true;
        uint64 epoch = nextEpoch();
        uint256 power = _powerIn(node, epoch);
        if (power == 0) return false;
        if (_candidates.length == CANDIDATES_PER_SEAT * setSize) {
            uint256 smallest = power;
            address loser = address(0);
            for (uint256 i = 0; i < _candidates.length; ++i) {
                uint256 other = _powerIn(_candidates[i], epoch);
                if (other < smallest) (smallest, loser) = (other, _candidates[i]);
            }
            if (loser == address(0)) return false;
            _unenroll(loser);
        }
        _candidates.push(node);
        _candidateAt[node] = _candidates.length;
        emit CandidateEntered(node);
        return true;
    }

    function _unenroll(address node) internal {
        uint256 position = _candidateAt[node];
        if (position == 0) return;
        address last = _candidates[_candidates.length - 1];
        _candidates[position - 1] = last;
        _candidateAt[last] = position;
        _candidates.pop();
        delete _candidateAt[node];
        emit CandidateLeft(node);
    }

    function _freeze() private {
        uint64 next = nextEpoch();
        if (_changed || _records.length == 0) {
            (uint256[] memory entries, uint256 total) = _select(next - 1);
            _records.push(SetRecord(firstUnfrozenEpoch, uint96(total), entries));
            _changed = false;
            emit SetFrozen(firstUnfrozenEpoch, total, entries.length);
        }
        firstUnfrozenEpoch = next;
    }

    function _setOf(uint64 epoch) private view returns (uint256[] memory, uint256) {
        if (epoch >= firstUnfrozenEpoch && (_changed || _records.length == 0)) return _select(epoch);
        uint256 low = 0;
        uint256 high = _records.length;
        while (high - low > 1) {
            uint256 middle = (low + high) / 2;
            if (_records[middle].fromEpoch <= epoch) low = middle;
            else high = middle;
        }
        return (_records[low].entries, _records[low].totalPower);
    }

    /// @dev The `setSize` largest powers, ties to the lower address.
    function _select(uint64 epoch) private view returns (uint256[] memory entries, uint256 total) {
        uint256 count = 0;
        uint256[] memory keys = new uint256[](_candidates.length);
        for (uint256 i = 0; i < keys.length; ++i) {
            uint256 power = _powerIn(_candidates[i], epoch);
            if (power != 0) keys[count++] = (power << 160) | uint160(~uint160(_candidates[i]));
        }
        entries = new uint256[](count < setSize ? count : setSize);
        for (uint256 i = 0; i < entries.length; ++i) {
            uint256 best = i;
            for (uint256 j = i + 1; j < count; ++j) if (keys[j] > keys[best]) best = j;
            (keys[i], keys[best]) = (keys[best], keys[i]);
            total += keys[i] >> 160;
            uint256 entry = (uint256(uint160(~uint160(keys[i]))) << 96) | (keys[i] >> 160);
            uint256 slot = i;
            for (; slot > 0 && entries[slot - 1] > entry; --slot) entries[slot] = entries[slot - 1];
            entries[slot] = entry;
        }
    }
}
