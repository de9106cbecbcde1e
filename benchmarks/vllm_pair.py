"""vLLM's own prefill and decode pair: two servers of one core each, a proxy before them.

    python -m benchmarks.vllm_pair --vllm PYTHON --port 8000 -- MODEL --dtype float32

Decode pulls the KV through vLLM's NixlConnector when all of the prompt is computed, and sends every
token, the first one included. What follows ``--`` goes to both servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.idle import wait_for_health

VLLM_SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
START_S = 300.0
_CONNECTOR = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
}
_ASK_TO_KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def start_server(arguments: argparse.Namespace, core: int) -> subprocess.Popen[bytes]:
    """Listens on ``port`` + 1 + ``core``, and to its peer 10 above that."""
    port = arguments.port + 1 + core
    command = [arguments.vllm, *VLLM_SERVE, *arguments.serve, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--kv-transfer-config", json.dumps(_CONNECTOR)]
    own = {
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port + 10),
    }
    return subprocess.Popen(command, env={**os.environ, **own})


class Pair:
    """The proxy: a prompt to one server with one token to make, then the body with the parameters
    that came back to the other, whose stream is passed on as it comes."""

    def __init__(self, prefill_url: str, decode_url: str) -> None:
        self._prefill_url = prefill_url
        self._decode_url = decode_url

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        application.cleanup_ctx.append(self._session)
        application.router.add_post("/v1/completions", self._complete)
        application.router.add_get("/{path:health|v1/models}", self._ask_decode)
        return application

    async def _session(self, application: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        ) as self._http:
            yield

    async def _ask_decode(self, request: web.Request) -> web.Response:
        async with self._http.get(self._decode_url + request.path) as answer:
            body, kind = await answer.read(), answer.content_type
            return web.Response(status=answer.status, body=body, content_type=kind)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        first = body | {"max_tokens": 1, "stream": False, "kv_transfer_params": _ASK_TO_KEEP}
        first.pop("stream_options", None)
        async with self._http.post(self._prefill_url + request.path, json=first) as answer:
            answer.raise_for_status()
            kept = (await answer.json())["kv_transfer_params"]
        body["kv_transfer_params"] = kept
        async with self._http.post(self._decode_url + request.path, json=body) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


@asynccontextmanager
async def servers(arguments: argparse.Namespace) -> AsyncIterator[Pair]:
    """Both, up; ended at the end. Raises ValueError where one does not start."""
    processes = [start_server(arguments, core) for core in (0, 1)]
    urls = [f"http://127.0.0.1:{arguments.port + 1 + core}" for core in (0, 1)]
    try:
        for url, process in zip(urls, processes, strict=True):
            await wait_for_health(f"{url}/health", process, START_S)
        yield Pair(*urls)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.wait)


async def serve(arguments: argparse.Namespace) -> None:
    async with servers(arguments) as pair:
        runner = web.AppRunner(pair.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--vllm", type=Path, required=True, help="Python of an environment with vLLM and nixl")
    add("--port", type=int, default=18000)
    add("serve", nargs="+", help="a model and options, for both servers")
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(serve(arguments))
    except KeyboardInterrupt:
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
