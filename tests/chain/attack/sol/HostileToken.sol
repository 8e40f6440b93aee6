// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";

interface IRecipient {
    function onToken() external;
}

/// @notice A token that calls who receives it, before the payer has gone on: what ERC-777 did.
contract HostileToken is ERC20Burnable {
    uint256 public constant MINTABLE_WEI = 100_000_000e18;
    address public minter;

    constructor(address minter_, address[] memory holders, uint256[] memory amountsWei) ERC20("Hostile", "HOT") {
        minter = minter_;
        for (uint256 i = 0; i < holders.length; ++i) _mint(holders[i], amountsWei[i]);
    }

    function mint(address to, uint256 amountWei) external {
        _mint(to, amountWei);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (to.code.length != 0) {
            try IRecipient(to).onToken() {} catch {}
        }
    }
}
