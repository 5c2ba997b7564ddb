"""OpenAI's Python client, as its users use it, against a running cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.clients.conftest import BURST, Cluster
from tests.e2e.clients.truth import answer_to, reply_to

pytestmark = [pytest.mark.nats, pytest.mark.slow]
STORY = "Tell me a story."


@pytest.fixture
def client(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=cluster.v1, api_key="python", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def later(cluster: Cluster) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=cluster.v1, api_key="python", max_retries=0, timeout=60) as made:
        yield made


def test_it_lists_the_models(client: OpenAI, cluster: Cluster) -> None:
    (listed,) = client.models.list()
    assert listed.id == client.models.retrieve(cluster.model).id == cluster.model


@pytest.mark.parametrize("prompt", ["Once upon a time", [5, 6, 7]], ids=["text", "ids"])
def test_a_completion_is_the_model_s(client: OpenAI, cluster: Cluster, prompt: str | list[int]) -> None:
    answer = client.completions.create(model=cluster.model, prompt=prompt, max_tokens=8, temperature=0)
    assert answer.choices[0].text == answer_to(prompt, 8) and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_a_streamed_completion_is_the_same(client: OpenAI, cluster: Cluster) -> None:
    stream = client.completions.create(model=cluster.model, prompt=STORY, max_tokens=8, temperature=0, stream=True)
    events = list(stream)
    assert len(events) > 1
    assert "".join(event.choices[0].text for event in events) == answer_to(STORY, 8)
    assert [event.choices[0].finish_reason for event in events if event.choices[0].finish_reason] == ["length"]


def test_several_prompts_and_several_answers(client: OpenAI, cluster: Cluster) -> None:
    answer = client.completions.create(model=cluster.model, prompt=["a story", STORY], max_tokens=4, n=2, temperature=0)
    texts = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    assert texts == [answer_to(prompt, 4) for prompt in ("a story", "a story", STORY, STORY)]


def test_a_chat_is_answered_with_the_template_of_the_model(client: OpenAI, cluster: Cluster) -> None:
    messages = [{"role": "user", "content": STORY}]
    answer = client.chat.completions.create(
        model=cluster.model, messages=messages, max_completion_tokens=8, temperature=0
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", reply_to(STORY, 8))
    assert answer.usage is not None and answer.usage.completion_tokens == 8 and answer._request_id == answer.id


def test_a_streamed_chat_is_the_same_and_tells_its_usage(client: OpenAI, cluster: Cluster) -> None:
    *events, last = client.chat.completions.create(
        model=cluster.model, messages=[{"role": "user", "content": STORY}], max_completion_tokens=8, temperature=0,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    assert "".join(event.choices[0].delta.content or "" for event in events) == reply_to(STORY, 8)
    assert events[0].choices[0].delta.role == "assistant"
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 8


def test_the_client_s_helper_puts_a_streamed_chat_together(client: OpenAI, cluster: Cluster) -> None:
    messages = [{"role": "user", "content": STORY}]
    words = reply_to(STORY, 8).split()  # the helper takes an answer that was cut by its length for an error
    with client.chat.completions.stream(
        model=cluster.model, messages=messages, max_completion_tokens=8, temperature=0, stop=words[6]
    ) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == " " + " ".join(words[:6]) + " "


def test_log_probabilities_come_with_a_chat(client: OpenAI, cluster: Cluster) -> None:
    answer = client.chat.completions.create(
        model=cluster.model, messages=[{"role": "user", "content": STORY}], max_completion_tokens=4, temperature=0,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [token.token for token in logprobs.content] == reply_to(STORY, 4).split()
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


async def test_the_asynchronous_client_does_the_same(later: AsyncOpenAI, cluster: Cluster) -> None:
    messages = [{"role": "user", "content": STORY}]
    plain, streamed = await asyncio.gather(
        later.completions.create(model=cluster.model, prompt=STORY, max_tokens=8, temperature=0),
        later.chat.completions.create(
            model=cluster.model, messages=messages, max_completion_tokens=8, temperature=0, stream=True
        ),
    )
    text = "".join([event.choices[0].delta.content or "" async for event in streamed])
    assert (plain.choices[0].text, text) == (answer_to(STORY, 8), reply_to(STORY, 8))


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt=STORY)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_bad_value_names_its_field(client: OpenAI, cluster: Cluster) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is -1") as caught:
        client.chat.completions.create(
            model=cluster.model, messages=[{"role": "user", "content": STORY}], temperature=-1
        )
    assert (caught.value.status_code, caught.value.param) == (400, "temperature")


def test_a_prompt_that_is_too_long_says_how_long_it_may_be(client: OpenAI, cluster: Cluster) -> None:
    with pytest.raises(openai.BadRequestError, match=r"context is \d+ tokens"):
        client.completions.create(model=cluster.model, prompt="story " * 200_000)


def test_a_deadline_that_has_passed_is_a_server_s_error(client: OpenAI, cluster: Cluster) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(
            model=cluster.model, prompt=STORY, max_tokens=1000, extra_headers={"x-request-timeout-ms": "50"}
        )
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


async def test_too_many_requests_of_one_key_are_a_rate_limit_error_and_others_are_served(
    cluster: Cluster, client: OpenAI
) -> None:
    async with AsyncOpenAI(base_url=cluster.v1, api_key="impatient", max_retries=0, timeout=60) as impatient:
        asking = (
            impatient.completions.create(model=cluster.model, prompt=STORY, max_tokens=1) for _ in range(BURST + 30)
        )
        answers = await asyncio.gather(*asking, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(answers) - len(refused) >= BURST and refused
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert client.completions.create(model=cluster.model, prompt=STORY, max_tokens=1).choices


async def test_the_client_s_own_retries_get_through_a_rate_limit(cluster: Cluster) -> None:
    async with AsyncOpenAI(base_url=cluster.v1, api_key="patient", max_retries=5, timeout=60) as patient:
        asking = [patient.completions.create(model=cluster.model, prompt=STORY, max_tokens=1) for _ in range(BURST + 3)]
        answers = await asyncio.gather(*asking)
    assert len(answers) == BURST + 3
