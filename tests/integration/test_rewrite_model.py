"""``rewrite_model`` with real clients: every answer names the model as it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest

from tests.integration.clients import HELLO, WORDS
from tests.integration.proxy import KEY, Proxy, demo, running

ALIAS = "gpt-4o"


@pytest.fixture(scope="module")
def proxy(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One backend whose answers are renamed."""
    backend = demo("--start-delay", "0.3", aliases=[ALIAS], rewrite_model=True)
    with running(kind, tmp_path_factory.mktemp("renamed"), {"a": backend}) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("asked", "told"), [(ALIAS, ALIAS), ("a", "a"), ("a-model", "a-model")])
def test_chats(client: openai.OpenAI, asked: str, told: str) -> None:
    """Whole, and each event of a stream, with the text that it has without."""
    answer = client.chat.completions.create(model=asked, messages=WORDS)
    chunks = list(client.chat.completions.create(model=asked, messages=WORDS, stream=True))
    assert answer.model == told
    assert {chunk.model for chunk in chunks} == {told}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content


def test_responses(client: openai.OpenAI) -> None:
    """Whole, and in the events that hold one."""
    assert client.responses.create(model=ALIAS, input=HELLO).model == ALIAS
    with client.responses.stream(model=ALIAS, input=HELLO) as events:
        for _ in events:
            pass
        assert events.get_final_response().model == ALIAS


def test_embeddings(client: openai.OpenAI) -> None:
    """They are JSON as well."""
    assert client.embeddings.create(model=ALIAS, input="x").model == ALIAS


def test_messages(proxy: Proxy) -> None:
    """Anthropic's client reads it from the first event of a stream."""
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{proxy.port}", api_key=KEY, max_retries=0) as client:
        assert client.messages.create(model=ALIAS, messages=WORDS, max_tokens=9).model == ALIAS
        with client.messages.stream(model=ALIAS, messages=WORDS, max_tokens=9) as stream:
            assert stream.get_final_message().model == ALIAS
