"""What every call of a model that can be verified asks of its node, whoever sent it. Pure.

A judge needs the logprobs of the likeliest tokens, a seed and the token ids. Were they asked for by probes
alone, a node would know its probes; so all calls of such a model ask for them, in one form that tells
nothing of the client's library: names in order, no names without a value, whole numbers without a point,
and none of the names by which a client keeps its own books. What the client did not ask for is taken out
of its answer again (`Hidden`).

Invariants: nothing that could change an answer is changed but the seed, where there was none; the form is a
function of the body and that seed alone, and the form of a form is itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from emcd.proto.openai_shape import Endpoint, Hidden, read_bool, wrong

LEAST_LOGPROBS: Final = 5
MAX_LOGPROBS: Final = 20
EVIDENCE_ENDPOINTS: Final = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS))
TOKEN_IDS: Final = "return_token_ids"
_MAX_SEED: Final = 2**63 - 1
_MIN_SEED: Final = -(2**63)
_WHOLE_BELOW: Final = 2**53
_ASKERS_OWN: Final = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "user",
)  # fmt: skip
_CHAT, _EMBEDDINGS = Endpoint.CHAT, Endpoint.EMBEDDINGS


class Asked(NamedTuple):
    """What a request was made to ask for. `hidden`: as in `UpstreamRequest`; `seed`: where it was added."""

    hidden: Hidden | None = None
    seed: int | None = None


def ask_evidence(endpoint: Endpoint, table: dict[str, Any], seed: int | Callable[[], int] | None) -> Asked:
    """Make a request's table ask for evidence. Its order is `order_fields`' part.

    Args:
        seed: of 63 bits, or what draws it, for a call whose client gave none; None: none is added.

    Raises: RequestError EMC-1702.
    """
    for name in _ASKERS_OWN:
        table.pop(name, None)
    if endpoint is _EMBEDDINGS:
        return Asked()
    asked = _read_chat_wish(table) if endpoint is _CHAT else _read_logprobs(table, "logprobs")
    wants_ids = read_bool(table, TOKEN_IDS)
    own_seed, drawn = table.get("seed"), None
    if own_seed is None:
        drawn = seed() if callable(seed) else seed
        table["seed"] = drawn
    elif type(own_seed) is not int or not _MIN_SEED <= own_seed <= _MAX_SEED:
        raise wrong("seed", "seed must be an integer of 64 bits")
    most = LEAST_LOGPROBS if asked is None else max(LEAST_LOGPROBS, asked)
    if endpoint is _CHAT:
        table["logprobs"], table["top_logprobs"] = True, most
    else:
        table["logprobs"] = most
    table[TOKEN_IDS] = True
    return Asked(None if asked == most and wants_ids else Hidden(asked, not wants_ids), drawn)


def order_fields(table: dict[str, Any]) -> dict[str, Any]:
    """The table in the one form. Nothing within tools, schemas and the like is touched: there order means
    something to a model.
    """
    if table.get("stream") is False:
        del table["stream"]
    out = {name: _plain(table[name]) for name in sorted(table) if table[name] is not None}
    options = out.get("stream_options")
    if type(options) is dict:
        out["stream_options"] = _order(options)
    messages = out.get("messages")
    if type(messages) is list:
        out["messages"] = [_order_message(item) if type(item) is dict else item for item in messages]
    return out


def _read_chat_wish(table: dict[str, Any]) -> int | None:
    top = _read_logprobs(table, "top_logprobs")
    if not read_bool(table, "logprobs"):
        if top is not None:
            raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
        return None
    return top or 0


def _read_logprobs(table: dict[str, Any], name: str) -> int | None:
    value = table.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_LOGPROBS:
        raise wrong(name, f"{name} must be 0 to {MAX_LOGPROBS}")
    return value


def _plain(value: Any) -> Any:
    if type(value) is float and value.is_integer() and -_WHOLE_BELOW < value < _WHOLE_BELOW:
        return int(value)
    return value


def _order(table: dict[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in sorted(table) if table[name] is not None}


def _order_message(message: dict[str, Any]) -> dict[str, Any]:
    """`content` may say by null that there is none; a list of it holds parts."""
    out = {name: message[name] for name in sorted(message) if message[name] is not None or name == "content"}
    parts = out.get("content")
    if type(parts) is list:
        out["content"] = [
            {name: part[name] for name in sorted(part)} if type(part) is dict else part for part in parts
        ]
    return out
