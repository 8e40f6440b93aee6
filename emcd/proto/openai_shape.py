"""What every part of OpenAI's API has in common here: its endpoints, a read request, an error body. Pure.

An endpoint's path stands in a plain attribute and its hash is that of the object: both are looked at
several times a call, and Enum's own are Python functions.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import msgspec

from emcd.errors import RemoteProtocolError
from emcd.proto.wish import ANY, Wish
from emcd.types import Address

JSON: Final = "application/json"
FORM: Final = "multipart/form-data"
MAX_CHOICES: Final = 16
MAX_MODEL_CHARS: Final = 256
_FORMS = frozenset(("TRANSCRIPTIONS", "TRANSLATIONS", "IMAGE_EDITS", "IMAGE_VARIATIONS"))
_MEDIA = frozenset(("SPEECH", "IMAGES"))


class Endpoint(Enum):
    """What is asked; the value is the path, which is part of the request hash."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    TRANSLATIONS = "/v1/audio/translations"
    SPEECH = "/v1/audio/speech"
    IMAGES = "/v1/images/generations"
    IMAGE_EDITS = "/v1/images/edits"
    IMAGE_VARIATIONS = "/v1/images/variations"

    __hash__ = object.__hash__

    def __init__(self, path: str) -> None:
        self.path = path
        self.word = self.name.lower()
        """Its name in manifests and settings."""
        self.is_form = self.name in _FORMS
        """Whether its body is multipart/form-data; all others are JSON."""
        self.is_media = self.is_form or self.name in _MEDIA
        """Whether it may be metered by the call: its answers need not state a usage."""


ENDPOINTS: Final = {endpoint.value: endpoint for endpoint in Endpoint}
ENDPOINT_WORDS: Final = {endpoint.name.lower(): endpoint for endpoint in Endpoint}
BASIC_ENDPOINTS: Final = frozenset((Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS))
"""What an engine serves whose manifest does not say."""


class RequestError(RemoteProtocolError):
    """A request that is refused before it is priced. `param` names the field for OpenAI's clients."""

    def __init__(self, code: str, detail: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(code, detail, status)
        self.param = param


class Once(msgspec.Struct, frozen=True):
    """A request that is to be done once: what is remembered of its Idempotency-Key, 32 bytes each.

    Attributes:
        key_hash: of the account and the key.
        request_hash: of what was asked; a form's boundary, which clients draw anew, is no part of it.
    """

    key_hash: bytes
    request_hash: bytes


class Hidden(msgspec.Struct, frozen=True):
    """What of an answer its client did not ask for.

    Attributes:
        most_logprobs: how many alternatives of a position it did ask for; None: no logprobs at all.
        token_ids: whether they are taken out.
    """

    most_logprobs: int | None
    token_ids: bool


class UpstreamRequest(msgspec.Struct, frozen=True):
    """A request as it goes to a node. The bounds are what it can cost at most.

    Attributes:
        body: what the node gets, and, with path and content type, what the request hash is over.
        stream: the answer is passed on in pieces as it comes: events, or the bytes of a sound.
        wants_usage: whether the client asked for a stream's usage chunk; if not, it is dropped.
        inputs: texts to embed, or prompts to complete.
        output_bound_tokens: over all choices; None when the client set no bound.
        wish: what it asks of routing.
        known_hash: its request hash where that was computed already, else empty.
        once: set where the client gave an Idempotency-Key.
        evidence: whether it asks for what a judge needs, as all calls of a model that can be verified do.
        hidden: what of that its client did not ask for; None: the answer passes as it comes.
        drawn_seed: the seed that was added, without which nobody can tell what was forwarded.
    """

    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    wants_usage: bool
    inputs: int
    choices: int
    input_bound_tokens: int
    output_bound_tokens: int | None
    wish: Wish = ANY
    content_type: str = JSON
    known_hash: bytes = b""
    once: Once | None = None
    evidence: bool = False
    hidden: Hidden | None = None
    drawn_seed: int | None = None

    @property
    def only(self) -> tuple[Address, ...]:
        """The nodes that may do it; empty: any."""
        return self.wish.only


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None
    emc_code: str


_encode = msgspec.json.Encoder().encode


def error_body(
    emc_code: str, message: str, *, type: str, code: str | None = None, param: str | None = None
) -> bytes:
    """An error body in OpenAI's shape, with our code beside theirs."""
    return _encode({"error": _ErrorBody(message, type, param, code, emc_code)})


def wrong(param: str, detail: str) -> RequestError:
    """A field that is missing or not as it must be."""
    return RequestError("EMC-1702", detail, param)


def read_bool(table: dict[str, Any], name: str) -> bool:
    """A field that is true, false, null or not there. Raises: RequestError EMC-1702."""
    value = table.get(name)
    if value is not None and type(value) is not bool:
        raise wrong(name, f"{name} must be true or false")
    return bool(value)


def read_number(table: dict[str, Any], name: str, most: int) -> int | None:
    """A field that is 1 to `most`, null or not there. Raises: RequestError EMC-1702."""
    value = table.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise wrong(name, f"{name} must be 1 to {most}")
    return value


def require_model(value: Any) -> str:
    """Raises: RequestError EMC-1702."""
    if type(value) is not str or not 0 < len(value) <= MAX_MODEL_CHARS:
        raise wrong("model", f"model must be a text of 1 to {MAX_MODEL_CHARS} characters")
    return value
