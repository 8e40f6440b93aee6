// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {ValidatorSets} from "./ValidatorSets.sol";

/// @title Who takes part: nodes, the wallets they are bound to, and the keys they sign with.
/// @notice A node key proves itself and signs; the wallet bound to it owns the stake and the rewards. With the node
/// key alone nobody moves a stake, with the wallet alone nobody claims another's node. The wallet replaces the key by
/// another, with a delay; an account is known for ever by its first key and found by any that it had.
abstract contract Accounts is ValidatorSets, EIP712 {
    struct Binding {
        address node;
        address wallet;
        uint8 role;
        uint256 nonce;
        uint256 deadline;
    }

    /// @dev One slot each: the binding, the stake, its terms.
    struct Account {
        address wallet;
        uint64 nonce;
        uint32 indexPlusOne;
        uint96 amountWei;
        uint96 pendingWei;
        uint64 pendingEpoch;
        uint8 role;
        bool rotated; // `_keys` has an entry
        uint32 lockDays;
        uint40 lockEnd;
        uint40 exitRound;
        uint40 activeFromEpoch;
        address approvedWallet;
        string endpoint;
    }

    /// @dev `next` replaces `current` from `fromEpoch` on, unless that is 0.
    struct Keys {
        address current;
        uint64 fromEpoch;
        address next;
    }

    uint8 public constant COMPUTE = 1;
    uint8 public constant ROUTER = 2;
    uint8 public constant VALIDATOR = 3;
    uint8 public constant HUB = 4;
    uint256 public constant MAX_ENDPOINT_BYTES = 200;

    bytes32 private constant BINDING_TYPEHASH =
        keccak256("Binding(address node,address wallet,uint8 role,uint256 nonce,uint256 deadline)");

    address[] internal _ids;
    mapping(address id => Account) internal _accounts;
    mapping(address id => Keys) internal _keys;
    mapping(address key => address id) private _idOfLaterKey;

    event Bound(address indexed node, address indexed wallet, uint8 indexed role, uint256 nonce);
    event RotationRequested(address indexed node, address indexed nextNode, uint64 fromEpoch, uint256 nonce);
    event RotationCancelled(address indexed node, address indexed nextNode);
    event Released(address indexed node, address indexed wallet);
    event WalletApproved(address indexed node, address indexed wallet, address indexed newWallet);
    event EndpointSet(address indexed node, string endpoint);

    error BadRole(uint8 role);
    error NotWallet(address caller);
    error NodeIsWallet(address node);
    error Expired(uint256 deadline);
    error NonceUsed(uint256 nonce, uint256 next);
    error WrongSigner(address signer);
    error KeyUsed(address key);
    error KeyNotInForce(address key);
    error RotationPending(address node, uint64 fromEpoch);
    error NoRotation(address node);
    error NotBound(address node);
    error StakeBound(address node);
    error StillUnbonding(address node, uint64 exitRound);
    error NotStaked(address node);
    error EndpointTooLong(uint256 length);

    constructor() EIP712("emcd", "1") {}

    /// @notice Binds a node to the sender: the node's key signed it, the sender's transaction is the consent.
    /// @dev A staked node keeps its role, and moves to another wallet only if its present one approved that wallet.
    function bind(Binding calldata binding, bytes calldata nodeSignature) external {
        address id = _idOf(binding.node);
        Account storage account = _accounts[id];
        if (msg.sender != binding.wallet) revert NotWallet(msg.sender);
        if (binding.role < COMPUTE || binding.role > HUB) revert BadRole(binding.role);
        _useBinding(account, binding, nodeSignature);
        if (binding.node != _keyIn(id, currentEpoch())) revert KeyNotInForce(binding.node);
        _requireNoRotation(id, account);
        if (account.exitRound != 0) revert StillUnbonding(binding.node, account.exitRound);
        if (_held(account) != 0) {
            if (binding.role != account.role) revert BadRole(binding.role);
            if (binding.wallet != account.wallet && binding.wallet != account.approvedWallet) {
                revert StakeBound(binding.node);
            }
        }
        if (account.indexPlusOne == 0) {
            _ids.push(id);
            account.indexPlusOne = uint32(_ids.length);
        }
        account.wallet = binding.wallet;
        account.role = binding.role;
        if (account.approvedWallet != address(0)) account.approvedWallet = address(0);
        emit Bound(binding.node, binding.wallet, binding.role, binding.nonce);
    }

    /// @notice The wallet gives its account another signing key, which proves itself by a binding to the same wallet
    /// and role. In force from the epoch after the next one; until then the wallet may take it back.
    /// @dev Not for compute nodes: what was found out about one's work stays with its key. A key serves once, ever.
    function rotateKey(address node, Binding calldata next, bytes calldata nextSignature) external {
        (address id, Account storage account) = _own(node);
        if (account.role == COMPUTE || next.role != account.role) revert BadRole(next.role);
        if (next.wallet != msg.sender) revert NotWallet(next.wallet);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        _requireNoRotation(id, account);
        if (_accounts[next.node].nonce != 0 || _idOfLaterKey[next.node] != address(0)) revert KeyUsed(next.node);
        _useBinding(account, next, nextSignature);
        Keys storage keys = _keys[id];
        uint64 fromEpoch = nextEpoch() + 1;
        if (account.role == VALIDATOR) _touchSets(fromEpoch);
        keys.current = _keyIn(id, currentEpoch());
        (keys.next, keys.fromEpoch) = (next.node, fromEpoch);
        account.rotated = true;
        _idOfLaterKey[next.node] = id;
        emit RotationRequested(keys.current, next.node, fromEpoch, next.nonce);
    }

    /// @notice Takes a rotation back that is not in force yet; its key is used up all the same.
    function cancelRotation(address node) external {
        (address id, Account storage account) = _own(node);
        if (_waitingFrom(id, account) == 0) revert NoRotation(node);
        Keys storage keys = _keys[id];
        address cancelled = keys.next;
        (keys.next, keys.fromEpoch) = (address(0), 0);
        emit RotationCancelled(keys.current, cancelled);
    }

    /// @notice The bound wallet allows `newWallet` to take the node, and its stake with it, by a new binding. 0 revokes.
    function approveWallet(address node, address newWallet) external {
        (address id, Account storage account) = _own(node);
        account.approvedWallet = newWallet;
        emit WalletApproved(_keyIn(id, currentEpoch()), msg.sender, newWallet);
    }

    /// @notice Ends a binding that holds no stake. Nonce and keys stay: no old binding comes back.
    function release(address node) external {
        (address id, Account storage account) = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) != 0) revert StakeBound(node);
        _requireNoRotation(id, account);
        uint32 position = account.indexPlusOne;
        address last = _ids[_ids.length - 1];
        _ids[position - 1] = last;
        _accounts[last].indexPlusOne = position;
        _ids.pop();
        (uint64 nonce, bool rotated) = (account.nonce, account.rotated);
        delete _accounts[id];
        (account.nonce, account.rotated) = (nonce, rotated);
        emit Released(_keyIn(id, currentEpoch()), msg.sender);
    }

    /// @notice Publishes where the participant is reached; its wallet or its key in force may. Readers must not trust
    /// it.
    function setEndpoint(address node, string calldata endpoint) external {
        address id = _idOf(node);
        Account storage account = _accounts[id];
        address key = _keyIn(id, currentEpoch());
        if (account.wallet == address(0)) revert NotBound(node);
        if (msg.sender != account.wallet && msg.sender != key) revert NotWallet(msg.sender);
        if (bytes(endpoint).length > MAX_ENDPOINT_BYTES) revert EndpointTooLong(bytes(endpoint).length);
        account.endpoint = endpoint;
        emit EndpointSet(key, endpoint);
    }

    // ------------------------------------------------------------------------------------------ parts

    function _keyIn(address id, uint64 epoch) internal view override returns (address) {
        if (!_accounts[id].rotated) return id;
        Keys storage keys = _keys[id];
        return keys.fromEpoch != 0 && keys.fromEpoch <= epoch ? keys.next : keys.current;
    }

    function _idOf(address key) internal view returns (address id) {
        id = _idOfLaterKey[key];
        if (id == address(0)) id = key;
    }

    function _own(address node) internal view returns (address id, Account storage account) {
        id = _idOf(node);
        account = _accounts[id];
        if (account.wallet == address(0)) revert NotBound(node);
        if (account.wallet != msg.sender) revert NotWallet(msg.sender);
    }

    function _ownActive(address node) internal view returns (address id, Account storage account) {
        (id, account) = _own(node);
        if (account.exitRound != 0) revert StillUnbonding(node, account.exitRound);
        if (_held(account) == 0) revert NotStaked(node);
    }

    function _held(Account storage account) internal view returns (uint256) {
        return uint256(account.amountWei) + account.pendingWei;
    }

    /// @dev The epoch from which a rotation that waits is in force; 0 when none waits.
    function _waitingFrom(address id, Account storage account) internal view returns (uint64 fromEpoch) {
        if (!account.rotated) return 0;
        fromEpoch = _keys[id].fromEpoch;
        if (fromEpoch <= currentEpoch()) return 0;
    }

    function _requireNoRotation(address id, Account storage account) internal view {
        uint64 fromEpoch = _waitingFrom(id, account);
        if (fromEpoch != 0) revert RotationPending(_keys[id].current, fromEpoch);
    }

    /// @dev Takes a binding that its node signed, and its nonce.
    function _useBinding(Account storage account, Binding calldata binding, bytes calldata signature) internal {
        if (binding.node == binding.wallet) revert NodeIsWallet(binding.node);
        if (block.timestamp > binding.deadline) revert Expired(binding.deadline);
        if (binding.nonce <= account.nonce || binding.nonce > type(uint64).max) {
            revert NonceUsed(binding.nonce, uint256(account.nonce) + 1);
        }
        bytes32 digest = _hashTypedDataV4(
            keccak256(
                abi.encode(
                    BINDING_TYPEHASH, binding.node, binding.wallet, binding.role, binding.nonce, binding.deadline
                )
            )
        );
        address signer = ECDSA.recoverCalldata(digest, signature);
        if (signer != binding.node) revert WrongSigner(signer);
        account.nonce = uint64(binding.nonce);
    }
}
