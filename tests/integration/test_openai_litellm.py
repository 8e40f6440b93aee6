"""The unmodified LiteLLM library as a client of hub, node and engine; in an environment of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from tests.bench.peers import Unavailable, ensure_litellm
from tests.support.openai_world import openai_world
from tests.support.toy_engine import MODEL, PIXEL

CLIENT = Path(__file__).parents[1] / "clients" / "litellm_client.py"

pytestmark = pytest.mark.deep


async def test_client_does_everything_it_can_do(tmp_path: Path) -> None:
    try:
        environment = await trio.to_thread.run_sync(ensure_litellm)
    except Unavailable as exc:
        pytest.skip(str(exc))
    async with openai_world(tmp_path) as world:
        command = [
            str(environment / "bin" / "python"),
            str(CLIENT),
            world.hub.url + "/v1",
            world.hub.api_key,
            MODEL,
        ]
        with trio.fail_after(180):
            done = await trio.run_process(
                command,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(tmp_path),
                    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                },
            )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("errors") == {"key": ["AuthenticationError", 401], "model": ["NotFoundError", 404]}
    assert told == {
        "chat": "a b",
        "usage": 4,
        "finish": "tool_calls",
        "tool": '{"usage": "[DONE]"}',
        "vector": [0.25, -0.5],
        "response": "a b",
        "event": "response.completed",
        "heard": "a b",
        "image": PIXEL,
    }
