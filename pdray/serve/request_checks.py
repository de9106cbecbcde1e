"""What a request body may not say, and how pydantic's complaints become OpenAI's.

Every refusal names the field, what stood there, and what would be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pdray.core.errors import InvalidRequestError
from pdray.core.out_of_scope import out_of_scope

Body = TypeVar("Body", bound=BaseModel)

MAX_VALUE_CHARS = 80

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
"""Fields that clients send and that change nothing about the answer here."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "length_penalty": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Parameters that this version lacks, with the values that ask for nothing."""

RENAMED: Mapping[str, str] = {
    f"guided_{kind}": f"structured_outputs: {{{kind}: ...}}"
    for kind in ("json", "regex", "choice", "grammar")
}
"""What vLLM took before structured_outputs."""

ACCEPTED: Mapping[str, str] = {
    "model": "a string",
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids, "
    "none of them empty",
    "messages": "a list of at least one {role, content}; roles: system, developer, user, "
    "assistant, tool; content: a string or parts of type text",
    "max_tokens": "an integer from 1",
    "max_completion_tokens": "an integer from 1",
    "n": "an integer from 1 to 128",
    "echo": "true or false",
    "stream": "true or false",
    "stream_options": "an object with include_usage: true or false",
    "stop": "a string or a list of up to 16 strings, each of 1 to 256 characters",
    "stop_token_ids": "a list of token ids",
    "ignore_eos": "true or false",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0, up to 1",
    "top_k": "an integer: from 1, or -1 or 0 for no limit",
    "min_p": "a number from 0 to 1",
    "presence_penalty": "a number from -2 to 2",
    "frequency_penalty": "a number from -2 to 2",
    "repetition_penalty": "a number from 0.01 to 100",
    "logit_bias": "an object of up to 1024 entries, from token ids (as strings) to numbers from "
    "-100 to 100",
    "min_tokens": "an integer from 0 to max_tokens",
    "logprobs": "an integer from 0 to 20 for a completion, true or false for a chat",
    "top_logprobs": "an integer from 0 to 20",
    "prompt_logprobs": "an integer from 0 to 20",
    "include_stop_str_in_output": "true or false",
    "seed": "an integer of 64 bits",
    "cache_salt": "a string of 1 to 256 characters",
    "session_id": "a string of 1 to 256 characters",
    "priority": "an integer of 32 bits, the lowest first",
    "response_format": "{type: text}, {type: json_object}, or {type: json_schema, json_schema: "
    "{name, schema}}",
    "structured_outputs": "an object with one of json, json_object, regex, choice, grammar",
    "tools": "a list of up to 128 {type: function, function: {name, description, parameters}}, "
    "names of letters, digits, '_', '.' and '-'",
    "tool_choice": "none, auto, required, or {type: function, function: {name}}",
    "parallel_tool_calls": "true or false",
    "kv_handle": "the text that /v1/prefill gave",
}


def parse_body(kind: type[Body], data: object) -> Body:
    """Checks a decoded JSON body; raises InvalidRequestError for the first thing wrong."""
    if not isinstance(data, Mapping):
        raise InvalidRequestError(
            f"the body is {shown(data)}; accepted: a JSON object with the request's fields"
        )
    fields = {key: value for key, value in data.items() if value is not None}
    for name in [*fields]:
        if name in kind.model_fields:
            continue
        if name not in IGNORED:
            refuse_unsupported(name, fields[name])
        del fields[name]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise translate(error) from None


def refuse_unsupported(name: str, value: object) -> None:
    """Returns only for a known parameter at a value that asks for nothing."""
    if name in RENAMED:
        raise InvalidRequestError(
            f"{name} is not taken here; accepted: {RENAMED[name]}",
            param=name,
            code="unsupported_parameter",
        )
    if name not in NEUTRAL:
        if reason := out_of_scope(name):
            raise InvalidRequestError(f"{name}: {reason}", param=name, code="unsupported_parameter")
        raise InvalidRequestError(
            f"{name} is no parameter that this server knows; leave it out",
            param=name,
            code="unknown_parameter",
        )
    neutral = NEUTRAL[name]
    if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        return
    accepted = " or ".join(shown(one) for one in neutral) or "leaving it out"
    raise InvalidRequestError(
        f"{name} = {shown(value)} is not supported in this version; accepted: {accepted}",
        param=name,
        code="unsupported_parameter",
    )


def translate(error: ValidationError) -> InvalidRequestError:
    """The first of pydantic's errors. A missing field is told apart from a wrong one."""
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    if not path:
        return InvalidRequestError(first["msg"].removeprefix("Value error, "))
    name = str(path[0])
    accepted = ACCEPTED.get(name, "a value as OpenAI's API takes it")
    if first["type"] == "missing" and len(path) == 1:
        return InvalidRequestError(
            f"{name} is missing; accepted: {accepted}",
            param=name,
            code="missing_required_parameter",
        )
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return InvalidRequestError(f"{name}: {message}", param=name)
    value = shown(first["input"])
    if first["type"] == "missing":
        value += f" without {path[-1]}"
    return InvalidRequestError(f"{name} = {value}; accepted: {accepted}", param=name)


def shown(value: object) -> str:
    """A value as an error shows it: as JSON has it, and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."
