"""What a node reads of its hub's public pages: what a round says of it, and the bundle itself.

Invariants: a deadline and a byte limit on every request; the address is the operator's choice, or an
endpoint of the chain that may be asked; nothing here is believed before its seal is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from emcd.bundle_file import run_somewhere
from emcd.errors import RecoverableError, RemoteProtocolError
from emcd.net.download import download
from emcd.net.http_client import request
from emcd.proto.eip712 import Domain
from emcd.types import Address
from emcd_node.bundle_scan import Scanned, scan_bundle

MAX_PAGE_BYTES = 64 << 20
"""Ten thousand participants with their verdicts need a sixth of it."""


@dataclass(frozen=True)
class RoundWord:
    """What the hub says of a sealed round, unsigned. `credits_micro` are this node's."""

    previous_round: int
    calls: int
    credits_micro: int
    passed: int


class _Verdict(msgspec.Struct, frozen=True):
    verdict: str


class _Participant(msgspec.Struct, frozen=True):
    node: str
    credits_micro: str | int = 0
    verdicts: tuple[_Verdict, ...] = ()


class _Round(msgspec.Struct, frozen=True):
    bundle_hash: str | None = None
    hub_signature: str | None = None
    previous_round: int | None = None
    calls: int = 0
    participants: tuple[_Participant, ...] = ()


class HubPages:
    """The public API of one hub."""

    def __init__(
        self,
        *,
        node: Address,
        hub: Address,
        domain: Domain,
        folder: Path,
        max_bundle_bytes: int,
        timeout_s: float,
    ) -> None:
        """`folder`: where a bundle stands while it is looked at."""
        self._node = node
        self._hub = hub
        self._domain = domain
        self._target = folder / f"{node}-bundle.partial"
        self._max_bundle_bytes = max_bundle_bytes
        self._timeout_s = timeout_s

    async def find_word(self, base: str, round_index: int) -> RoundWord | None:
        """What the hub says of a round; None until it is sealed. Raises: RecoverableError."""
        url = f"{base.rstrip('/')}/api/rounds/{round_index}"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=MAX_PAGE_BYTES)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-2031", f"{answer.url} answers {answer.status}")
        page = answer.json(_Round)
        if not page.bundle_hash or not page.hub_signature or page.previous_round is None:
            return None
        own = next((item for item in page.participants if item.node == self._node), None)
        credits_micro = str(own.credits_micro) if own is not None else "0"
        if not credits_micro.isascii() or not credits_micro.isdigit() or len(credits_micro) > 20:
            raise RecoverableError("EMC-2031", f"{answer.url}: credits_micro is {credits_micro[:40]!r}")
        passed = sum(item.verdict == "PASS" for item in own.verdicts) if own is not None else 0
        return RoundWord(page.previous_round, page.calls, int(credits_micro), passed)

    async def scan(self, base: str, round_index: int) -> Scanned | None:
        """This node's calls in the round's bundle; None while the hub serves none.

        Raises: RecoverableError EMC-2031 (not what the hub sealed), EMC-13xx; OSError is one too.
        Cancellation: the file is removed.
        """
        url = f"{base.rstrip('/')}/api/rounds/{round_index}/bundle"
        try:
            answer = await download(
                url, self._target, max_bytes=self._max_bundle_bytes, timeout_s=self._timeout_s
            )
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise RecoverableError("EMC-2031", f"{answer.url} answers {answer.status}")
            seal = bytes.fromhex(answer.headers.get("x-emc-bundle-seal", "").removeprefix("0x"))
            place = (self._target, round_index, self._node, self._hub, self._domain, seal)
            return await run_somewhere(scan_bundle, *place, size_bytes=answer.size_bytes)
        except (RemoteProtocolError, ValueError, OSError) as exc:
            raise RecoverableError("EMC-2031", f"{url}: {exc}") from exc
        finally:
            self._target.unlink(missing_ok=True)
