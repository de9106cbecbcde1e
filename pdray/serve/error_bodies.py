"""pdray's errors as OpenAI's: status, headers and body."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from pdray.core.errors import (
    AuthenticationError,
    HandleProblem,
    HandleRefusedError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PdrayError,
    PrefillRefusedError,
    SlowReaderError,
    UnavailableError,
    WorkerLostError,
)
from pdray.serve.openai_responses import Error, ErrorBody

_MAX_PASSED_CHARS = 200
RETRYABLE_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

HANDLE_STATUSES = {
    HandleProblem.FORGED: HTTPStatus.BAD_REQUEST,
    HandleProblem.FOREIGN: HTTPStatus.FORBIDDEN,
    HandleProblem.EXPIRED: HTTPStatus.GONE,
    HandleProblem.USED_UP: HTTPStatus.CONFLICT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as HTTP tells it."""

    status: int
    body: ErrorBody
    headers: Mapping[str, str] = field(default_factory=dict)


def failure_of(error: PdrayError) -> Failure:
    """What the client is told of this error."""
    match error:
        case ModelNotFoundError():
            return invalid(error, HTTPStatus.NOT_FOUND)
        case HandleRefusedError():
            return invalid(error, HANDLE_STATUSES[error.problem])
        case InvalidRequestError():
            return invalid(error, HTTPStatus.BAD_REQUEST)
        case AuthenticationError():
            return Failure(
                status=HTTPStatus.UNAUTHORIZED,
                body=error_body(str(error), "invalid_request_error", code="invalid_api_key"),
                headers={"WWW-Authenticate": "Bearer"},
            )
        case OverloadedError():
            return Failure(
                status=HTTPStatus.TOO_MANY_REQUESTS,
                body=error_body(str(error), "rate_limit_error", code="rate_limit_exceeded"),
                headers={"Retry-After": str(max(1, math.ceil(error.retry_after_s)))},
            )
        case PrefillRefusedError():
            return passed_on(error)
        case UnavailableError():
            return unavailable(error, "unavailable")
        case WorkerLostError():
            return unavailable(error, "worker_lost")
        case SlowReaderError():
            return unavailable(error, "slow_reader")
        case _:
            return Failure(
                status=HTTPStatus.INTERNAL_SERVER_ERROR,
                body=error_body(str(error), "server_error", code="internal_error"),
            )


def invalid(error: InvalidRequestError, status: int) -> Failure:
    body = error_body(str(error), "invalid_request_error", param=error.param, code=error.code)
    return Failure(status=status, body=body)


def passed_on(error: PrefillRefusedError) -> Failure:
    """The client sees one server: what it did wrong is said in the same words."""
    try:
        body = msgspec.json.decode(error.body, type=ErrorBody)
    except msgspec.DecodeError:
        text = error.body[:_MAX_PASSED_CHARS].decode(errors="replace")
        body = error_body(f"{error}: {text}", "server_error", code="prefill_failed")
    headers = {} if error.retry_after is None else {"Retry-After": error.retry_after}
    return Failure(status=error.status, body=body, headers=headers)


def unavailable(error: PdrayError, code: str) -> Failure:
    return Failure(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        body=error_body(str(error), "server_error", code=code),
    )


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> ErrorBody:
    return ErrorBody(error=Error(message=message, type=kind, param=param, code=code))
