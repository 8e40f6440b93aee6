// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {SafeERC20, IERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Accounts} from "./Accounts.sol";
import {IParameters} from "./IParameters.sol";
import {RoundClock} from "./RoundClock.sol";

/// @title Stakes: locked, unbonding, slashable by the quorum. No owner, no proxy.
/// @dev Invariant: the token balance is never less than `totalStakedWei`, the sum of all accounts' stakes.
contract Staking is Accounts {
    using SafeERC20 for IERC20;

    struct Config {
        address token;
        address parameters;
        uint64 genesisTime;
        uint64 roundSeconds;
        uint64 epochRounds;
        uint64 unbondingRounds;
        uint64 challengeDelayRounds;
        uint64 daySeconds;
    }

    struct Slash {
        address node;
        uint16 bps;
        bytes32 evidenceHash;
        uint64 epoch;
    }

    struct Participant {
        address node; // the key in force
        address wallet;
        uint8 role;
        uint256 stakeWei; // what weighs now
        uint256 pendingWei; // what weighs from the next epoch
        uint32 lockDays;
        uint32 multiplierBps; // that of lockDays while the lock runs, then the one of no lock
        uint64 activeFromEpoch;
        uint64 exitRound; // 0, or the round from which the stake can be withdrawn
        uint64 nonce;
        string endpoint;
        uint64 lockEnd;
        uint256 unbondingWei;
        address account; // its first key
        address nextNode; // the key that a rotation brings, while it waits
        uint64 nextFromEpoch; // 0 when none waits
    }

    uint32 public constant BASE_BPS = 10_000;
    uint16 public constant MAX_SLASH_BPS = 5_000;
    /// @notice How many rounds unbonding must outlast the challenge delay, so that evidence finds a stake.
    uint64 public constant EVIDENCE_ROUNDS = 12;

    uint64 private constant MAX_UNBONDING_ROUNDS = type(uint16).max;
    bytes32 private constant SLASH_TYPEHASH =
        keccak256("Slash(address node,uint16 bps,bytes32 evidenceHash,uint64 epoch)");

    IERC20 public immutable token;
    IParameters public immutable parameters;
    uint64 public immutable unbondingRounds;
    uint64 public immutable challengeDelayRounds;
    uint64 public immutable daySeconds;

    /// @notice All that this contract owes: its token balance is never less.
    uint256 public totalStakedWei;
    mapping(bytes32 evidenceHash => bool) public evidenceUsed;

    event Staked(
        address indexed node, address indexed wallet, uint256 amountWei, uint32 lockDays, uint64 lockEnd, uint64 fromEpoch
    );
    event ToppedUp(address indexed node, uint256 amountWei, uint64 lockEnd, uint64 fromEpoch);
    event Extended(address indexed node, uint32 lockDays, uint64 lockEnd);
    event ExitRequested(address indexed node, uint256 amountWei, uint64 exitRound);
    event Withdrawn(address indexed node, address indexed wallet, uint256 amountWei);
    event Slashed(
        address indexed node, bytes32 indexed evidenceHash, uint64 indexed epoch, uint16 bps, uint256 amountWei
    );

    error BadConfig();
    error NotParameters(address caller);
    error AlreadyStaked(address node);
    error BelowMinimum(uint256 amountWei, uint256 minimumWei);
    error BadAmount(uint256 amountWei);
    error BadLock(uint32 lockDays);
    error Locked(uint64 lockEnd);
    error LockNotLonger(uint64 lockEnd);
    error BadSlashBps(uint16 bps);
    error EvidenceUsed(bytes32 evidenceHash);
    error WrongEpoch(uint64 epoch);
    error NoQuorum(uint256 signed, uint256 total);

    constructor(Config memory config)
        RoundClock(config.genesisTime, config.roundSeconds, config.epochRounds)
    {
        if (
            config.token == address(0) || config.daySeconds == 0 || config.daySeconds > 1 days
                || config.challengeDelayRounds == 0 || config.unbondingRounds > MAX_UNBONDING_ROUNDS
                || config.unbondingRounds < config.challengeDelayRounds + EVIDENCE_ROUNDS
                || IParameters(config.parameters).staking() != address(this)
        ) revert BadConfig();
        token = IERC20(config.token);
        parameters = IParameters(config.parameters);
        unbondingRounds = config.unbondingRounds;
        challengeDelayRounds = config.challengeDelayRounds;
        daySeconds = config.daySeconds;
    }

    // ------------------------------------------------------------------------------------------ stake

    /// @notice Stakes for a node that holds nothing; a validator's weighs from the next epoch, others' at once.
    function stake(address node, uint256 amountWei, uint32 lockDays) external {
        (address id, Account storage account) = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) != 0) revert AlreadyStaked(node);
        bool validator = account.role == VALIDATOR;
        uint64 fromEpoch = validator ? nextEpoch() : currentEpoch();
        uint256 minimumWei = _requireLock(account.role, fromEpoch, lockDays);
        if (amountWei < minimumWei) revert BelowMinimum(amountWei, minimumWei);
        uint96 amount = _requireAmount(amountWei);
        if (validator) _touchSets(fromEpoch);
        (account.amountWei, account.pendingWei) = validator ? (uint96(0), amount) : (amount, uint96(0));
        account.pendingEpoch = fromEpoch;
        account.activeFromEpoch = uint40(fromEpoch);
        account.lockDays = lockDays;
        account.lockEnd = _lockEnd(lockDays);
        if (validator) _enroll(id);
        _receive(amount);
        emit Staked(_keyIn(id, currentEpoch()), msg.sender, amountWei, lockDays, account.lockEnd, fromEpoch);
    }

    /// @notice Adds to a stake: weighs from the next epoch, and the whole stake's lock begins anew.
    function topUp(address node, uint256 amountWei) external {
        (address id, Account storage account) = _ownActive(node);
        uint96 amount = _requireAmount(amountWei);
        uint64 fromEpoch = nextEpoch();
        bool validator = account.role == VALIDATOR;
        if (validator) _touchSets(fromEpoch);
        if (account.pendingEpoch <= currentEpoch()) {
            account.amountWei += account.pendingWei;
            account.pendingWei = 0;
        }
        account.pendingWei += amount;
        account.pendingEpoch = fromEpoch;
        uint40 lockEnd = _lockEnd(account.lockDays);
        if (lockEnd > account.lockEnd) account.lockEnd = lockEnd;
        if (validator) _enroll(id);
        _receive(amount);
        emit ToppedUp(_keyIn(id, currentEpoch()), amountWei, account.lockEnd, fromEpoch);
    }

    /// @notice Locks anew, from now and for longer than the present lock still lasts.
    function extend(address node, uint32 lockDays) external {
        (address id, Account storage account) = _ownActive(node);
        _requireLock(account.role, account.role == VALIDATOR ? nextEpoch() : currentEpoch(), lockDays);
        uint40 lockEnd = _lockEnd(lockDays);
        if (lockEnd <= account.lockEnd) revert LockNotLonger(account.lockEnd);
        account.lockDays = lockDays;
        account.lockEnd = lockEnd;
        emit Extended(_keyIn(id, currentEpoch()), lockDays, lockEnd);
    }

    /// @notice Starts the unbonding, once the lock is over. A validator serves its epoch to the end, and its unbonding
    /// counts from there; every other role weighs nothing from now.
    function requestExit(address node) external {
        (address id, Account storage account) = _ownActive(node);
        if (block.timestamp < account.lockEnd) revert Locked(account.lockEnd);
        uint64 fromRound = currentRound();
        if (account.role == VALIDATOR) {
            _touchSets(nextEpoch());
            _unenroll(id);
            fromRound = nextEpoch() * epochRounds;
        }
        account.exitRound = uint40(fromRound + unbondingRounds);
        emit ExitRequested(_keyIn(id, currentEpoch()), _held(account), account.exitRound);
    }

    /// @notice Pays the unbonded stake back to the bound wallet.
    function withdraw(address node) external {
        (address id, Account storage account) = _own(node);
        uint64 exitRound = account.exitRound;
        if (exitRound == 0) revert NotStaked(node);
        if (currentRound() < exitRound) revert StillUnbonding(node, exitRound);
        uint256 amountWei = _held(account);
        account.amountWei = 0;
        account.pendingWei = 0;
        account.pendingEpoch = 0;
        account.lockDays = 0;
        account.lockEnd = 0;
        account.exitRound = 0;
        account.activeFromEpoch = 0;
        if (account.approvedWallet != address(0)) account.approvedWallet = address(0);
        totalStakedWei -= amountWei;
        emit Withdrawn(_keyIn(id, currentEpoch()), msg.sender, amountWei);
        token.safeTransfer(msg.sender, amountWei);
    }

    /// @notice Brings a stake that was pushed out of the candidates back, if it is larger than the smallest there.
    function enroll(address node) external {
        address id = _idOf(node);
        _touchSets(nextEpoch());
        if (_isCandidate(id) || !_enroll(id)) revert NotACandidate(node);
    }

    /// @notice Burns a share of a stake, unbonding or not, by more than 2/3 of the frozen power of this epoch or the
    /// one before; any key that the account had names it. Each evidence counts once.
    function slash(Slash calldata order, bytes calldata signatures) external {
        if (order.bps == 0 || order.bps > MAX_SLASH_BPS) revert BadSlashBps(order.bps);
        if (evidenceUsed[order.evidenceHash]) revert EvidenceUsed(order.evidenceHash);
        if (order.epoch >= nextEpoch() || order.epoch + 1 < currentEpoch()) revert WrongEpoch(order.epoch);
        address id = _idOf(order.node);
        Account storage account = _accounts[id];
        if (_held(account) == 0) revert NotStaked(order.node);
        bytes32 digest = _hashTypedDataV4(
            keccak256(abi.encode(SLASH_TYPEHASH, order.node, order.bps, order.evidenceHash, order.epoch))
        );
        bool validator = account.role == VALIDATOR;
        if (validator) _touchSets(nextEpoch());
        else _freezeBefore(nextEpoch());
        (uint256 signed, uint256 total) = signedPower(order.epoch, digest, signatures);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
        evidenceUsed[order.evidenceHash] = true;
        uint96 fromAmount = uint96(uint256(account.amountWei) * order.bps / BASE_BPS);
        uint96 fromPending = uint96(uint256(account.pendingWei) * order.bps / BASE_BPS);
        account.amountWei -= fromAmount;
        account.pendingWei -= fromPending;
        uint256 amountWei = uint256(fromAmount) + fromPending;
        totalStakedWei -= amountWei;
        if (validator) {
            (, uint256 minimumWei) = _seatRule(nextEpoch());
            if (_powerIn(id, nextEpoch(), minimumWei) == 0) _unenroll(id);
        }
        emit Slashed(order.node, order.evidenceHash, order.epoch, order.bps, amountWei);
        ERC20Burnable(address(token)).burn(amountWei);
    }

    /// @notice The parameters tell that the rules change, before they do.
    function rulesChangeFrom(uint64 epoch) external {
        if (msg.sender != address(parameters)) revert NotParameters(msg.sender);
        _touchSets(epoch);
    }

    // ------------------------------------------------------------------------------------------ views

    function participantCount() external view returns (uint256) {
        return _ids.length;
    }

    /// @notice A page of the registry, in no particular order; read all pages at one block.
    function participants(uint256 offset, uint256 limit) external view returns (Participant[] memory page) {
        uint256 count = _ids.length > offset ? _ids.length - offset : 0;
        page = new Participant[](count < limit ? count : limit);
        (uint32[] memory lockDays, uint32[] memory multiplierBps) = parameters.computeLocksAt(currentEpoch());
        for (uint256 i = 0; i < page.length; ++i) page[i] = _describe(_ids[offset + i], lockDays, multiplierBps);
    }

    /// @notice One participant, by any key it had; wallet 0 when it is not bound.
    function participant(address node) external view returns (Participant memory) {
        (uint32[] memory lockDays, uint32[] memory multiplierBps) = parameters.computeLocksAt(currentEpoch());
        return _describe(_idOf(node), lockDays, multiplierBps);
    }

    // ------------------------------------------------------------------------------------------ parts

    function _powerIn(address id, uint64 epoch, uint256 minimumWei) internal view override returns (uint256 power) {
        Account storage account = _accounts[id];
        if (account.role != VALIDATOR || account.exitRound != 0) return 0;
        power = uint256(account.amountWei) + (account.pendingEpoch <= epoch ? account.pendingWei : 0);
        if (power < minimumWei) return 0;
    }

    function _seatRule(uint64 epoch) internal view override returns (uint256, uint256) {
        return parameters.validatorRuleAt(epoch);
    }

    function _describe(address id, uint32[] memory lockDays, uint32[] memory multiplierBps)
        private
        view
        returns (Participant memory found)
    {
        Account storage account = _accounts[id];
        bool matured = account.pendingEpoch <= currentEpoch();
        bool serving = account.exitRound == 0
            || (account.role == VALIDATOR && currentRound() + unbondingRounds < account.exitRound);
        found.node = _keyIn(id, currentEpoch());
        found.wallet = account.wallet;
        found.role = account.role;
        found.stakeWei = serving ? uint256(account.amountWei) + (matured ? account.pendingWei : 0) : 0;
        found.pendingWei = account.exitRound == 0 && !matured ? account.pendingWei : 0;
        found.lockDays = account.lockDays;
        found.activeFromEpoch = account.activeFromEpoch;
        found.exitRound = account.exitRound;
        found.nonce = account.nonce;
        found.endpoint = account.endpoint;
        found.lockEnd = account.lockEnd;
        found.unbondingWei = account.exitRound == 0 ? 0 : _held(account);
        found.account = id;
        found.nextFromEpoch = _waitingFrom(id, account);
        if (found.nextFromEpoch != 0) found.nextNode = _keys[id].next;
        uint32 held = block.timestamp < account.lockEnd ? account.lockDays : 0;
        found.multiplierBps = account.role == COMPUTE ? _multiplierBps(held, lockDays, multiplierBps) : BASE_BPS;
    }

    /// @dev The lock's multiplier pays for being locked: over, it counts as 0 days. A lock that is no longer in the
    /// table counts as the longest of the table that is not longer.
    function _multiplierBps(uint32 held, uint32[] memory lockDays, uint32[] memory multiplierBps)
        private
        pure
        returns (uint32 bps)
    {
        for (uint256 i = 0; i < lockDays.length && lockDays[i] <= held; ++i) bps = multiplierBps[i];
    }

    function _requireLock(uint8 role, uint64 epoch, uint32 lockDays) private view returns (uint256) {
        (uint96 minimumWei, bool allowed) = parameters.stakeRuleAt(epoch, role, lockDays);
        if (!allowed) revert BadLock(lockDays);
        return minimumWei;
    }

    function _requireAmount(uint256 amountWei) private pure returns (uint96) {
        if (amountWei == 0 || amountWei > type(uint96).max) revert BadAmount(amountWei);
        return uint96(amountWei);
    }

    function _lockEnd(uint32 lockDays) private view returns (uint40) {
        return uint40(block.timestamp + uint256(lockDays) * daySeconds);
    }

    function _receive(uint96 amountWei) private {
        totalStakedWei += amountWei;
        token.safeTransferFrom(msg.sender, address(this), amountWei);
    }
}
