"""The unmodified `openai` client for Node.js against hub, node and engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.node_packages import node_and_packages
from tests.support.openai_world import OpenAIWorld, openai_world
from tests.support.toy_engine import MODEL, PIXEL, SOUND

CLIENTS = Path(__file__).parents[1] / "clients"

pytestmark = pytest.mark.node


async def run_client(world: OpenAIWorld) -> Any:
    node, packages = await trio.to_thread.run_sync(node_and_packages, CLIENTS)
    poor = await world.hub.plane.office.create_account("poor")
    key = await world.hub.plane.office.keys.create_key(poor.account_id, "")
    args = [str(packages), world.hub.url + "/v1", world.hub.api_key, MODEL, key.secret]
    done = await trio.run_process(
        [*node, str(CLIENTS / "client.mjs"), *args],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return json.loads(done.stdout)


async def test_client_does_everything_it_can_do(tmp_path: Path) -> None:
    async with openai_world(tmp_path) as world:
        with trio.fail_after(60):
            told = await run_client(world)
    replay, errors = told.pop("replay"), told.pop("errors")
    assert told == {
        "models": [MODEL],
        "chat": "a b",
        "finish": "tool_calls",
        "usage": None,
        "tool": '{"usage": "[DONE]"}',
        "counted": 4,
        "text": "a b",
        "vector": [0.25, -0.5],
        "response": "a b",
        "events": [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.output_item.done",
            "response.completed",
        ],
        "heard": "a b",
        "heardEvents": ["transcript.text.delta", "transcript.text.done"],
        "translated": "a b",
        "speech": ["audio/mpeg", len(SOUND)],
        "image": PIXEL,
        "edited": 1,
    }
    assert replay[0][0] == replay[1][0]
    assert [is_replay for _, is_replay in replay] == [None, "true"]
    assert errors == {
        "key": {"name": "AuthenticationError", "status": 401, "code": "invalid_api_key"},
        "model": {"name": "NotFoundError", "status": 404, "code": "model_not_found"},
        "quota": {"name": "RateLimitError", "status": 429, "code": "insufficient_quota"},
        "field": {"name": "BadRequestError", "status": 400, "code": "invalid_request"},
    }
