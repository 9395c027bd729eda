"""The LiteLLM library's calls, made by its own interpreter.

``litellm_calls.py BASE_URL KEY`` tells in one line of JSON what became of each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import litellm

HELLO = "Hello from a real client"
WORDS = [{"role": "user", "content": HELLO}]


def main(base: str, key: str) -> None:
    """Make them all, one after another; the first finds its backend cold."""
    common: dict[str, Any] = {"api_key": key, "num_retries": 0, "max_retries": 0, "timeout": 20}
    openai = {**common, "api_base": f"{base}/v1"}

    def chat(model: str, **more: Any) -> Any:
        return litellm.completion(model=f"openai/{model}", messages=WORDS, **openai, **more)

    def streamed(model: str, **more: Any) -> str:
        return "".join(chunk.choices[0].delta.content or "" for chunk in chat(model, stream=True, **more))

    def embedding() -> list[float]:
        found = litellm.embedding(model="openai/a-model", input=[HELLO], **openai).data[0]["embedding"]
        return [float(number) for number in found]

    def message() -> str:
        found: Any = litellm.completion(
            model="anthropic/a-model", messages=WORDS, max_tokens=200, **{**common, "api_base": base}
        )
        return str(found.choices[0].message.content)

    async def many() -> list[str]:
        calls = [
            litellm.acompletion(
                model="openai/a-model", messages=[{"role": "user", "content": f"number {number}"}], **openai
            )
            for number in range(8)
        ]
        return [found.choices[0].message.content for found in await asyncio.gather(*calls)]

    calls: dict[str, Callable[[], Any]] = {
        "cold stream": lambda: streamed("beats-model"),
        "cold": lambda: chat("a-model").choices[0].message.content,
        "warm stream": lambda: streamed("a-model"),
        "response": lambda: litellm.responses(model="openai/a-model", input=HELLO, **openai).output_text,
        "embedding": embedding,
        "message": message,
        "many": lambda: asyncio.run(many()),
        "late": lambda: streamed("late-model"),
        "broken": lambda: chat("broken-model"),
        "unknown": lambda: chat("nobody"),
        "full": lambda: chat("slow-model"),
        "dies": lambda: streamed("a-model", extra_headers={"X-Demo-Fault": "die-mid-stream=3"}),
    }
    told: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            told[name] = {"answer": call()}
        except Exception as wrong:
            told[name] = {"error": type(wrong).__name__, "message": str(wrong)}
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
