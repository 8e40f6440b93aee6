// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

/// @title What the distributor and the parameters need of the staking contract.
interface IStaking {
    function token() external view returns (address);
    function genesisTime() external view returns (uint64);
    function roundSeconds() external view returns (uint64);
    function epochRounds() external view returns (uint64);
    function unbondingRounds() external view returns (uint64);
    function challengeDelayRounds() external view returns (uint64);
    function currentEpoch() external view returns (uint64);
    function nextEpoch() external view returns (uint64);
    function started() external view returns (bool);
    function freezeSet(uint64 epoch) external;
    function rulesChangeFrom(uint64 epoch) external;
    function signedPower(uint64 epoch, bytes32 digest, bytes calldata signatures)
        external
        view
        returns (uint256 signed, uint256 total);
}
