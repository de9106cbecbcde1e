"""The routes of ``mode: service``: handles on the one side, what becomes of them on the other."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from pdray.serve.call_timelines import timelines_of
from pdray.serve.composition import Composition
from pdray.serve.decode_service import DecodeService
from pdray.serve.handle_bodies import fields_of, parse_decode
from pdray.serve.ingress import read_json
from pdray.serve.kv_handle import Endpoint
from pdray.serve.prefill_service import PrefillService
from pdray.serve.stream import JsonAnswer, SseAnswer

WRITE_TIMEOUT_S = 30.0


def add_prefill_routes(v1: APIRouter, service: PrefillService) -> None:
    @v1.post("/prefill")
    async def prefill(request: Request) -> Response:
        data, tenant = await read_json(request), request.state.tenant
        return JsonAnswer(lambda: service.prefill(data, tenant))

    @v1.post("/prefill/renew")
    async def renew(request: Request) -> Response:
        data, tenant = await read_json(request), request.state.tenant
        return JsonAnswer(lambda: service.renew(data, tenant))

    @v1.post("/prefill/release")
    async def release(request: Request) -> Response:
        data, tenant = await read_json(request), request.state.tenant
        return JsonAnswer(lambda: service.release(data, tenant))


def add_decode_routes(v1: APIRouter, service: DecodeService) -> None:
    @v1.post("/decode")
    async def decode(request: Request) -> Response:
        timelines = timelines_of(request)
        wanted = parse_decode(await read_json(request))
        handle = service.open(wanted.kv_handle, request.state.tenant)
        body = service.body_of(handle, wanted.stream)
        job = await service.prepare(handle, body, timelines)
        if body.stream:
            return SseAnswer(service.completions.stream(job), write_timeout_s=WRITE_TIMEOUT_S)
        return JsonAnswer(lambda: service.completions.complete(job), timelines.headers)


def add_composed_routes(v1: APIRouter, composition: Composition) -> None:
    """OpenAI's own."""

    async def answer(endpoint: Endpoint, request: Request) -> Response:
        timelines = timelines_of(request)
        call = await composition.prepare(
            endpoint,
            fields_of(await read_json(request)),
            tenant=request.state.tenant,
            authorization=request.headers.get("authorization"),
            timelines=timelines,
        )
        if call.body.stream:
            return SseAnswer(composition.stream(call), write_timeout_s=WRITE_TIMEOUT_S)
        return JsonAnswer(lambda: composition.complete(call), timelines.headers)

    @v1.post("/completions")
    async def completions(request: Request) -> Response:
        return await answer(Endpoint.COMPLETIONS, request)

    @v1.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(Endpoint.CHAT, request)
