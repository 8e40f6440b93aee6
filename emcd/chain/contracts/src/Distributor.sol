// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {EMCToken} from "./EMCToken.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {IStaking} from "./IStaking.sol";
import {RoundClock} from "./RoundClock.sol";

/// @title Rounds on chain: roots by quorum, a delay in which they can be vetoed, claims minted within the schedule.
/// @dev Invariants: along the publications that are not void, rounds strictly grow, cumulative wei never falls, and
/// what was published with its fees is within the schedule; what wallets claimed is within the active root's
/// cumulative wei. The newest publication is `_tip`, each points at the one before: pending ones are at the front.
contract Distributor is RoundClock, EmissionSchedule, EIP712 {
    enum RootState {
        NONE,
        PENDING,
        ACTIVE,
        VOID
    }

    struct Extraction {
        address wallet;
        address recipient;
        uint64 throughRound;
        bool submit;
        uint256 nonce;
        uint256 deadline;
    }

    struct Publication {
        RootState state;
        bytes32 bundleHash;
        bytes32 root;
        uint256 cumulativeWei;
        uint64 activeAt;
        address publisher;
        uint256 feeWei;
        bool feePaid;
    }

    /// @dev Rounds in `previous` and below are stored plus one: 0 is none.
    struct Entry {
        bytes32 root;
        bytes32 bundleHash;
        address publisher;
        uint96 feeWei;
        uint96 cumulativeWei;
        uint64 publishedAt;
        uint64 previous;
        bool void;
        bool feePaid;
    }

    uint256 public constant MAX_PENDING = 16;
    uint64 public constant MAX_PAUSE_SECONDS = 7 days;
    /// @notice From the longest end of a pause to the next one.
    uint64 public constant PAUSE_COOLDOWN_SECONDS = 28 days;

    bytes32 private constant ROUND_ROOT_TYPEHASH =
        keccak256("RoundRoot(uint64 round,bytes32 bundleHash,bytes32 root,uint256 cumulativeWei)");
    bytes32 private constant VETO_TYPEHASH = keccak256("Veto(uint64 round,bytes32 bundleHash,bytes32 root)");
    bytes32 private constant EXTRACTION_TYPEHASH = keccak256(
        "Extraction(address wallet,address recipient,uint64 throughRound,bool submit,uint256 nonce,uint256 deadline)"
    );

    EMCToken public immutable token;
    IStaking public immutable staking;
    uint64 public immutable challengeDelayRounds;
    /// @notice How many rounds after its own a root may be published: its signers' stakes outlast the veto.
    uint64 public immutable publishWindowRounds;
    uint256 public immutable publishFeeWei;
    address public immutable guardian;

    uint64 private _last;
    uint64 private _tip;
    uint64 public pausedUntil;
    uint64 public pauseAllowedFrom;
    uint256 public totalClaimedWei;
    uint256 public totalFeesPaidWei;
    mapping(uint64 round => Entry) private _entries;
    mapping(address wallet => uint256) public claimed;
    /// @notice The lowest nonce that an extraction of this wallet may carry.
    mapping(address wallet => uint256) public extractionNonce;

    event RootPublished(
        uint64 indexed round,
        address indexed publisher,
        bytes32 bundleHash,
        bytes32 root,
        uint256 cumulativeWei,
        uint256 feeWei,
        uint64 activeAt
    );
    event RoundVoided(uint64 indexed round, uint64 indexed vetoedRound);
    event Claimed(
        address indexed wallet, address indexed recipient, uint64 indexed round, uint256 amountWei, uint256 cumulativeWei
    );
    event ExtractionUsed(address indexed wallet, uint256 nonce);
    event ExtractionsCancelled(address indexed wallet, uint256 nextNonce);
    event FeePaid(uint64 indexed round, address indexed publisher, uint256 feeWei);
    event Paused(uint64 until);
    event Unpaused();

    error BadConfig();
    error IsPaused(uint64 until);
    error NotGuardian(address caller);
    error BadPause(uint64 durationSeconds);
    error PauseTooSoon(uint64 allowedFrom);
    error RoundNotOver(uint64 round);
    error RoundTooOld(uint64 round);
    error RoundNotNewer(uint64 round);
    error ZeroRoot();
    error CumulativeFell(uint256 cumulativeWei, uint256 previousWei);
    error OverSchedule(uint256 growthWei, uint256 boundWei);
    error TooManyPending();
    error NoQuorum(uint256 signed, uint256 total);
    error NotPending(uint64 round);
    error WrongRoot(uint64 round);
    error NotWallet(address caller);
    error ZeroRecipient();
    error NoActiveRoot();
    error NotSynchronised(uint64 activeRound, uint64 throughRound);
    error BadProof();
    error NothingToClaim(uint256 cumulativeWei, uint256 claimedWei);
    error BeyondRoot(uint256 totalClaimedWei, uint256 cumulativeWei);
    error SubmitNotAllowed();
    error Expired(uint256 deadline);
    error NonceUsed(uint256 nonce, uint256 next);
    error WrongSigner(address signer);
    error NoFee(uint64 round);

    modifier whenNotPaused() {
        if (block.timestamp < pausedUntil) revert IsPaused(pausedUntil);
        _;
    }

    /// @param guardian_ may pause publishing and claiming; 0: nobody may
    constructor(
        EMCToken token_,
        IStaking staking_,
        uint64[] memory periodStartRounds,
        uint96[] memory periodWeiPerRoundCeil,
        uint256 publishFeeWei_,
        address guardian_
    )
        EIP712("emcd", "1")
        RoundClock(staking_.genesisTime(), staking_.roundSeconds(), staking_.epochRounds())
        EmissionSchedule(token_.MINTABLE_WEI(), periodStartRounds, periodWeiPerRoundCeil)
    {
        if (
            token_.minter() != address(this) || staking_.token() != address(token_)
                || publishFeeWei_ > type(uint96).max
        ) revert BadConfig();
        token = token_;
        staking = staking_;
        challengeDelayRounds = staking_.challengeDelayRounds();
        publishWindowRounds = staking_.unbondingRounds() - staking_.challengeDelayRounds();
        publishFeeWei = publishFeeWei_;
        guardian = guardian_;
    }

    // ------------------------------------------------------------------------------------------ roots

    /// @notice Publishes a round that is over, by more than 2/3 of the frozen power of its epoch; anyone may.
    /// @dev The fee is what the schedule leaves room for, up to publishFeeWei, and none when nothing is issued.
    function publish(
        uint64 round,
        bytes32 bundleHash,
        bytes32 root,
        uint256 cumulativeWei,
        bytes[] calldata signatures
    ) external whenNotPaused {
        uint64 now_ = currentRound();
        if (round >= now_) revert RoundNotOver(round);
        if (now_ - round > publishWindowRounds) revert RoundTooOld(round);
        if (round < _last) revert RoundNotNewer(round);
        if (root == bytes32(0)) revert ZeroRoot();
        _requirePendingRoom();
        uint256 feeWei = _requireWithinSchedule(round, cumulativeWei);
        bytes32 digest = _hashTypedDataV4(
            keccak256(abi.encode(ROUND_ROOT_TYPEHASH, round, bundleHash, root, cumulativeWei))
        );
        uint64 epoch = round / epochRounds;
        staking.freezeSet(epoch);
        (uint256 signed, uint256 total) = staking.signedPower(epoch, digest, signatures);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
        _entries[round] = Entry({
            root: root,
            bundleHash: bundleHash,
            publisher: msg.sender,
            feeWei: uint96(feeWei),
            cumulativeWei: uint96(cumulativeWei),
            publishedAt: uint64(block.timestamp),
            previous: _tip,
            void: false,
            feePaid: false
        });
        _tip = round + 1;
        _last = round + 1;
        emit RootPublished(
            round, msg.sender, bundleHash, root, cumulativeWei, feeWei, _activeAt(uint64(block.timestamp))
        );
    }

    /// @notice Voids a pending root and all published after it, by more than 1/3 of the frozen power of its epoch.
    function veto(uint64 round, bytes32 bundleHash, bytes32 root, bytes[] calldata signatures) external {
        Entry storage entry = _entries[round];
        if (entry.root == bytes32(0) || entry.void || _isActive(entry)) revert NotPending(round);
        if (entry.root != root || entry.bundleHash != bundleHash) revert WrongRoot(round);
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(VETO_TYPEHASH, round, bundleHash, root)));
        (uint256 signed, uint256 total) = staking.signedPower(round / epochRounds, digest, signatures);
        if (signed * 3 <= total) revert NoQuorum(signed, total);
        uint64 tip = _tip;
        do {
            Entry storage last = _entries[tip - 1];
            last.void = true;
            emit RoundVoided(tip - 1, round);
            tip = last.previous;
        } while (tip > round);
        _tip = tip;
    }

    /// @notice Pays a publisher's fee once its root is active; anyone may call.
    function payFee(uint64 round) external whenNotPaused {
        Entry storage entry = _entries[round];
        if (entry.feeWei == 0 || entry.feePaid || entry.void || !_isActive(entry)) revert NoFee(round);
        entry.feePaid = true;
        totalFeesPaidWei += entry.feeWei;
        emit FeePaid(round, entry.publisher, entry.feeWei);
        token.mint(entry.publisher, entry.feeWei);
    }

    // ------------------------------------------------------------------------------------------ claims

    /// @notice The wallet itself takes all that the active root gives it.
    function claim(address wallet, uint256 cumulativeWei, bytes32[] calldata proof, address recipient) external {
        if (msg.sender != wallet) revert NotWallet(msg.sender);
        _claim(wallet, cumulativeWei, proof, recipient, 0);
    }

    /// @notice Anyone submits the claim that the wallet signed; nonces may skip, never repeat.
    function claimFor(
        Extraction calldata extraction,
        bytes calldata signature,
        uint256 cumulativeWei,
        bytes32[] calldata proof
    ) external {
        address wallet = extraction.wallet;
        if (!extraction.submit) revert SubmitNotAllowed();
        if (block.timestamp > extraction.deadline) revert Expired(extraction.deadline);
        if (extraction.nonce < extractionNonce[wallet]) revert NonceUsed(extraction.nonce, extractionNonce[wallet]);
        address signer = ECDSA.recoverCalldata(
            _hashTypedDataV4(
                keccak256(
                    abi.encode(
                        EXTRACTION_TYPEHASH,
                        wallet,
                        extraction.recipient,
                        extraction.throughRound,
                        extraction.submit,
                        extraction.nonce,
                        extraction.deadline
                    )
                )
            ),
            signature
        );
        if (signer != wallet) revert WrongSigner(signer);
        extractionNonce[wallet] = extraction.nonce + 1;
        emit ExtractionUsed(wallet, extraction.nonce);
        _claim(wallet, cumulativeWei, proof, extraction.recipient, extraction.throughRound);
    }

    /// @notice Makes every extraction signed by the sender with a nonce under `nextNonce` useless.
    function cancelExtractions(uint256 nextNonce) external {
        if (nextNonce <= extractionNonce[msg.sender]) revert NonceUsed(nextNonce, extractionNonce[msg.sender]);
        extractionNonce[msg.sender] = nextNonce;
        emit ExtractionsCancelled(msg.sender, nextNonce);
    }

    // ------------------------------------------------------------------------------------------ guardian

    /// @notice Stops publishing and claiming for a while; exits, withdrawals and vetoes go on.
    function pause(uint64 durationSeconds) external {
        if (msg.sender != guardian) revert NotGuardian(msg.sender);
        if (durationSeconds == 0 || durationSeconds > MAX_PAUSE_SECONDS) revert BadPause(durationSeconds);
        if (block.timestamp < pauseAllowedFrom) revert PauseTooSoon(pauseAllowedFrom);
        pausedUntil = uint64(block.timestamp) + durationSeconds;
        pauseAllowedFrom = uint64(block.timestamp) + MAX_PAUSE_SECONDS + PAUSE_COOLDOWN_SECONDS;
        emit Paused(pausedUntil);
    }

    function unpause() external {
        if (msg.sender != guardian) revert NotGuardian(msg.sender);
        pausedUntil = uint64(block.timestamp);
        emit Unpaused();
    }

    // ------------------------------------------------------------------------------------------ views

    /// @notice The newest root that can be claimed from; root 0 when there is none.
    function activeRoot()
        external
        view
        returns (uint64 round, bytes32 root, bytes32 bundleHash, uint256 cumulativeWei)
    {
        uint64 key = _active();
        if (key == 0) return (0, 0, 0, 0);
        Entry storage entry = _entries[key - 1];
        return (key - 1, entry.root, entry.bundleHash, entry.cumulativeWei);
    }

    function published(uint64 round) external view returns (Publication memory) {
        Entry storage entry = _entries[round];
        RootState state = RootState.NONE;
        if (entry.root != bytes32(0)) {
            state = entry.void ? RootState.VOID : _isActive(entry) ? RootState.ACTIVE : RootState.PENDING;
        }
        return Publication({
            state: state,
            bundleHash: entry.bundleHash,
            root: entry.root,
            cumulativeWei: entry.cumulativeWei,
            activeAt: state == RootState.NONE ? 0 : _activeAt(entry.publishedAt),
            publisher: entry.publisher,
            feeWei: entry.feeWei,
            feePaid: entry.feePaid
        });
    }

    /// @notice The newest round ever published, void or not.
    function lastRound() external view returns (bool exists, uint64 round) {
        return _last == 0 ? (false, 0) : (true, _last - 1);
    }

    /// @notice The newest publication that is not void: the one that the next builds upon.
    function tipRound() external view returns (bool exists, uint64 round) {
        return _tip == 0 ? (false, 0) : (true, _tip - 1);
    }

    // ------------------------------------------------------------------------------------------ parts

    function _claim(
        address wallet,
        uint256 cumulativeWei,
        bytes32[] calldata proof,
        address recipient,
        uint64 throughRound
    ) private whenNotPaused {
        if (recipient == address(0)) revert ZeroRecipient();
        uint64 key = _active();
        if (key == 0) revert NoActiveRoot();
        if (key - 1 < throughRound) revert NotSynchronised(key - 1, throughRound);
        Entry storage entry = _entries[key - 1];
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(wallet, cumulativeWei))));
        if (!MerkleProof.verifyCalldata(proof, entry.root, leaf)) revert BadProof();
        uint256 claimedWei = claimed[wallet];
        if (cumulativeWei <= claimedWei) revert NothingToClaim(cumulativeWei, claimedWei);
        uint256 amountWei = cumulativeWei - claimedWei;
        uint256 totalWei = totalClaimedWei + amountWei;
        if (totalWei > entry.cumulativeWei) revert BeyondRoot(totalWei, entry.cumulativeWei);
        claimed[wallet] = cumulativeWei;
        totalClaimedWei = totalWei;
        emit Claimed(wallet, recipient, key - 1, amountWei, cumulativeWei);
        token.mint(recipient, amountWei);
    }

    /// @dev Returns the fee that the schedule leaves room for.
    function _requireWithinSchedule(uint64 round, uint256 cumulativeWei) private view returns (uint256) {
        uint256 previousWei = 0;
        uint256 boundWei = scheduledWei(round);
        if (_tip != 0) {
            previousWei = _entries[_tip - 1].cumulativeWei;
            boundWei -= scheduledWei(_tip - 1);
        }
        if (cumulativeWei < previousWei) revert CumulativeFell(cumulativeWei, previousWei);
        uint256 growthWei = cumulativeWei - previousWei;
        if (growthWei > boundWei) revert OverSchedule(growthWei, boundWei);
        if (growthWei == 0) return 0;
        return publishFeeWei < boundWei - growthWei ? publishFeeWei : boundWei - growthWei;
    }

    function _requirePendingRoom() private view {
        uint64 key = _tip;
        for (uint256 pending = 0; key != 0 && !_isActive(_entries[key - 1]); ++pending) {
            if (pending + 1 == MAX_PENDING) revert TooManyPending();
            key = _entries[key - 1].previous;
        }
    }

    function _active() private view returns (uint64 key) {
        key = _tip;
        while (key != 0 && !_isActive(_entries[key - 1])) key = _entries[key - 1].previous;
    }

    function _isActive(Entry storage entry) private view returns (bool) {
        return block.timestamp >= _activeAt(entry.publishedAt);
    }

    function _activeAt(uint64 publishedAt) private view returns (uint64) {
        return publishedAt + challengeDelayRounds * roundSeconds;
    }
}
