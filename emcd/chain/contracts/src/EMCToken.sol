// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title The EMC token: 900 million at genesis, 100 million that only the distributor mints.
/// @dev Burnt token never make room for new ones: the bound is on what was ever minted.
contract EMCToken is ERC20, ERC20Burnable, ERC20Permit {
    uint256 public constant GENESIS_WEI = 900_000_000e18;
    uint256 public constant MINTABLE_WEI = 100_000_000e18;

    /// @notice The distributor; fixed for ever.
    address public immutable minter;
    /// @notice What the minter has minted so far.
    uint256 public mintedWei;

    error ZeroMinter();
    error LengthMismatch();
    error GenesisSum(uint256 sumWei);
    error NotMinter(address caller);
    error MintBound(uint256 mintedWei, uint256 amountWei);

    /// @param minter_ the distributor's address, known before its creation (CREATE of deployer and nonce)
    constructor(address minter_, address[] memory holders, uint256[] memory amountsWei)
        ERC20("EMC", "EMC")
        ERC20Permit("emcd")
    {
        if (minter_ == address(0)) revert ZeroMinter();
        if (holders.length != amountsWei.length) revert LengthMismatch();
        minter = minter_;
        for (uint256 i = 0; i < holders.length; ++i) _mint(holders[i], amountsWei[i]);
        if (totalSupply() != GENESIS_WEI) revert GenesisSum(totalSupply());
    }

    function mint(address to, uint256 amountWei) external {
        if (msg.sender != minter) revert NotMinter(msg.sender);
        if (amountWei > MINTABLE_WEI - mintedWei) revert MintBound(mintedWei, amountWei);
        mintedWei += amountWei;
        _mint(to, amountWei);
    }
}
