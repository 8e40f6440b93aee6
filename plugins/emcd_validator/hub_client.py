"""What a validator asks of the hub, over its public API, like any user.

Invariants: every request has a deadline and a byte limit; an answer is data to be checked, never
an exception to be believed; API keys appear in the authorization header and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.download import download
from emcd.net.http_client import Response, request
from emcd.proto.address import parse_address, parse_hash
from emcd.proto.bundle_codec import MAX_BUNDLE_BYTES
from emcd.proto.records import format_call_id, parse_call_id
from emcd.types import Address, Hash
from emcd_validator.client_shape import CLIENTS, build_headers, client_of

MAX_ANSWER_BYTES = 8 << 20
"""A streamed answer of 4,000 tokens with five alternatives each; sixteen vectors in decimal need far less."""
_MAX_NODES_BYTES = 64 << 20
_MAX_RECEIPT_BYTES = 1 << 20


@dataclass(frozen=True)
class NodeOffer:
    """A node as the hub shows it."""

    is_online: bool
    models: frozenset[str]
    last_status_at_ms: int


@dataclass(frozen=True)
class HubAnswer:
    """What came of a probe: status 0 and a reason when nothing whole came."""

    status: int
    content_type: str = ""
    body: bytes = b""
    call_id: bytes = b""
    reason: str = ""


@dataclass(frozen=True)
class SealedBundle:
    """A bundle's file with the hub's word for it, both unchecked."""

    path: Path
    bundle_hash: Hash
    seal: bytes


class _Model(msgspec.Struct, frozen=True):
    name: str


class _Node(msgspec.Struct, frozen=True):
    address: str
    online: bool
    models: tuple[_Model, ...] = ()
    last_status_at_ms: int | None = None


class _Nodes(msgspec.Struct, frozen=True):
    nodes: tuple[_Node, ...]


class HubClient:
    """The hub at one URL."""

    def __init__(
        self, base_url: str, *, timeout_s: float = 10.0, clients: Mapping[str, float] | None = None
    ) -> None:
        """Args: `clients` are the shares of the programs that the API keys belong to."""
        self._base = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._clients = clients or dict.fromkeys(CLIENTS, 1.0)
        self._held: dict[Path, SealedBundle] = {}

    async def fetch_nodes(self) -> Mapping[Address, NodeOffer]:
        """The nodes with what they offer. Raises: RecoverableError."""
        answer = await self._get("/api/nodes", max_bytes=_MAX_NODES_BYTES)
        if answer.status != 200:
            raise RecoverableError("EMC-1809", f"/api/nodes answers {answer.status}")
        offers: dict[Address, NodeOffer] = {}
        for node in answer.json(_Nodes).nodes:
            try:
                address = parse_address(node.address)
            except RemoteProtocolError:
                continue
            models = frozenset(model.name for model in node.models)
            offers[address] = NodeOffer(node.online, models, node.last_status_at_ms or 0)
        return offers

    async def send_probe(self, path: str, body: bytes, api_key: str, timeout_s: float) -> HubAnswer:
        """Send a probe once; a stream is read to its end and kept as it came.

        Cancellation: the hub may have carried it out.
        """
        try:
            answer = await request(
                "POST",
                self._base + path,
                body=body,
                headers=build_headers(client_of(api_key, self._clients), api_key),
                timeout_s=timeout_s,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except RecoverableError as exc:
            return HubAnswer(0, reason=str(exc)[:200])
        try:
            call_id = parse_call_id(answer.headers.get("x-emc-call-id", ""))
        except RemoteProtocolError:
            call_id = b""
        return HubAnswer(answer.status, answer.headers.get("content-type", ""), answer.body, call_id)

    async def fetch_receipt(self, call_id: bytes, api_key: str) -> bytes | None:
        """The receipt's JSON; None while its proofs are not there. Raises: RecoverableError."""
        headers = {"authorization": f"Bearer {api_key}"}
        path = f"/v1/calls/{format_call_id(call_id)}/receipt"
        answer = await self._get(path, max_bytes=_MAX_RECEIPT_BYTES, headers=headers)
        if answer.status == 202:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-1809", f"{path} answers {answer.status}")
        return answer.body

    async def find_bundle(self, round_index: int, path: Path, timeout_s: float) -> SealedBundle | None:
        """Fetch the round's sealed bundle into a file; None while there is none.

        A file that is there already, by this client, is fetched again only when the hub has another one.

        Raises: RecoverableError. OSError (the disk).
        """
        url = f"{self._base}/api/rounds/{round_index}/bundle"
        held = self._find_held(path)
        headers = {} if held is None else {"if-none-match": f'"{held.bundle_hash.hex()}"'}
        fresh = path.with_suffix(".partial")
        answer = await download(url, fresh, max_bytes=MAX_BUNDLE_BYTES, timeout_s=timeout_s, headers=headers)
        if answer.status == 304 and held is not None:
            return held
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-1809", f"{url} answers {answer.status}")
        try:
            bundle_hash = parse_hash(answer.headers.get("x-emc-bundle-hash", ""))
            seal = bytes.fromhex(answer.headers.get("x-emc-bundle-seal", "").removeprefix("0x"))
        except (RemoteProtocolError, ValueError) as exc:
            fresh.unlink(missing_ok=True)
            raise RecoverableError("EMC-1809", f"{url}: {exc}") from exc
        fresh.replace(path)
        self._held[path] = SealedBundle(path, bundle_hash, seal)
        return self._held[path]

    def _find_held(self, path: Path) -> SealedBundle | None:
        self._held = {known: item for known, item in self._held.items() if known.is_file()}
        return self._held.get(path)

    async def _get(
        self,
        path: str,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        return await request(
            "GET",
            self._base + path,
            headers=headers,
            timeout_s=self._timeout_s,
            max_bytes=max_bytes,
        )
