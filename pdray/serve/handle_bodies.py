"""The bodies of /v1/prefill, /v1/decode and their like."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from pdray.core.errors import InvalidRequestError
from pdray.serve.body import Body
from pdray.serve.kv_handle import Endpoint
from pdray.serve.openai_api import GenerationBody, parse_chat, parse_completion
from pdray.serve.request_checks import parse_body, shown
from pdray.serve.sampling import SEED_BITS

Fields = dict[str, object]
"""A request's JSON object, as its client sent it."""


class HandleBody(Body):
    """What names a handle and no more."""

    kv_handle: Annotated[str, Field(min_length=1)]


class DecodeBody(HandleBody):
    """``stream`` goes over what the request itself asked for."""

    stream: bool | None = None


def parse_handle(data: object) -> HandleBody:
    """Raises InvalidRequestError."""
    return parse_body(HandleBody, data)


def parse_decode(data: object) -> DecodeBody:
    """Raises InvalidRequestError."""
    return parse_body(DecodeBody, data)


def fields_of(data: object) -> Fields:
    """Raises InvalidRequestError for what is no JSON object."""
    if not isinstance(data, Mapping):
        raise InvalidRequestError(
            f"the body is {shown(data)}; accepted: a JSON object with the request's fields"
        )
    return dict(data)


def endpoint_of(fields: Fields) -> Endpoint:
    """Whose body it is: chats have messages. Raises InvalidRequestError for both at once."""
    if "messages" in fields and "prompt" in fields:
        raise InvalidRequestError(
            "messages together with prompt; accepted: the body of a chat, with messages, or that "
            "of a completion, with prompt",
            param="messages",
        )
    return Endpoint.CHAT if "messages" in fields else Endpoint.COMPLETIONS


def parse_request(endpoint: Endpoint, fields: Fields) -> GenerationBody:
    """Raises InvalidRequestError."""
    return parse_chat(fields) if endpoint is Endpoint.CHAT else parse_completion(fields)


def with_seed(fields: Fields) -> Fields:
    """Both applications draw the same noise: from a seed that is drawn once."""
    if fields.get("seed") is not None:
        return fields
    return fields | {"seed": random.getrandbits(SEED_BITS)}


def with_stream(fields: Fields, stream: bool | None) -> Fields:
    if stream is None:
        return fields
    kept = {key: value for key, value in fields.items() if stream or key != "stream_options"}
    return kept | {"stream": stream}


def packed(fields: Fields) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def unpacked(body: bytes) -> Fields:
    fields: Fields = json.loads(body)
    return fields
