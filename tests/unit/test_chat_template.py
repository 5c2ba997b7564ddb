"""Messages into a prompt's text: what is taken, what is refused, and what a template may do."""

from typing import Any

import pytest

from dopd.errors import BadRequest, ConfigError
from dopd_gateway.chat_template import ChatTemplate, checked
from dopd_gateway.number_tokenizer import NumberTokenizer

USER = {"role": "user", "content": "Hello"}


def rendered(source: str, *messages: dict[str, Any], **extra: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, "test").text(list(messages) or [USER], True, extra, 86_400.0)


def test_the_template_has_messages_special_tokens_and_the_callers_words() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
        "{{ style }}{% if add_generation_prompt %}>{% endif %}"
    )
    assert rendered(source, USER, style="short") == "<s>user=Hello;short>"


def test_blocks_leave_no_line_ends_and_loops_may_break() -> None:
    source = (
        "{% for m in messages %}\n  {% if loop.index > 1 %}\n{% break %}\n  {% endif %}\n{{ m.content }}\n{% endfor %}"
    )
    assert rendered(source, USER, USER) == "Hello\n"


def test_words_that_are_marked_for_training_are_text() -> None:
    assert rendered("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c") == "abHelloc"


def test_json_is_not_escaped_as_for_a_web_page() -> None:
    assert rendered("{{ messages[0] | tojson }}", {"role": "user", "content": "<ä&>"}) == (
        '{"role": "user", "content": "<ä&>"}'
    )


def test_the_day_comes_from_the_runtimes_clock() -> None:
    assert rendered("{{ strftime_now('%Y') }}") == "1970"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_the_template_refuses_or_may_not_do_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template") as caught:
        rendered(source)
    assert caught.value.param == "messages"


def test_words_of_the_caller_do_not_replace_the_messages() -> None:
    with pytest.raises(BadRequest):
        rendered("{{ messages }}", USER, messages=[])


def test_a_template_that_is_none_is_an_error_of_the_set_up() -> None:
    with pytest.raises(ConfigError, match="chat_template"):
        ChatTemplate("{% for %}", {}, "the model")


def test_parts_of_text_are_joined_and_empty_fields_are_left_out() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = [
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "audio": None},
        {"role": "assistant", "content": "x", "tool_calls": []},
    ]
    assert checked(said) == [
        {"role": "user", "name": "me", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "x"},
    ]


WRONG: list[tuple[list[Any], str]] = [
    ([], "messages"),
    ([{}], "messages[0].role"),
    ([{"role": ""}], "messages[0].role"),
    ([{"role": 5, "content": "x"}], "messages[0].role"),
    ([USER, {"role": "user", "content": 5}], "messages[1].content"),
    ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
    ([{"role": "user", "content": ["text"]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content"),
    ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
    ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
    ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].tool_call_id"),
]


@pytest.mark.parametrize(("messages", "param"), WRONG, ids=str)
def test_a_message_that_is_none_is_refused_with_its_place(messages: list[Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked(messages)
    assert caught.value.param == param and param.rpartition(".")[2] in caught.value.message


def test_the_emulated_engine_chats_too() -> None:
    words = NumberTokenizer(1000)
    text = words.chat([USER], True, {}, 0.0)
    assert text == "user: Hello\nassistant: " and len(words.encode(text)) > 3
