"""Which engine it is: each by its own answers, liars by none of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emcd.errors import RecoverableError
from emcd.inference.engine import Engine
from emcd.inference.engine_kind import UNKNOWN, EngineIdentity, confirm_engine, identify_engine
from tests.support.inference_engine import answer, scripted_engine

LLAMA = {"build_info": "b6500-8ff2060", "total_slots": 1}


def told(body: Any, status: int = 200) -> list[bytes]:
    return [answer(status, json.dumps(body).encode())]


@pytest.mark.parametrize(
    ("answers", "identity"),
    [
        ({"/version": {"version": "0.10.2"}}, EngineIdentity("vllm", "0.10.2")),
        ({"/props": LLAMA}, EngineIdentity("llama.cpp", "b6500-8ff2060")),
        ({"/api/version": {"version": "0.12.11"}}, EngineIdentity("ollama", "0.12.11")),
        ({"/info": {"version": "3.3.4", "model_id": "x"}}, EngineIdentity("tgi", "3.3.4")),
        (
            {"/get_server_info": {"version": "0.5.3", "model_path": "x"}, "/version": {"version": "9"}},
            EngineIdentity("sglang", "0.5.3"),
        ),
        ({"/server_info": {"version": "0.5.9", "model_path": "x"}}, EngineIdentity("sglang", "0.5.9")),
        (
            {"/openapi.json": {"paths": {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}}}},
            EngineIdentity("transformers", ""),
        ),
        ({"/info": {"version": "1"}}, UNKNOWN),
        ({"/version": {"version": 3}}, UNKNOWN),
        ({"/version": ["0.10.2"]}, UNKNOWN),
        ({"/openapi.json": {"paths": {"/v1/chat/completions": {}}}}, UNKNOWN),
        ({"/version": {"version": "9" * 1000}}, EngineIdentity("vllm", "9" * 64)),
        ({}, UNKNOWN),
    ],
)
async def test_identify_engine_by_what_it_answers(answers: dict[str, Any], identity: EngineIdentity) -> None:
    async with scripted_engine({path: told(body) for path, body in answers.items()}) as engine:
        assert await identify_engine(Engine(engine.url)) == identity


async def test_identify_engine_passes_over_answers_that_are_no_json() -> None:
    async with scripted_engine(
        {"/props": [answer(200, b"<html>")], "/info": told({"version": "1", "model_id": "x"}, status=403),
         "/version": told({"version": "1.2"})}
    ) as engine:  # fmt: skip
        assert await identify_engine(Engine(engine.url)) == EngineIdentity("vllm", "1.2")


async def test_confirm_engine_needs_one_question_while_nothing_changed() -> None:
    async with scripted_engine({"/version": told({"version": "1"})}) as engine:
        known = await identify_engine(Engine(engine.url))
        engine.seen.clear()
        assert await confirm_engine(Engine(engine.url), known) == known
        assert [seen.line.split()[1] for seen in engine.seen] == ["/version"]


async def test_confirm_engine_sees_another_engine_and_another_version() -> None:
    async with scripted_engine({"/version": told({"version": "1"})}) as engine:
        known = await identify_engine(Engine(engine.url))
        engine.answers["/version"] = told({"version": "2"})
        assert await confirm_engine(Engine(engine.url), known) == EngineIdentity("vllm", "2")
        engine.answers["/props"] = told(LLAMA)
        assert (await confirm_engine(Engine(engine.url), EngineIdentity("vllm", "1"))).name == "llama.cpp"


async def test_identify_engine_that_is_away_raises() -> None:
    async with scripted_engine({}) as engine:
        url = engine.url
    with pytest.raises(RecoverableError):
        await identify_engine(Engine(url))
