// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @title What the staking contract needs of the parameters.
interface IParameters {
    function staking() external view returns (address);
    function validatorRuleAt(uint64 epoch) external view returns (uint32 setSize, uint96 minimumWei);
    function stakeRuleAt(uint64 epoch, uint8 role, uint32 lockDays)
        external
        view
        returns (uint96 minimumWei, bool allowed);
    function computeLocksAt(uint64 epoch)
        external
        view
        returns (uint32[] memory lockDays, uint32[] memory multiplierBps);
}
