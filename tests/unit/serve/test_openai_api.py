"""Request bodies: what is taken, and that every refusal names field, value and what is taken."""

from __future__ import annotations

import math

import pytest

from pdray.core.errors import InvalidRequestError
from pdray.serve.chat_messages import turns_of
from pdray.serve.openai_api import ChatBody, CompletionBody, parse_chat, parse_completion

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def completion(**fields: object) -> CompletionBody:
    return parse_completion({"model": "m", "prompt": "Hi", **fields})


def chat(**fields: object) -> ChatBody:
    return parse_chat({"model": "m", "messages": [USER], **fields})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([0], [[0]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_the_four_kinds_of_prompt(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", 1], [1, -2], [1.5], 7, {"a": 1}])
def test_other_prompts_are_refused_by_name(prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt = .*accepted: a string") as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("n", 0),
        ("n", 129),
        ("stream", "yes"),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("ignore_eos", 1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("seed", 2**64),
        ("priority", 2**31),
        ("priority", "high"),
        ("seed", "x"),
        ("echo", "no"),
        ("model", 3),
        ("min_p", 1.01),
        ("min_p", -0.1),
        ("min_p", math.nan),
        ("presence_penalty", 2.5),
        ("presence_penalty", "1"),
        ("frequency_penalty", -2.01),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("logit_bias", [5]),
        ("logit_bias", {"5": 100.5}),
        ("logit_bias", {"5": math.nan}),
        ("logit_bias", {"-5": 1}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("min_tokens", -1),
        ("min_tokens", 1.5),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", True),
        ("include_stop_str_in_output", "yes"),
    ],
)
def test_wrong_values_are_refused_by_field_and_value(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**{field: value})
    assert caught.value.param == field
    message = str(caught.value)
    assert message.startswith(f"{field} = ")
    assert "accepted: " in message


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_missing_fields_are_named(field: str) -> None:
    body = {"model": "m", "prompt": "Hi"}
    del body[field]
    with pytest.raises(InvalidRequestError, match=f"{field} is missing; accepted: ") as caught:
        parse_completion(body)
    assert caught.value.param == field


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_body_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(InvalidRequestError, match="accepted: a JSON object"):
        parse_completion(data)


def test_null_counts_as_left_out() -> None:
    body = completion(max_tokens=None, stop=None, seed=None, temperature=None, logprobs=None)
    assert body.max_tokens is None
    assert body.stop_strings == ()
    assert body.temperature == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "someone"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("service_tier", "auto"),
        ("logprobs", False),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("logit_bias", {}),
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("best_of", 1),
        ("suffix", ""),
        ("repetition_penalty", 1.0),
    ],
)
def test_parameters_that_ask_for_nothing_are_taken(field: str, value: object) -> None:
    chat(**{field: value})
    completion(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["audio"]),
        ("best_of", 3),
        ("suffix", "end"),
        ("skip_special_tokens", False),
    ],
)
def test_parameters_of_later_versions_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match="not supported in this version") as caught:
        chat(**{field: value})
    assert caught.value.param == field
    assert str(caught.value).startswith(f"{field} = ")


def test_how_many_logprobs_are_wanted() -> None:
    assert completion().num_logprobs is None
    assert completion(logprobs=0).num_logprobs == 0
    assert completion(logprobs=20).num_logprobs == 20
    assert completion(logprobs=2, echo=True).num_prompt_logprobs == 2
    assert completion(logprobs=2, echo=True, prompt_logprobs=4).num_prompt_logprobs == 4
    assert completion(logprobs=2).num_prompt_logprobs is None
    assert chat(logprobs=True).num_logprobs == 0
    assert chat(logprobs=True, top_logprobs=7).num_logprobs == 7
    assert chat(prompt_logprobs=0).num_prompt_logprobs == 0


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("logprobs", {"logprobs": 3}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("prompt_logprobs", {"prompt_logprobs": 2, "stream": True}),
    ],
)
def test_a_chats_logprobs_are_refused_by_name(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="accepted: ") as caught:
        chat(**fields)
    assert caught.value.param == field


def test_biases_are_of_token_ids() -> None:
    assert completion(logit_bias={"5": 1, "007": -100}).bias_of_tokens == {5: 1.0, 7: -100.0}


def test_a_misspelled_parameter_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="max_token is no parameter") as caught:
        completion(max_token=5)
    assert caught.value.param == "max_token"


def test_stream_options_are_of_streams_only() -> None:
    assert completion(stream=True, stream_options={"include_usage": True}).has_usage_chunk
    assert not completion(stream=True, stream_options={}).has_usage_chunk
    with pytest.raises(InvalidRequestError, match=r"stream_options .*only together with stream"):
        completion(stream_options={"include_usage": True})
    with pytest.raises(InvalidRequestError, match="stream_options = "):
        completion(stream=True, stream_options={"include_usage": "yes"})


def test_text_parts_are_joined_and_developer_is_system() -> None:
    body = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        ]
    )
    assert turns_of(body.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "function", "content": "x", "name": "f"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    ],
)
def test_functions_and_images_are_not_supported_rather_than_malformed(message: object) -> None:
    with pytest.raises(InvalidRequestError, match="not supported in this version") as caught:
        chat(messages=[USER, message])
    assert caught.value.param == "messages"
    assert "messages[1]" in str(caught.value)


def test_an_image_is_named_by_its_place_in_the_message() -> None:
    parts = [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequestError) as caught:
        chat(messages=[USER, {"role": "user", "content": parts}])
    assert "messages[1].content[1].type = 'image_url' is not supported" in str(caught.value)
    assert "accepted: text" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("lora_request", "LoRA adapters are not supported"),
        ("speculative_config", "speculative decoding is not supported"),
        ("draft_model", "speculative decoding is not supported"),
        ("mm_processor_kwargs", "multimodal input is not supported"),
        ("frobnicate", "frobnicate is no parameter that this server knows"),
    ],
)
def test_fields_of_what_is_left_out_on_purpose_say_so(field: str, words: str) -> None:
    for take in (completion, chat):
        with pytest.raises(InvalidRequestError, match=words) as caught:
            take(**{field: {"a": 1}})
        assert caught.value.param == field
        assert field in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hi",
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "king", "content": "x"}],
        [3],
        [{"role": "assistant", "content": None}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "x", "tool_calls": [CALL]}],
        [{"role": "tool", "content": "x"}],
    ],
)
def test_malformed_messages_are_refused(messages: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages.*accepted: ") as caught:
        chat(messages=messages)
    assert caught.value.param == "messages"
