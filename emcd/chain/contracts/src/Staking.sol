// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {SafeERC20, IERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {RoundClock} from "./RoundClock.sol";
import {ValidatorSets} from "./ValidatorSets.sol";

/// @title Who takes part: bindings, endpoints, stakes, validator sets, slashing. No owner, no proxy.
/// @notice A node key proves itself and signs; the wallet bound to it owns the stake and the rewards. With the node
/// key alone nobody moves a stake, with the wallet alone nobody claims another's node.
contract Staking is ValidatorSets, EIP712 {
    using SafeERC20 for IERC20;

    struct RoleRule {
        uint96 minimumWei;
        uint32 lockDays; // compute: ignored, its lock is chosen from the table
    }

    struct Config {
        address token;
        uint64 genesisTime;
        uint64 roundSeconds;
        uint64 epochRounds;
        uint64 unbondingRounds;
        uint64 challengeDelayRounds;
        uint32 setSize;
        uint64 daySeconds;
        RoleRule[4] roles; // compute, router, validator, hub
        uint32[] computeLockDays; // ascending, from 0
        uint32[] computeMultiplierBps;
    }

    struct Binding {
        address node;
        address wallet;
        uint8 role;
        uint256 nonce;
        uint256 deadline;
    }

    struct Slash {
        address node;
        uint16 bps;
        bytes32 evidenceHash;
        uint64 epoch;
    }

    struct Participant {
        address node;
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
    }

    struct Account {
        address wallet;
        uint8 role;
        uint64 nonce;
        uint96 amountWei;
        uint96 pendingWei;
        uint64 pendingEpoch;
        uint32 lockDays;
        uint64 lockEnd;
        uint64 exitRound;
        uint64 activeFromEpoch;
        address approvedWallet;
        uint64 indexPlusOne;
        string endpoint;
    }

    uint8 public constant COMPUTE = 1;
    uint8 public constant ROUTER = 2;
    uint8 public constant VALIDATOR = 3;
    uint8 public constant HUB = 4;
    uint32 public constant BASE_BPS = 10_000;
    uint16 public constant MAX_SLASH_BPS = 5_000;
    uint256 public constant MAX_ENDPOINT_BYTES = 200;
    /// @notice How many rounds unbonding must outlast the challenge delay, so that evidence finds a stake.
    uint64 public constant EVIDENCE_ROUNDS = 12;

    bytes32 private constant BINDING_TYPEHASH =
        keccak256("Binding(address node,address wallet,uint8 role,uint256 nonce,uint256 deadline)");
    bytes32 private constant SLASH_TYPEHASH =
        keccak256("Slash(address node,uint16 bps,bytes32 evidenceHash,uint64 epoch)");

    IERC20 public immutable token;
    uint64 public immutable unbondingRounds;
    uint64 public immutable challengeDelayRounds;
    uint64 public immutable daySeconds;

    /// @notice All that this contract owes: its token balance is never less.
    uint256 public totalStakedWei;
    mapping(bytes32 evidenceHash => bool) public evidenceUsed;
    RoleRule[4] private _roles;
    uint32[] private _computeLockDays;
    uint32[] private _computeMultiplierBps;
    address[] private _nodes;
    mapping(address node => Account) private _accounts;

    event Bound(address indexed node, address indexed wallet, uint8 indexed role, uint256 nonce);
    event Released(address indexed node, address indexed wallet);
    event WalletApproved(address indexed node, address indexed wallet, address indexed newWallet);
    event EndpointSet(address indexed node, string endpoint);
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
    error BadRole(uint8 role);
    error NotWallet(address caller);
    error NodeIsWallet(address node);
    error Expired(uint256 deadline);
    error NonceUsed(uint256 nonce, uint256 last);
    error WrongSigner(address signer);
    error NotBound(address node);
    error StakeBound(address node);
    error StillUnbonding(address node, uint64 exitRound);
    error NotStaked(address node);
    error AlreadyStaked(address node);
    error BelowMinimum(uint256 amountWei, uint256 minimumWei);
    error BadAmount(uint256 amountWei);
    error BadLock(uint32 lockDays);
    error Locked(uint64 lockEnd);
    error LockNotLonger(uint64 lockEnd);
    error EndpointTooLong(uint256 length);
    error BadSlashBps(uint16 bps);
    error EvidenceUsed(bytes32 evidenceHash);
    error WrongEpoch(uint64 epoch);
    error NoQuorum(uint256 signed, uint256 total);

    constructor(Config memory config)
        EIP712("emcd", "1")
        RoundClock(config.genesisTime, config.roundSeconds, config.epochRounds)
        ValidatorSets(config.setSize)
    {
        if (
            config.token == address(0) || config.daySeconds == 0 || config.challengeDelayRounds == 0
                || config.unbondingRounds < config.challengeDelayRounds + EVIDENCE_ROUNDS
                || config.roles[VALIDATOR - 1].minimumWei == 0 || config.computeLockDays.length == 0
                || config.computeLockDays.length != config.computeMultiplierBps.length || config.computeLockDays[0] != 0
        ) revert BadConfig();
        for (uint256 i = 1; i < config.computeLockDays.length; ++i) {
            if (config.computeLockDays[i] <= config.computeLockDays[i - 1]) revert BadConfig();
        }
        token = IERC20(config.token);
        unbondingRounds = config.unbondingRounds;
        challengeDelayRounds = config.challengeDelayRounds;
        daySeconds = config.daySeconds;
        for (uint256 i = 0; i < 4; ++i) _roles[i] = config.roles[i];
        _computeLockDays = config.computeLockDays;
        _computeMultiplierBps = config.computeMultiplierBps;
    }

    // ------------------------------------------------------------------------------------------ identity

    /// @notice Binds a node to the sender: the node's key signed it, the sender's transaction is the consent.
    /// @dev A staked node keeps its role, and moves to another wallet only if its present one approved that wallet.
    function bind(Binding calldata binding, bytes calldata nodeSignature) external {
        Account storage account = _accounts[binding.node];
        if (msg.sender != binding.wallet) revert NotWallet(msg.sender);
        if (binding.node == binding.wallet) revert NodeIsWallet(binding.node);
        if (binding.role < COMPUTE || binding.role > HUB) revert BadRole(binding.role);
        if (block.timestamp > binding.deadline) revert Expired(binding.deadline);
        if (binding.nonce <= account.nonce || binding.nonce > type(uint64).max) {
            revert NonceUsed(binding.nonce, account.nonce);
        }
        address signer = ECDSA.recoverCalldata(
            _hashTypedDataV4(
                keccak256(
                    abi.encode(
                        BINDING_TYPEHASH, binding.node, binding.wallet, binding.role, binding.nonce, binding.deadline
                    )
                )
            ),
            nodeSignature
        );
        if (signer != binding.node) revert WrongSigner(signer);
        if (account.exitRound != 0) revert StillUnbonding(binding.node, account.exitRound);
        if (_held(account) != 0) {
            if (binding.role != account.role) revert BadRole(binding.role);
            if (binding.wallet != account.wallet && binding.wallet != account.approvedWallet) {
                revert StakeBound(binding.node);
            }
        }
        if (account.indexPlusOne == 0) {
            _nodes.push(binding.node);
            account.indexPlusOne = uint64(_nodes.length);
        }
        account.wallet = binding.wallet;
        account.role = binding.role;
        account.nonce = uint64(binding.nonce);
        account.approvedWallet = address(0);
        emit Bound(binding.node, binding.wallet, binding.role, binding.nonce);
    }

    /// @notice The bound wallet allows `newWallet` to take the node, and its stake with it, by a new binding. 0 revokes.
    function approveWallet(address node, address newWallet) external {
        Account storage account = _own(node);
        account.approvedWallet = newWallet;
        emit WalletApproved(node, msg.sender, newWallet);
    }

    /// @notice Ends a binding that holds no stake. The nonce stays: no old binding comes back.
    function release(address node) external {
        Account storage account = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) != 0) revert StakeBound(node);
        uint64 position = account.indexPlusOne;
        address last = _nodes[_nodes.length - 1];
        _nodes[position - 1] = last;
        _accounts[last].indexPlusOne = position;
        _nodes.pop();
        uint64 nonce = account.nonce;
        delete _accounts[node];
        _accounts[node].nonce = nonce;
        emit Released(node, msg.sender);
    }

    /// @notice Publishes where the participant is reached; its wallet or its node key may. Readers must not trust it.
    function setEndpoint(address node, string calldata endpoint) external {
        Account storage account = _accounts[node];
        if (account.wallet == address(0)) revert NotBound(node);
        if (msg.sender != account.wallet && msg.sender != node) revert NotWallet(msg.sender);
        if (bytes(endpoint).length > MAX_ENDPOINT_BYTES) revert EndpointTooLong(bytes(endpoint).length);
        account.endpoint = endpoint;
        emit EndpointSet(node, endpoint);
    }

    // ------------------------------------------------------------------------------------------ stake

    /// @notice Stakes for a node that holds nothing; a validator's weighs from the next epoch, others' at once.
    function stake(address node, uint256 amountWei, uint32 lockDays) external {
        Account storage account = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) != 0) revert AlreadyStaked(node);
        uint256 minimumWei = _roles[account.role - 1].minimumWei;
        if (amountWei < minimumWei) revert BelowMinimum(amountWei, minimumWei);
        _requireLock(account.role, lockDays);
        uint96 amount = _requireAmount(amountWei);
        bool validator = account.role == VALIDATOR;
        if (validator) _touchSets();
        uint64 fromEpoch = validator ? nextEpoch() : currentEpoch();
        (account.amountWei, account.pendingWei) = validator ? (uint96(0), amount) : (amount, uint96(0));
        account.pendingEpoch = fromEpoch;
        account.activeFromEpoch = fromEpoch;
        account.lockDays = lockDays;
        account.lockEnd = _lockEnd(lockDays);
        if (validator) _enroll(node);
        _receive(amount);
        emit Staked(node, msg.sender, amountWei, lockDays, account.lockEnd, fromEpoch);
    }

    /// @notice Adds to a stake: weighs from the next epoch, and the whole stake's lock begins anew.
    function topUp(address node, uint256 amountWei) external {
        Account storage account = _ownActive(node);
        uint96 amount = _requireAmount(amountWei);
        bool validator = account.role == VALIDATOR;
        if (validator) _touchSets();
        if (account.pendingEpoch <= currentEpoch()) {
            account.amountWei += account.pendingWei;
            account.pendingWei = 0;
        }
        account.pendingWei += amount;
        account.pendingEpoch = nextEpoch();
        uint64 lockEnd = _lockEnd(account.lockDays);
        if (lockEnd > account.lockEnd) account.lockEnd = lockEnd;
        if (validator) _enroll(node);
        _receive(amount);
        emit ToppedUp(node, amountWei, account.lockEnd, account.pendingEpoch);
    }

    /// @notice Locks anew, from now and for longer than the present lock still lasts.
    function extend(address node, uint32 lockDays) external {
        Account storage account = _ownActive(node);
        _requireLock(account.role, lockDays);
        uint64 lockEnd = _lockEnd(lockDays);
        if (lockEnd <= account.lockEnd) revert LockNotLonger(account.lockEnd);
        account.lockDays = lockDays;
        account.lockEnd = lockEnd;
        emit Extended(node, lockDays, lockEnd);
    }

    /// @notice Starts the unbonding, once the lock is over. A validator serves its epoch to the end, and its unbonding
    /// counts from there; every other role weighs nothing from now.
    function requestExit(address node) external {
        Account storage account = _ownActive(node);
        if (block.timestamp < account.lockEnd) revert Locked(account.lockEnd);
        uint64 fromRound = currentRound();
        if (account.role == VALIDATOR) {
            _touchSets();
            _unenroll(node);
            fromRound = nextEpoch() * epochRounds;
        }
        account.exitRound = fromRound + unbondingRounds;
        emit ExitRequested(node, _held(account), account.exitRound);
    }

    /// @notice Pays the unbonded stake back to the bound wallet.
    function withdraw(address node) external {
        Account storage account = _own(node);
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
        account.approvedWallet = address(0);
        totalStakedWei -= amountWei;
        token.safeTransfer(msg.sender, amountWei);
        emit Withdrawn(node, msg.sender, amountWei);
    }

    /// @notice Burns a share of a stake, unbonding or not, by more than 2/3 of the frozen power of this epoch or the
    /// one before. Each evidence counts once.
    function slash(Slash calldata order, bytes[] calldata signatures) external {
        if (order.bps == 0 || order.bps > MAX_SLASH_BPS) revert BadSlashBps(order.bps);
        if (evidenceUsed[order.evidenceHash]) revert EvidenceUsed(order.evidenceHash);
        if (order.epoch >= nextEpoch() || order.epoch + 1 < currentEpoch()) revert WrongEpoch(order.epoch);
        Account storage account = _accounts[order.node];
        if (_held(account) == 0) revert NotStaked(order.node);
        _touchSets();
        bytes32 digest = _hashTypedDataV4(
            keccak256(abi.encode(SLASH_TYPEHASH, order.node, order.bps, order.evidenceHash, order.epoch))
        );
        (uint256 signed, uint256 total) = signedPower(order.epoch, digest, signatures);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
        evidenceUsed[order.evidenceHash] = true;
        uint96 fromAmount = uint96(uint256(account.amountWei) * order.bps / BASE_BPS);
        uint96 fromPending = uint96(uint256(account.pendingWei) * order.bps / BASE_BPS);
        account.amountWei -= fromAmount;
        account.pendingWei -= fromPending;
        uint256 amountWei = uint256(fromAmount) + fromPending;
        totalStakedWei -= amountWei;
        if (account.role == VALIDATOR && _powerIn(order.node, nextEpoch()) == 0) _unenroll(order.node);
        ERC20Burnable(address(token)).burn(amountWei);
        emit Slashed(order.node, order.evidenceHash, order.epoch, order.bps, amountWei);
    }

    // ------------------------------------------------------------------------------------------ views

    function participantCount() external view returns (uint256) {
        return _nodes.length;
    }

    /// @notice A page of the registry, in no particular order; read all pages at one block.
    function participants(uint256 offset, uint256 limit) external view returns (Participant[] memory page) {
        uint256 count = _nodes.length > offset ? _nodes.length - offset : 0;
        page = new Participant[](count < limit ? count : limit);
        for (uint256 i = 0; i < page.length; ++i) page[i] = participant(_nodes[offset + i]);
    }

    /// @notice One participant; wallet 0 when the node is not bound.
    function participant(address node) public view returns (Participant memory) {
        Account storage account = _accounts[node];
        bool matured = account.pendingEpoch <= currentEpoch();
        bool serving = account.exitRound == 0
            || (account.role == VALIDATOR && currentRound() + unbondingRounds < account.exitRound);
        return Participant({
            node: node,
            wallet: account.wallet,
            role: account.role,
            stakeWei: serving ? uint256(account.amountWei) + (matured ? account.pendingWei : 0) : 0,
            pendingWei: account.exitRound == 0 && !matured ? account.pendingWei : 0,
            lockDays: account.lockDays,
            multiplierBps: _multiplierBps(account),
            activeFromEpoch: account.activeFromEpoch,
            exitRound: account.exitRound,
            nonce: account.nonce,
            endpoint: account.endpoint,
            lockEnd: account.lockEnd,
            unbondingWei: account.exitRound == 0 ? 0 : _held(account)
        });
    }

    function roleRule(uint8 role) external view returns (uint256 minimumWei, uint32 lockDays) {
        if (role < COMPUTE || role > HUB) revert BadRole(role);
        return (_roles[role - 1].minimumWei, _roles[role - 1].lockDays);
    }

    function computeLocks() external view returns (uint32[] memory lockDays, uint32[] memory multiplierBps) {
        return (_computeLockDays, _computeMultiplierBps);
    }

    // ------------------------------------------------------------------------------------------ parts

    function _powerIn(address node, uint64 epoch) internal view override returns (uint256 power) {
        Account storage account = _accounts[node];
        if (account.role != VALIDATOR || account.exitRound != 0) return 0;
        power = uint256(account.amountWei) + (account.pendingEpoch <= epoch ? account.pendingWei : 0);
        if (power < _roles[VALIDATOR - 1].minimumWei) return 0;
    }

    function _own(address node) private view returns (Account storage account) {
        account = _accounts[node];
        if (account.wallet == address(0)) revert NotBound(node);
        if (account.wallet != msg.sender) revert NotWallet(msg.sender);
    }

    function _ownActive(address node) private view returns (Account storage account) {
        account = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) == 0) revert NotStaked(node);
    }

    function _held(Account storage account) private view returns (uint256) {
        return uint256(account.amountWei) + account.pendingWei;
    }

    /// @dev The lock's multiplier pays for being locked: it falls to that of no lock when the lock is over.
    function _multiplierBps(Account storage account) private view returns (uint32) {
        if (account.role != COMPUTE) return BASE_BPS;
        if (block.timestamp >= account.lockEnd) return _computeMultiplierBps[0];
        for (uint256 i = 0; i < _computeLockDays.length; ++i) {
            if (_computeLockDays[i] == account.lockDays) return _computeMultiplierBps[i];
        }
        return BASE_BPS;
    }

    function _requireLock(uint8 role, uint32 lockDays) private view {
        if (role != COMPUTE) {
            if (lockDays != _roles[role - 1].lockDays) revert BadLock(lockDays);
            return;
        }
        for (uint256 i = 0; i < _computeLockDays.length; ++i) if (_computeLockDays[i] == lockDays) return;
        revert BadLock(lockDays);
    }

    function _requireAmount(uint256 amountWei) private pure returns (uint96) {
        if (amountWei == 0 || amountWei > type(uint96).max) revert BadAmount(amountWei);
        return uint96(amountWei);
    }

    function _lockEnd(uint32 lockDays) private view returns (uint64) {
        return uint64(block.timestamp) + lockDays * daySeconds;
    }

    function _receive(uint96 amountWei) private {
        totalStakedWei += amountWei;
        token.safeTransferFrom(msg.sender, address(this), amountWei);
    }
}
