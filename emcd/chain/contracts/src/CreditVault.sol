// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {SafeERC20, IERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title Credits for token: the token is burnt (a fixed share may go to a treasury), the credits are an event.
contract CreditVault {
    using SafeERC20 for IERC20;

    struct Deposit {
        bytes32 account;
        address payer;
        uint96 amountWei;
        uint128 creditsMicro;
        uint64 time;
        uint64 blockNumber;
    }

    ERC20Burnable public immutable token;
    /// @notice Micro-credits for one token (1e18 wei).
    uint256 public immutable microPerToken;
    address public immutable treasury;
    uint16 public immutable treasuryBps;
    Deposit[] private _deposits;

    event CreditsBought(
        bytes32 indexed account, address indexed payer, uint256 amountWei, uint256 creditsMicro, uint256 index
    );

    error BadConfig();
    error ZeroAccount();
    error BadAmount(uint256 amountWei);
    error ZeroCredits(uint256 amountWei);

    constructor(ERC20Burnable token_, uint256 microPerToken_, address treasury_, uint16 treasuryBps_) {
        if (
            address(token_) == address(0) || microPerToken_ == 0 || microPerToken_ > 1e24 || treasuryBps_ > 10_000
                || (treasuryBps_ != 0) != (treasury_ != address(0))
        ) revert BadConfig();
        token = token_;
        microPerToken = microPerToken_;
        treasury = treasury_;
        treasuryBps = treasuryBps_;
    }

    /// @notice Buys credits for an account of a hub; needs the allowance of `amountWei`. Credits are rounded down.
    function buy(bytes32 account, uint256 amountWei) external returns (uint256 index) {
        if (account == bytes32(0)) revert ZeroAccount();
        if (amountWei > type(uint96).max) revert BadAmount(amountWei);
        uint256 creditsMicro = creditsFor(amountWei);
        if (creditsMicro == 0) revert ZeroCredits(amountWei);
        index = _deposits.length;
        _deposits.push(
            Deposit(
                account,
                msg.sender,
                uint96(amountWei),
                uint128(creditsMicro),
                uint64(block.timestamp),
                uint64(block.number)
            )
        );
        emit CreditsBought(account, msg.sender, amountWei, creditsMicro, index);
        uint256 treasuryWei = amountWei * treasuryBps / 10_000;
        if (treasuryWei != 0) IERC20(address(token)).safeTransferFrom(msg.sender, treasury, treasuryWei);
        if (amountWei != treasuryWei) token.burnFrom(msg.sender, amountWei - treasuryWei);
    }

    /// @notice The micro-credits for an amount, rounded down.
    function creditsFor(uint256 amountWei) public view returns (uint256 creditsMicro) {
        return amountWei * microPerToken / 1e18;
    }

    function depositCount() external view returns (uint256) {
        return _deposits.length;
    }

    function deposits(uint256 index) external view returns (Deposit memory) {
        return _deposits[index];
    }

    /// @notice A page of deposits, oldest first.
    function depositPage(uint256 offset, uint256 limit) external view returns (Deposit[] memory page) {
        uint256 count = _deposits.length > offset ? _deposits.length - offset : 0;
        page = new Deposit[](count < limit ? count : limit);
        for (uint256 i = 0; i < page.length; ++i) page[i] = _deposits[offset + i];
    }
}
