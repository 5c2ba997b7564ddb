"""LangChain's OpenAI provider, as its users use it, against a running cluster."""

from typing import Any

import openai
import pytest

from tests.e2e.clients.conftest import Cluster
from tests.e2e.clients.truth import answer_to, reply_to

pytestmark = [pytest.mark.nats, pytest.mark.slow]
STORY = "Tell me a story."


@pytest.fixture
def settings(cluster: Cluster) -> dict[str, Any]:
    return {
        "base_url": cluster.v1, "api_key": "langchain", "model": cluster.model, "max_retries": 0, "timeout": 60,
        "max_tokens": 8, "temperature": 0,
    }  # fmt: skip


def test_a_chat_model_is_invoked_and_streams(settings: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(**settings)
    answer = chat.invoke(STORY)
    assert answer.content == reply_to(STORY, 8)
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] == 8
    assert "".join(str(piece.content) for piece in chat.stream(STORY)) == answer.content


async def test_a_chat_model_is_invoked_and_streams_asynchronously(settings: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(**settings)
    system = ("system", "You are brief.")
    answer = await chat.ainvoke([system, ("human", STORY)])
    pieces = [piece async for piece in chat.astream([system, ("human", STORY)])]
    assert len(pieces) > 1 and "".join(str(piece.content) for piece in pieces) == answer.content
    assert len(str(answer.content).split()) == 8 and answer.content != reply_to(STORY, 8)


def test_a_text_model_is_invoked_streams_and_takes_a_batch(settings: dict[str, Any]) -> None:
    from langchain_openai import OpenAI

    text = OpenAI(**settings)
    assert text.invoke(STORY) == "".join(text.stream(STORY)) == answer_to(STORY, 8)
    assert text.batch([STORY, "Once"]) == [answer_to(STORY, 8), answer_to("Once", 8)]


def test_what_the_engine_does_not_do_is_an_error_and_not_ignored(settings: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI

    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    with pytest.raises(openai.BadRequestError, match="tools"):
        ChatOpenAI(**settings).bind_tools([weather]).invoke(STORY)
