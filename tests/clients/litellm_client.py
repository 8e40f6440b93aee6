"""LiteLLM as a client of a hub: does everything once, and says what it got as JSON.

Runs in LiteLLM's own environment. Usage: python litellm_client.py BASE_URL API_KEY MODEL
"""

import io
import json
import sys
from typing import Any

import litellm

BASE_URL, API_KEY, MODEL = sys.argv[1:]
ACCESS: dict[str, Any] = {"api_base": BASE_URL, "api_key": API_KEY, "num_retries": 0, "timeout": 10}
NAME = f"openai/{MODEL}"
MESSAGES = [{"role": "user", "content": "count"}]


def fail(**fields: Any) -> list[Any]:
    try:
        litellm.completion(**{"model": NAME, "messages": MESSAGES, **ACCESS, **fields})
    except Exception as exc:
        return [type(exc).__name__, getattr(exc, "status_code", None)]
    return []


def main() -> dict[str, Any]:
    sound = io.BytesIO(b"ID3 sound")
    sound.name = "a.mp3"
    chat = litellm.completion(model=NAME, messages=MESSAGES, **ACCESS)
    chunks = list(litellm.completion(model=NAME, messages=MESSAGES, stream=True, **ACCESS))
    vectors = litellm.embedding(model=NAME, input=["x"], encoding_format="float", **ACCESS)
    response = litellm.responses(model=NAME, input="x", **ACCESS)
    events = list(litellm.responses(model=NAME, input="x", stream=True, **ACCESS))
    heard = litellm.transcription(model=NAME, file=sound, **ACCESS)
    image = litellm.image_generation(model=NAME, prompt="x", **ACCESS)
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    return {
        "chat": chat.choices[0].message.content,
        "usage": chat.usage.completion_tokens,
        "finish": chunks[-1].choices[0].finish_reason,
        "tool": "".join(call.function.arguments for call in calls),
        "vector": vectors.data[0]["embedding"],
        "response": response.output[0].content[0].text,
        "event": str(events[-1].type.value),
        "heard": heard.text,
        "image": image.data[0].b64_json,
        "errors": {"key": fail(api_key="emc_sk_x"), "model": fail(model="openai/nothing")},
    }


json.dump(main(), sys.stdout)
