"""A small traffic generator for the devnet: calls as the `openai` client makes them, paid from the vault.

Owns nothing that survives. It must not know a node, a probe or a price: it is a user. The key is
read from its file when the first call is made, since the devnet makes the key after the start.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import trio

from emcd.config import setting
from emcd.errors import RecoverableError
from emcd.net.http_client import request
from emcd.role import Health, HealthState, RoleContext, RoleSpec

CALL_TIMEOUT_S = 30.0
_CLIENT_HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 3.54.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Async": "false",
    "X-Stainless-Retry-Count": "0",
}
_TEXT = """
the of and to in is you that it he was for on are as with his they at be this have from or one had
by word but not what all were we when your can said there use an each which she do how their if will
up other about out many then them these so some her would make like him into time has look two more
write go see number no way could people my than first water been call who oil its now find long down
day did get come made may part battery model router invoice refund contract garden recipe train
ticket server latency quarter harbour winter museum
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class TrafficConfig:
    """Who calls what, how often."""

    hub_url: str = setting(doc="base URL of the hub, without /v1")
    api_key_file: Path = setting(doc="file with the API key")
    model: str = setting("all-MiniLM-L6-v2", doc="model that makes vectors")
    text_model: str = setting("", doc="model to chat with; empty: none")
    text_share: float = setting(0.3, minimum=0, maximum=1, doc="of the calls, with a text_model")
    calls_per_s: float = setting(
        4.0, minimum=0.01, maximum=1000, doc="average rate; times between calls are exponential"
    )
    parallel: int = setting(8, minimum=1, maximum=256, doc="calls under way at once, at most")


def draw_chat(draw: random.Random, model: str) -> dict[str, object]:
    """One chat request in a shape that users' clients send."""
    messages = [{"role": "user", "content": " ".join(draw.choices(_WORDS, k=draw.randint(3, 25)))}]
    if draw.random() < 0.4:
        messages.insert(0, {"role": "system", "content": "You are a helpful assistant."})
    body: dict[str, object] = {"messages": messages, "model": model, "max_tokens": draw.choice((8, 16, 32))}
    if draw.random() < 0.5:
        body["temperature"] = draw.choice((0, 0.2, 0.7, 1))
    if draw.random() < 0.5:
        body["stream"] = True
    return body


def draw_body(draw: random.Random, model: str) -> dict[str, object]:
    """One embeddings request in a shape that users' clients send."""
    texts = [
        " ".join(draw.choices(_WORDS, k=draw.randint(3, 60))) for _ in range(draw.choice((1, 1, 1, 2, 4)))
    ]
    given: str | list[str] = texts[0] if len(texts) == 1 and draw.random() < 0.7 else texts
    return {"input": given, "model": model, "encoding_format": draw.choice(("base64", "base64", "float"))}


class Traffic:
    """The role."""

    def __init__(self, config: TrafficConfig) -> None:
        self._config = config
        self._limiter = trio.CapacityLimiter(config.parallel)
        self._draining = False
        self._failures = 0

    async def setup(self, ctx: RoleContext) -> None:
        self._log = ctx.log

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        draw = random.Random()  # noqa: S311 - words and pauses, nothing to guess
        task_status.started()
        key = await self._wait_for_key()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(draw.expovariate(self._config.calls_per_s))
                if not self._draining and self._limiter.available_tokens > 0:
                    nursery.start_soon(self._call, key, *self._draw_call(draw))

    async def drain(self) -> None:
        self._draining = True

    def health(self) -> Health:
        if self._draining:
            return Health(HealthState.DRAINING)
        return Health(HealthState.READY)

    def _draw_call(self, draw: random.Random) -> tuple[str, dict[str, object]]:
        config = self._config
        if config.text_model and draw.random() < config.text_share:
            return "/v1/chat/completions", draw_chat(draw, config.text_model)
        return "/v1/embeddings", draw_body(draw, config.model)

    async def _wait_for_key(self) -> str:
        path = trio.Path(self._config.api_key_file)
        while True:
            try:
                if key := (await path.read_text()).strip():
                    return key
            except FileNotFoundError:
                pass
            await trio.sleep(0.25)

    async def _call(self, key: str, path: str, body: dict[str, object]) -> None:
        async with self._limiter:
            try:
                answer = await request(
                    "POST",
                    f"{self._config.hub_url}{path}",
                    json=body,
                    headers={**_CLIENT_HEADERS, "Authorization": f"Bearer {key}"},
                    timeout_s=CALL_TIMEOUT_S,
                    max_bytes=4 << 20,
                )
            except RecoverableError as exc:
                self._note(str(exc))
                return
        if answer.status != 200:
            self._note(f"HTTP {answer.status}")

    def _note(self, reason: str) -> None:
        self._failures += 1
        self._log.info("traffic_call_failed", reason=reason, failures=self._failures)


SPEC = RoleSpec(
    kind="traffic",
    config=TrafficConfig,
    build=Traffic,
    summary="calls the hub as a user would (devnet)",
    needs_network=False,
)
