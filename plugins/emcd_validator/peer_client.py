"""Fetching what another validator serves, from the endpoint that the chain names.

Invariants: a deadline and a byte limit on every request; an endpoint is somebody else's choice, so
only https to a public name is asked, or plain http on loopback when this validator itself listens
there (a devnet); what comes back is JSON, unchecked.
"""

from __future__ import annotations

from typing import Any

from emcd.errors import ConfigError, RecoverableError
from emcd.net.http_client import Response, request
from emcd.net.url_guard import is_loopback, parse_target, require_public
from emcd.proto.records import format_call_id
from emcd_validator.task_form import HEADER

_MAX_BYTES = {
    "commitments": 1 << 16,
    "results": 1 << 17,
    "reveals": 16 << 20,
    "votes": 4 << 20,
    "evidence": 16 << 20,
    "tasks": 1 << 16,
    "seals": 1 << 16,
    "roots": 1 << 17,
    "offences": 4 << 20,
}


class PeerClient:
    """Requests to other validators."""

    def __init__(self, *, allow_loopback: bool, timeout_s: float) -> None:
        self._allow_loopback = allow_loopback
        self._timeout_s = timeout_s

    async def find_page(self, endpoint: str, what: str, key: int | bytes | None) -> Any:
        """A page of a peer: `what` is "reveals" and so on, `key` a round, a call id, a hash, or nothing.

        Returns: the JSON value; None when it serves none.
        Raises: RecoverableError (unreachable, late, too large, not JSON, an endpoint not to be asked).
        """
        self._require_askable(endpoint)
        url = f"{endpoint.rstrip('/')}/{what}"
        if key is not None:
            url += f"/{_name(key)}"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=_MAX_BYTES[what])
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise RecoverableError("EMC-1809", f"{answer.url} answers {answer.status}")
        return answer.json()

    async def find_task(self, endpoint: str, task_hash: bytes) -> dict[str, Any] | None:
        """What a peer says of a task: its answer, or that it waits; None when it knows nothing of it.

        Raises: as `find_page`.
        """
        self._require_askable(endpoint)
        url = f"{endpoint.rstrip('/')}/tasks/{_name(task_hash)}"
        answer = await request("GET", url, timeout_s=self._timeout_s, max_bytes=_MAX_BYTES["tasks"])
        return _read_state(answer)

    async def give_task(self, endpoint: str, header: str, transcript: bytes) -> dict[str, Any]:
        """Bring a task. Returns: its answer where the peer has one already. Raises: as `find_page`."""
        self._require_askable(endpoint)
        answer = await request(
            "POST",
            f"{endpoint.rstrip('/')}/tasks",
            body=transcript,
            headers={HEADER: header, "content-type": "application/octet-stream"},
            timeout_s=self._timeout_s,
            max_bytes=_MAX_BYTES["tasks"],
        )
        state = _read_state(answer)
        if state is None:
            raise RecoverableError("EMC-1809", f"{answer.url} takes no tasks")
        return state

    def _require_askable(self, endpoint: str) -> None:
        try:
            if self._allow_loopback and is_loopback(parse_target(endpoint).host):
                return
            require_public(endpoint)
        except ConfigError as exc:
            raise RecoverableError("EMC-1810", f"{endpoint[:200]}: {exc.detail}") from exc


def _read_state(answer: Response) -> dict[str, Any] | None:
    if answer.status == 404:
        return None
    if answer.status not in (200, 202):
        raise RecoverableError("EMC-1809", f"{answer.url} answers {answer.status}")
    page = answer.json()
    if not isinstance(page, dict):
        raise RecoverableError("EMC-1809", f"{answer.url} answers no object")
    return page


def _name(key: int | bytes) -> str:
    if isinstance(key, int):
        return str(key)
    return "0x" + key.hex() if len(key) == 32 else format_call_id(key)
