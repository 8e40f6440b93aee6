// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @notice A wallet that is a contract: does what it is told, and repeats its last order when token arrive.
contract Thief {
    address private _target;
    bytes private _order;
    uint256 private _repeats;

    function run(address target, bytes calldata order, uint256 repeats) external {
        _target = target;
        _order = order;
        _repeats = repeats;
        _call();
    }

    function onToken() external {
        if (_repeats == 0) return;
        --_repeats;
        _call();
    }

    function _call() private {
        (bool done, bytes memory answer) = _target.call(_order);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }
}
