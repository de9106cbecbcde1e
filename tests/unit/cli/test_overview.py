"""``pdray status`` and ``pdray top`` against a server on loopback."""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec
import pytest
from fastapi import FastAPI

from pdray.cli.main import main
from pdray.core.overview import Overview
from pdray.serve.dashboard.routes import add_dashboard_routes
from tests.http_server import serving
from tests.overviews import OVERVIEW, overview, scaling


def api() -> FastAPI:
    api = FastAPI(openapi_url=None)
    add_dashboard_routes(api, overview, scaling)
    return api


async def test_status_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(api()) as url:
        assert await asyncio.to_thread(main, ["status", url]) == 0
    shown = capsys.readouterr().out
    for words in (
        "app  mode pooled, placement cost, 1 frontends",
        "5 of 16 requests in flight, 2 queued; 0.25 requests/s, 21.5 tokens/s in the last 57 s",
        "TTFT  P50 400  P90 1500  P99 2500  max 3000 ms, target 2000",
        "disaggregated 75%; on one worker: short 25%",
        "pdray-decode-0-abc",
        "decode #1: loads <b>weights</b>",
        "KV prefill to decode: 12.3 MB/s, 700 MB of late",
    ):
        assert words in shown, shown


async def test_status_as_json_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(api()) as url:
        assert await asyncio.to_thread(main, ["status", url, "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["pairs"][0]["num_bytes"] == 700_000_000
    assert msgspec.json.decode(shown, type=Overview) == OVERVIEW


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://127.0.0.1:x"])
def test_a_server_that_is_not_there_is_named(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", url]) == 1
    assert f"pdray: no overview from {url}: " in capsys.readouterr().err


async def test_a_server_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    other = FastAPI(openapi_url=None)
    other.get("/dashboard/data")(lambda: {"application": 3})
    async with serving(other) as url:
        assert await asyncio.to_thread(main, ["status", url]) == 1
    assert "is not a pdray of this version" in capsys.readouterr().err


async def test_top_draws_again_and_ends_with_ctrl_c() -> None:
    async with serving(api()) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pdray", "top", url, "--every", "0.1"),
            stdout=asyncio.subprocess.PIPE,
            env={"TERM": "xterm", "FORCE_COLOR": "1", "COLUMNS": "150", "LINES": "40"},
        )
        assert process.stdout is not None
        seen = b""
        async with asyncio.timeout(60):
            while seen.count(b"placement cost") < 3:
                read = await process.stdout.read(65536)
                assert read, seen
                seen += read
            process.send_signal(2)
            assert await process.wait() == 130


def test_top_refuses_what_is_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--every", "0"]) == 1
    assert "--every = 0; accepted: seconds, more than 0" in capsys.readouterr().err
