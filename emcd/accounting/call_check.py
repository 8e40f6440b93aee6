"""The rules of `call_rule.py` over thousands of calls at once.

Only a filter: a row that it flags is judged again by `require_call`, which alone says what is wrong,
so that a doubtful row is flagged (a number too large to multiply in 64 bits, say). Invariant: what
`require_call` refuses is flagged; what `check_standing` counts is what `may_count` says.
"""

from __future__ import annotations

import numpy as np

from emcd.accounting.call_rule import CallHashes, require_call
from emcd.accounting.price import price_of
from emcd.accounting.terms import RoundTerms
from emcd.proto.bundle_calls import CallGroup, Directory, GroupHashes, Mask
from emcd.proto.bundle_column import U64
from emcd.proto.params import MAX_CLOCK_SKEW_MS, ModelPrice
from emcd.proto.records import CallStatus, Delivery, Forward, Receipt

_SAFE = 1 << 62
_TOKENS_PER_PRICE = 1_000_000
_SKEW = np.uint64(MAX_CLOCK_SKEW_MS)


class CallCheck:
    """The rules under the terms of one round. `make_terms` bounds its times to less than 2**58 ms."""

    def __init__(self, terms: RoundTerms) -> None:
        self._terms = terms
        params = terms.params
        self._genesis_ms = np.uint64(params.genesis_time_s * 1000)
        self._round_ms = np.uint64(params.round_s * 1000)
        self._first = np.uint64(max(0, terms.round - params.carry_rounds))
        self._last = np.uint64(terms.round)
        self._price_from = np.array(terms.prices_from, np.uint64)
        self._versions = np.array(list(terms.prices), np.uint64)
        self._success = np.array([CallStatus(number).is_success for number in range(len(CallStatus))])

    def flag(self, group: CallGroup, directory: Directory) -> Mask:
        """The rows that may be wrong."""
        known = group.status < len(self._success)
        success = self._success[np.where(known, group.status, 0).astype(np.int64)]
        wrong: Mask = ~known | (group.finished_at_ms < group.started_at_ms)
        wrong |= (group.started_at_ms < self._genesis_ms) | (group.finished_at_ms < self._genesis_ms)
        rounds = (group.finished_at_ms - self._genesis_ms) // self._round_ms
        wrong |= (rounds != group.round) | (rounds < self._first) | (rounds > self._last)
        table = np.searchsorted(
            self._price_from, (group.started_at_ms - self._genesis_ms) // self._round_ms, side="right"
        )
        wrong |= (table == 0) | (self._versions[table - 1] != group.price_version)
        wrong |= group.vault_micro > group.credits_micro
        wrong |= ~success & (group.credits_micro != 0)
        priced = np.flatnonzero(~wrong & success & group.has_receipt)
        if len(priced):
            wrong[priced] = self._is_mispriced(group.take(priced), directory)
        return wrong

    def may_count(self, group: CallGroup) -> Mask:
        """The rows that count once their records are proven; of rows that `flag` let pass."""
        success = self._success[group.status.astype(np.int64)]
        answered = group.has_receipt & (group.http_status >= 200) & (group.http_status < 300)
        earliest = group.started_at_ms - np.minimum(group.started_at_ms, _SKEW)
        latest = group.finished_at_ms + _SKEW
        in_time = (
            (earliest <= group.receipt_started_at_ms)
            & (group.receipt_started_at_ms <= group.receipt_finished_at_ms)
            & (group.receipt_finished_at_ms <= latest)
        )
        counts: Mask = success & answered & in_time
        return counts

    def require(
        self, record: tuple[Forward, Receipt | None, Delivery], hashes: GroupHashes, row: int
    ) -> None:
        """Judge one row by the rule itself. Raises: RemoteProtocolError as `require_call`."""
        own = CallHashes(*(part[row].tobytes() for part in (hashes.forward, hashes.receipt, hashes.delivery)))
        require_call(self._terms, *record, own)

    def _is_mispriced(self, group: CallGroup, directory: Directory) -> Mask:
        wrong = np.ones(len(group), np.bool_)
        kinds, kind_of = (
            np.unique(np.stack((group.price_version, group.model)), axis=1, return_inverse=True)
            if len(directory.models) > 1 or len(self._versions) > 1
            else (np.array([[group.price_version[0]], [group.model[0]]]), np.zeros(len(group), np.int64))
        )
        for number, (version, model) in enumerate(kinds.T.tolist()):
            rows = np.flatnonzero(kind_of == number)
            price = price_of(self._terms.prices[version], directory.models[model].tobytes())
            wrong[rows] = _differs(group.take(rows), price)
        return wrong


def _differs(group: CallGroup, price: ModelPrice) -> Mask:
    """Is the charge of these calls another than the price, or too large to tell in 64 bits?"""
    too_large = _exceeds(group.input_tokens, price.input_micro_per_mtok)
    too_large |= _exceeds(group.output_tokens, price.output_micro_per_mtok)
    exact = group.input_tokens * np.uint64(price.input_micro_per_mtok)
    exact += group.output_tokens * np.uint64(price.output_micro_per_mtok)
    charge = (exact + np.uint64(_TOKENS_PER_PRICE - 1)) // np.uint64(_TOKENS_PER_PRICE)
    charge = np.maximum(charge, np.uint64(price.minimum_micro))
    is_exact = group.status == int(CallStatus.OK)
    wrong: Mask = too_large | (group.credits_micro > charge) | (is_exact & (group.credits_micro != charge))
    return wrong


def _exceeds(tokens: U64, price: int) -> Mask:
    exceeds: Mask = tokens > np.uint64(_SAFE // max(1, price))
    return exceeds
