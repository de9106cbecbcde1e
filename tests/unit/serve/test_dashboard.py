"""The dashboard, in a real browser where there is one."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from pdray.core.errors import UnavailableError
from pdray.core.overview import Overview
from pdray.core.scaling import TimedDecision
from pdray.serve.dashboard.routes import add_dashboard_routes
from pdray.serve.ingress import add_error_handlers
from tests.http_server import serving
from tests.overviews import DECISION, overview, scaling

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--virtual-time-budget=3000", "--window-size=1200,1100"),
)


def api_of(read: object) -> FastAPI:
    api = FastAPI(openapi_url=None)
    add_error_handlers(api)
    add_dashboard_routes(api, read, scaling)  # type: ignore[arg-type]
    return api


async def browse(url: str, folder: Path, *options: str) -> str:
    """What the browser prints, once the page's scripts have run."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def text_of(html: str) -> str:
    body = html[html.index("<body>") : html.index("<script>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


@needs_chromium
async def test_the_page_draws_pools_links_and_latencies(tmp_path: Path) -> None:
    async with serving(api_of(overview)) as url:
        html = await browse(f"{url}/dashboard", tmp_path, "--dump-dom")
    text = text_of(html)
    for words in (
        "app · mode pooled · placement cost",
        "2.5 s P50 400 ms, target 2 s",
        "5 of 16; 2 queued",
        "75% short 25%",
        "decode 1 of 2 ready wants 2: kv_utilization 0.95, target 0.85: 1.12 workers",
        "pdray-prefill-0-abc prefill · laptop · step 45 ms · prefix hits 50%",
        "prefill → decode",
        "12.3 MB/s",
        "Tokens per second",
    ):
        assert words in text, text
    assert "loads &lt;b&gt;weights&lt;/b&gt;" in html, "text of others is not to be markup"
    assert len(re.findall(r'<path d="M[^"]{100,}', html)) == 6


@needs_chromium
async def test_a_server_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    async def gone() -> Overview:
        raise UnavailableError("the controller has not answered for 5 s")

    async with serving(api_of(gone)) as url:
        html = await browse(f"{url}/dashboard", tmp_path, "--dump-dom")
    assert "the server answers 503" in text_of(html)


async def test_decisions_on_pools_can_be_read_back() -> None:
    async with serving(api_of(overview)) as url, httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/dashboard/scaling")
    assert msgspec.json.decode(answer.content, type=tuple[TimedDecision, ...]) == (DECISION,)


def test_the_page_asks_nobody_else_for_anything() -> None:
    from importlib import resources

    page = resources.files("pdray.serve.dashboard").joinpath("page.html").read_text()
    others = set(re.findall(r"https?://[^\"'\s]+", page))
    assert others == {"http://www.w3.org/2000/svg"}
    assert "src=" not in page
    assert "@import" not in page
    assert "innerHTML" not in page
