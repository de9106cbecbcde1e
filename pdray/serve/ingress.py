"""The HTTP routes over any frontend. Knows no Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pdray.core.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PdrayError,
    UnavailableError,
)
from pdray.core.overview import Overview
from pdray.core.scaling import TimedDecision
from pdray.serve.call_timelines import timelines_of
from pdray.serve.completion import CompletionService
from pdray.serve.dashboard.routes import add_dashboard_routes
from pdray.serve.error_bodies import error_body
from pdray.serve.keys import KeyRing
from pdray.serve.openai_api import GenerationBody, parse_chat, parse_completion
from pdray.serve.openai_responses import ModelCard, ModelList, Sent
from pdray.serve.request_checks import shown
from pdray.serve.stream import JsonAnswer, SseAnswer, error_response, json_response
from pdray.serve.tenancy import tenant_check

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 2**20
RETRY_AFTER_S = 1.0
SESSION_HEADER = "x-session-id"
"""Ray Serve's own name for it, and what gateways go by."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressState:
    """What the routes work on. ``missing`` says why no request can be placed, None where one
    can; ``metrics_text`` gives the exposition of the whole application, ``overview`` and
    ``scaling`` what the dashboard shows; without ``keys`` everybody is let in.

    Past ``max_ongoing_requests`` calls in flight, further ones get a 429. ``around`` sees every
    call, those too.
    """

    service: CompletionService
    missing: Callable[[], Awaitable[str | None]]
    metrics_text: Callable[[], Awaitable[bytes]]
    overview: Callable[[], Awaitable[Overview]]
    scaling: Callable[[], Awaitable[tuple[TimedDecision, ...]]]
    max_ongoing_requests: int
    keys: KeyRing | None
    write_timeout_s: float = 30.0
    around: Callable[[ASGIApp], ASGIApp] | None = None


class Health(Sent, frozen=True, kw_only=True):
    """``missing`` says why no request can be placed now."""

    status: str
    missing: str | None


def make_api(state: IngressState, add_routes: Callable[[APIRouter], None] | None = None) -> FastAPI:
    """The application, with every error in OpenAI's shape. ``add_routes`` adds those that
    generate, under ``/v1``: in place of OpenAI's, where it is given."""
    api = FastAPI(title="pdray", openapi_url=None)
    api.add_middleware(OngoingLimit, max_ongoing_requests=state.max_ongoing_requests)
    if state.around is not None:
        api.add_middleware(state.around)
    add_error_handlers(api)
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(tenant_check(state.keys))])
    if add_routes is None:
        add_generation_routes(v1, state)
    else:
        add_routes(v1)
    add_model_routes(v1, state)
    api.include_router(v1)
    add_operation_routes(api, state)
    return api


def add_generation_routes(v1: APIRouter, state: IngressState) -> None:
    async def answer(parse: Callable[[object], GenerationBody], request: Request) -> Response:
        timelines = timelines_of(request)
        body = parse(with_session(await read_json(request), request.headers.get(SESSION_HEADER)))
        job = await state.service.prepare(body, request.state.tenant, timelines)
        if body.stream:
            bundles = state.service.stream(job)
            return SseAnswer(bundles, write_timeout_s=state.write_timeout_s)
        return JsonAnswer(lambda: state.service.complete(job), timelines.headers)

    @v1.post("/completions")
    async def completions(request: Request) -> Response:
        return await answer(parse_completion, request)

    @v1.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(parse_chat, request)


def with_session(body: object, header: str | None) -> object:
    """The body's ``session_id``, or the header's where it has none. Raises InvalidRequestError
    where they differ."""
    if header is None or not isinstance(body, dict):
        return body
    if body.get("session_id") not in (None, header):
        raise InvalidRequestError(
            f"session_id = {shown(body['session_id'])}, and the header {SESSION_HEADER} is "
            f"{shown(header)}; accepted: one of them, or the same twice",
            param="session_id",
        )
    return body | {"session_id": header}


def add_model_routes(v1: APIRouter, state: IngressState) -> None:
    name = state.service.model_name
    created = int(time.time())

    async def card() -> ModelCard:
        try:
            limits = await state.service.limits()
        except UnavailableError:
            return ModelCard(id=name, created=created)
        return ModelCard(id=name, created=created, max_model_len=limits.max_model_len)

    @v1.get("/models")
    async def models() -> Response:
        return json_response(ModelList(data=(await card(),)))

    @v1.get("/models/{model:path}")
    async def model_of_name(model: str) -> Response:
        if model != name:
            raise ModelNotFoundError(
                f"model = {model!r} is not served here; accepted: {name!r}",
                param="model",
                code="model_not_found",
            )
        return json_response(await card())


def add_operation_routes(api: FastAPI, state: IngressState) -> None:
    @api.get("/health")
    async def health() -> Response:
        missing = await state.missing()
        if missing is not None:
            return json_response(Health(status="unavailable", missing=missing), 503)
        return json_response(Health(status="ok", missing=None))

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(await state.metrics_text(), headers={"content-type": METRICS_TYPE})

    add_dashboard_routes(api, state.overview, state.scaling)


def add_error_handlers(api: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, PdrayError)
        return error_response(error)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = json_response(error_body(message, "invalid_request_error"), error.status_code)
        response.headers.update(error.headers or {})
        return response

    async def bug(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        body = error_body("internal error: the server's log has it", "server_error")
        return json_response(body, 500)

    api.add_exception_handler(PdrayError, ours)
    api.add_exception_handler(HTTPException, of_http)
    api.add_exception_handler(Exception, bug)


async def read_json(request: Request) -> object:
    """The decoded body; raises InvalidRequestError, or HTTPException for a too large one."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {MAX_BODY_BYTES} bytes")
    try:
        data: object = msgspec.json.decode(bytes(body))
    except msgspec.DecodeError as error:
        text = bytes(body[:200]).decode(errors="replace")
        raise InvalidRequestError(
            f"the body is {shown(text)}; accepted: a JSON object ({error})"
        ) from None
    return data


class OngoingLimit:
    """Refuses calls that would be one too many, in OpenAI's words; reads are never refused."""

    def __init__(self, app: ASGIApp, max_ongoing_requests: int) -> None:
        self._app = app
        self._max_ongoing = max_ongoing_requests
        self._num_ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_ongoing >= self._max_ongoing:
            error = OverloadedError(
                f"{self._num_ongoing} requests are in flight here, as many as are allowed",
                retry_after_s=RETRY_AFTER_S,
            )
            await error_response(error)(scope, receive, send)
            return
        self._num_ongoing += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_ongoing -= 1
