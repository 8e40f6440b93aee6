// SPDX-License-Identifier: MIT
pragma solidity 0.8.36;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {EMCToken} from "./EMCToken.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {IStaking} from "./IStaking.sol";
import {RootChain} from "./RootChain.sol";
import {RoundClock} from "./RoundClock.sol";

/// @title Rounds on chain: roots by quorum, a delay in which they can be vetoed, claims minted within the schedule.
/// @dev Invariants: along the publications that are not void, rounds strictly grow, cumulative wei never falls, and
/// what was published with its fees is within the schedule; what wallets claimed is within the active root's
/// cumulative wei.
contract Distributor is RootChain, EmissionSchedule, EIP712 {
    struct Extraction {
        address wallet;
        address recipient;
        uint64 throughRound;
        bool submit;
        uint256 nonce;
        uint256 deadline;
    }

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
    /// @notice How many rounds after its own a root may be published: what comes later is void for everybody, and its
    /// signers' stakes outlast the veto.
    uint64 public immutable publishWindowRounds;
    uint256 public immutable publishFeeWei;
    address public immutable guardian;

    uint64 public pauseAllowedFrom;
    uint256 public totalClaimedWei;
    uint256 public totalFeesPaidWei;
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

    /// @param publishWindowRounds_ with the challenge delay, at most the unbonding
    /// @param guardian_ may pause publishing and claiming; 0: nobody may
    constructor(
        EMCToken token_,
        IStaking staking_,
        uint64[] memory periodStartRounds,
        uint96[] memory periodWeiPerRoundCeil,
        uint256 publishFeeWei_,
        uint64 publishWindowRounds_,
        address guardian_
    )
        EIP712("emcd", "1")
        RoundClock(staking_.genesisTime(), staking_.roundSeconds(), staking_.epochRounds())
        RootChain(staking_.challengeDelayRounds())
        EmissionSchedule(token_.MINTABLE_WEI(), periodStartRounds, periodWeiPerRoundCeil)
    {
        if (
            token_.minter() != address(this) || staking_.token() != address(token_)
                || publishFeeWei_ > type(uint96).max || publishWindowRounds_ == 0
                || publishWindowRounds_ > staking_.unbondingRounds() - staking_.challengeDelayRounds()
        ) revert BadConfig();
        token = token_;
        staking = staking_;
        publishWindowRounds = publishWindowRounds_;
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
        bytes calldata signatures
    ) external {
        Chain memory chain = _advance();
        _requireNotPaused(chain);
        uint64 now_ = currentRound();
        if (round >= now_) revert RoundNotOver(round);
        if (now_ - round > publishWindowRounds) revert RoundTooOld(round);
        if (round < chain.last) revert RoundNotNewer(round);
        if (root == bytes32(0)) revert ZeroRoot();
        if (chain.pending == MAX_PENDING) revert TooManyPending();
        uint256 feeWei = _requireWithinSchedule(chain.tip, round, cumulativeWei);
        staking.freezeSet(round / epochRounds);
        bytes32 content = keccak256(abi.encode(ROUND_ROOT_TYPEHASH, round, bundleHash, root, cumulativeWei));
        (uint256 signed, uint256 total) = _signedPower(round, content, signatures);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
        _entries[round] = Entry({
            root: root,
            bundleHash: bundleHash,
            publisher: msg.sender,
            feeWei: uint96(feeWei),
            cumulativeWei: uint96(cumulativeWei),
            publishedAt: uint40(block.timestamp),
            previous: chain.tip,
            next: 0,
            void: false,
            feePaid: false
        });
        uint64 activeAt = _append(chain, uint40(round + 1));
        emit RootPublished(round, msg.sender, bundleHash, root, cumulativeWei, feeWei, activeAt);
    }

    /// @notice Voids a pending root and all published after it, by more than 1/3 of the frozen power of its epoch.
    function veto(uint64 round, bytes32 bundleHash, bytes32 root, bytes calldata signatures) external {
        Entry storage entry = _entries[round];
        if (entry.root == bytes32(0) || entry.void || _isActive(entry)) revert NotPending(round);
        if (entry.root != root || entry.bundleHash != bundleHash) revert WrongRoot(round);
        bytes32 content = keccak256(abi.encode(VETO_TYPEHASH, round, bundleHash, root));
        (uint256 signed, uint256 total) = _signedPower(round, content, signatures);
        if (signed * 3 <= total) revert NoQuorum(signed, total);
        _voidFrom(round);
    }

    /// @notice Pays a publisher's fee once its root is active; anyone may call.
    function payFee(uint64 round) external {
        _requireNotPaused(_chain);
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
        uint64 until = uint64(block.timestamp) + durationSeconds;
        _chain.pausedUntil = uint40(until);
        pauseAllowedFrom = uint64(block.timestamp) + MAX_PAUSE_SECONDS + PAUSE_COOLDOWN_SECONDS;
        emit Paused(until);
    }

    function unpause() external {
        if (msg.sender != guardian) revert NotGuardian(msg.sender);
        _chain.pausedUntil = uint40(block.timestamp);
        emit Unpaused();
    }

    // ------------------------------------------------------------------------------------------ views

    function pausedUntil() external view returns (uint64) {
        return _chain.pausedUntil;
    }

    // ------------------------------------------------------------------------------------------ parts

    function _claim(
        address wallet,
        uint256 cumulativeWei,
        bytes32[] calldata proof,
        address recipient,
        uint64 throughRound
    ) private {
        if (recipient == address(0)) revert ZeroRecipient();
        uint64 round = _requireActive(throughRound);
        Entry storage entry = _entries[round];
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(wallet, cumulativeWei))));
        if (!MerkleProof.verifyCalldata(proof, entry.root, leaf)) revert BadProof();
        uint256 claimedWei = claimed[wallet];
        if (cumulativeWei <= claimedWei) revert NothingToClaim(cumulativeWei, claimedWei);
        uint256 amountWei = cumulativeWei - claimedWei;
        uint256 totalWei = totalClaimedWei + amountWei;
        if (totalWei > entry.cumulativeWei) revert BeyondRoot(totalWei, entry.cumulativeWei);
        claimed[wallet] = cumulativeWei;
        totalClaimedWei = totalWei;
        emit Claimed(wallet, recipient, round, amountWei, cumulativeWei);
        token.mint(recipient, amountWei);
    }

    /// @dev The round of the active root, noted for those who claim next.
    function _requireActive(uint64 throughRound) private returns (uint64 round) {
        uint40 known = _chain.active;
        Chain memory chain = _advance();
        _requireNotPaused(chain);
        if (chain.active == 0) revert NoActiveRoot();
        round = chain.active - 1;
        if (round < throughRound) revert NotSynchronised(round, throughRound);
        if (chain.active != known) _chain = chain;
    }

    /// @dev The power behind signatures over a struct of ours in the set of a round's epoch, and the set's total.
    function _signedPower(uint64 round, bytes32 content, bytes calldata signatures)
        private
        view
        returns (uint256 signed, uint256 total)
    {
        return staking.signedPower(round / epochRounds, _hashTypedDataV4(content), signatures);
    }

    /// @dev Returns the fee that the schedule leaves room for.
    function _requireWithinSchedule(uint64 tip, uint64 round, uint256 cumulativeWei) private view returns (uint256) {
        uint256 previousWei = tip == 0 ? 0 : _entries[tip - 1].cumulativeWei;
        uint256 boundWei = _scheduledBetween(tip, round);
        if (cumulativeWei < previousWei) revert CumulativeFell(cumulativeWei, previousWei);
        uint256 growthWei = cumulativeWei - previousWei;
        if (growthWei > boundWei) revert OverSchedule(growthWei, boundWei);
        if (growthWei == 0) return 0;
        return publishFeeWei < boundWei - growthWei ? publishFeeWei : boundWei - growthWei;
    }

    function _requireNotPaused(Chain memory chain) private view {
        if (block.timestamp < chain.pausedUntil) revert IsPaused(chain.pausedUntil);
    }
}
