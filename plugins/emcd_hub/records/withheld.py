"""What the hub takes out of an answer, and what it added to a request: kept with the call, told with its receipt.

The records alone say only that node and client have bodies with different hashes. This says why, and gives
what is needed to make the forwarded request again. Pure but for the migration's text.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

from emcd.ledger import Migration
from emcd.proto.openai_evidence import LEAST_LOGPROBS
from emcd.proto.openai_shape import UpstreamRequest
from emcd.proto.records import CallStatus
from emcd_hub.records.call_row import StoredCall


class Withheld(IntFlag):
    """What a call's client did not ask for. `FORM`: the request went on in the one form."""

    FORM = 1
    LOGPROBS = 2
    TOKEN_IDS = 4
    USAGE = 8


OVERCLAIM = "tokens"
"""How the remark begins about a receipt that claims more tokens than its answer names."""
_WORDS = {Withheld.LOGPROBS: "logprobs", Withheld.TOKEN_IDS: "token_ids", Withheld.USAGE: "usage_event"}
_ENDED = {
    CallStatus.CANCELLED: "the client left: the answer was delivered only in part",
    CallStatus.CAPPED: "the credits ended: the answer may have been delivered only in part",
    CallStatus.NODE_ERROR: "the node failed: nothing, or a part, was delivered",
    CallStatus.CLIENT_ERROR: "the node's words were no error as OpenAI writes it: the hub's were delivered",
}

EVIDENCE = Migration(
    10,
    "what calls withhold, the seeds that were drawn, tokens that nobody can count",
    """
    ALTER TABLE hub_calls ADD COLUMN withheld INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE hub_calls ADD COLUMN seed INTEGER;
    ALTER TABLE hub_calls ADD COLUMN uncounted_tokens INTEGER NOT NULL DEFAULT 0 CHECK (uncounted_tokens >= 0);
    ALTER TABLE hub_usage ADD COLUMN uncounted_tokens INTEGER NOT NULL DEFAULT 0;
    DROP TRIGGER hub_calls_settle;
    CREATE TRIGGER hub_calls_settle AFTER INSERT ON hub_calls
    BEGIN
        UPDATE hub_accounts
        SET granted_micro = granted_micro - NEW.granted_micro, vault_micro = vault_micro - NEW.vault_micro
        WHERE account_id = NEW.account_id;
        INSERT INTO hub_usage VALUES (
            NEW.account_id, NEW.round, 1, NEW.granted_micro, NEW.vault_micro, NEW.uncounted_tokens
        )
        ON CONFLICT (account_id, round) DO UPDATE SET calls = calls + 1,
            granted_micro = granted_micro + excluded.granted_micro,
            vault_micro = vault_micro + excluded.vault_micro,
            uncounted_tokens = uncounted_tokens + excluded.uncounted_tokens;
    END;
    """,
)


def find_withheld(request: UpstreamRequest) -> int:
    """What a request's client gets nothing of."""
    out = int(Withheld.FORM) if request.evidence else 0
    hidden = request.hidden
    if hidden is not None:
        if hidden.most_logprobs is None or hidden.most_logprobs < LEAST_LOGPROBS:
            out |= Withheld.LOGPROBS
        if hidden.token_ids:
            out |= Withheld.TOKEN_IDS
    if request.stream and not request.wants_usage:
        out |= Withheld.USAGE
    return int(out)


def make_notes(call: StoredCall) -> dict[str, Any]:
    """What is told beside a call's three records. None of it is signed."""
    receipt, delivery = call.receipt, call.delivery
    same = receipt is None or receipt.response_hash == delivery.body_hash
    why: list[str] = []
    words = [word for flag, word in _WORDS.items() if call.withheld & flag]
    if not same:
        if words:
            why.append("the client did not ask for " + ", ".join(words))
        ended = _ENDED.get(CallStatus(delivery.status))
        if ended and not call.fault.startswith(OVERCLAIM):
            why.append(ended)
    return {
        "bodies_differ": not same,
        "why": "; ".join(why),
        "withheld": words,
        "canonical_request": bool(call.withheld & Withheld.FORM),
        "drawn_seed": None if call.seed is None else str(call.seed),
        "remark": call.fault,
        "uncounted_tokens": call.uncounted_tokens,
    }
