// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @title Data kept as the code of a contract: read at one price whatever its size, and never written again.
library CodeStore {
    error StoreFailed();

    /// @dev The code begins with STOP, so that nobody runs the data. At most 24,575 bytes (EIP-170).
    function write(bytes memory data) internal returns (address pointer) {
        bytes memory creation = abi.encodePacked(hex"61", uint16(data.length + 1), hex"80600a3d393df300", data);
        assembly ("memory-safe") {
            pointer := create(0, add(creation, 0x20), mload(creation))
        }
        if (pointer == address(0)) revert StoreFailed();
    }

    function read(address pointer) internal view returns (bytes memory data) {
        assembly ("memory-safe") {
            let size := sub(extcodesize(pointer), 1)
            data := mload(0x40)
            mstore(0x40, add(data, and(add(size, 0x3f), not(0x1f))))
            mstore(data, size)
            extcodecopy(pointer, add(data, 0x20), 1, size)
        }
    }

    function writeWords(uint256[] memory words) internal returns (address pointer) {
        return write(abi.encodePacked(words));
    }

    function readWords(address pointer) internal view returns (uint256[] memory words) {
        bytes memory data = read(pointer);
        assembly ("memory-safe") {
            words := data
            mstore(words, shr(5, mload(data)))
        }
    }
}
