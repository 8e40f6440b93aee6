"""What the operator's commands share: the admin listener, its URL and its token."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from emcd.errors import ConfigError, RecoverableError
from emcd.net.http_client import request

TOKEN_VARIABLE = "EMCD_ADMIN_TOKEN"
URL_VARIABLE = "EMCD_ADMIN_URL"
DEFAULT_URL = "http://127.0.0.1:8422"
TIMEOUT_S = 20.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class AdminClient:
    """The admin listener at one URL."""

    url: str
    token: str

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Do one request. Raises: RecoverableError EMC-1770, or what the HTTP client raises."""
        return trio.run(self._call, method, path, body)

    async def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        answer = await request(
            method,
            self.url.rstrip("/") + path,
            json=body,
            headers={"authorization": f"Bearer {self.token}"},
            timeout_s=TIMEOUT_S,
            max_bytes=16 << 20,
        )
        try:
            document = answer.json()
        except RecoverableError:
            document = None
        if not isinstance(document, dict) or not 200 <= answer.status < 300:
            error = document.get("error") if isinstance(document, dict) else None
            reason = error.get("message") if isinstance(error, dict) else f"status {answer.status}"
            raise RecoverableError("EMC-1770", str(reason)[:300])
        return document


def admin_options(command: F) -> F:
    """Add --url and --token-file; the command gets an `AdminClient` as `admin`."""

    @click.option(
        "--url", envvar=URL_VARIABLE, default=DEFAULT_URL, show_default=True, help="The admin listener."
    )
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help=f"A file with the token alone, or a devnet.json; without it {TOKEN_VARIABLE} is used.",
    )
    @wraps(command)
    def wrapped(*args: Any, url: str, token_file: Path | None, **kwargs: Any) -> Any:
        return command(*args, admin=AdminClient(url, read_token(token_file)), **kwargs)

    return wrapped  # type: ignore[return-value]


def read_token(file: Path | None) -> str:
    """The admin token from a file or the environment. Raises: ConfigError EMC-1771."""
    text = file.read_text("utf-8").strip() if file is not None else os.environ.get(TOKEN_VARIABLE, "")
    if text.startswith("{"):
        try:
            text = str(json.loads(text).get("admin_token", ""))
        except ValueError as exc:
            raise ConfigError("EMC-1771", f"{file} is not JSON") from exc
    if not text or not text.isascii() or any(c.isspace() for c in text):
        raise ConfigError("EMC-1771", f"{file or TOKEN_VARIABLE} holds no token")
    return text
