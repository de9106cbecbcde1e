"""The open-loop client against a small OpenAI-like server on the loopback: the server is the
peer here, the client is what is tested."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from benchmarks import serving
from benchmarks.open_loop import run_open_loop
from benchmarks.openai_stream import Exchange, note_event
from benchmarks.plot import in_flight_steps
from benchmarks.prompts import make_prompt
from benchmarks.serving_workload import parse_lengths
from benchmarks.sse import SseDecoder


@dataclass
class Peer:
    """How the server behaves, and what it was asked."""

    url: str = ""
    behaviour: str = "complete"
    hold_until: int = 0
    bodies: list[dict[str, object]] = field(default_factory=list)
    all_came: asyncio.Event = field(default_factory=asyncio.Event)


def event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


async def stream(peer: Peer, num_tokens: int, is_chat: bool) -> AsyncIterator[str]:
    def text(words: str) -> dict[str, object]:
        return {"delta": {"content": words}} if is_chat else {"text": words}

    if is_chat:
        yield event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    # The last two tokens share an event, so that there is one event fewer than tokens.
    for _ in range(num_tokens - 1):
        yield event(choices=[{**text(" word"), "finish_reason": None}])
    if peer.behaviour == "broken":
        yield event(error={"message": "a worker died"})
        return
    if peer.behaviour == "cut":
        return
    if peer.behaviour == "malformed":
        yield "data: {\n\n"
        return
    yield event(choices=[{**text(""), "finish_reason": "length"}])
    yield event(choices=[], usage={"prompt_tokens": 11, "completion_tokens": num_tokens})
    yield "data: [DONE]\n\n"


def make_app(peer: Peer) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"data": [{"id": "tiny"}]}

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        peer.bodies.append(body)
        if peer.behaviour.isdigit():
            return JSONResponse({"error": {}}, status_code=int(peer.behaviour))
        if len(peer.bodies) >= peer.hold_until:
            peer.all_came.set()
        await peer.all_came.wait()
        return StreamingResponse(stream(peer, body["max_tokens"], "messages" in body))

    return app


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(peer), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    peer.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield peer
    # Forced, as some tests leave requests that the peer never answers.
    server.force_exit = server.should_exit = True
    thread.join()
    listener.close()


def run_client(peer: Peer, folder: Path, *options: str) -> tuple[int, dict[str, object]]:
    code = serving.main(
        [
            *("--base-url", peer.url, "--output-dir", str(folder), "--rate", "200"),
            *("--output-tokens", "5", "--prompt-tokens", "3", *options),
        ]
    )
    (path,) = folder.glob("*.json")
    return code, json.loads(path.read_text())


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_run_counts_tokens_by_usage_and_writes_json_and_a_plot(
    peer: Peer, tmp_path: Path, endpoint: str
) -> None:
    code, report = run_client(
        peer,
        tmp_path,
        *("--endpoint", endpoint, "--num-requests", "8", "--warmup", "2"),
        *("--slo-ttft", "60", "--slo-itl", "60", "--ignore-eos"),
    )
    summary = report["summary"]
    assert isinstance(summary, dict)
    assert code == 0
    assert (summary["num_requests"], summary["num_complete"]) == (8, 8)
    assert summary["itl_s"]["count"] == 8 * 4
    assert summary["tpot_s"]["count"] == summary["ttft_s"]["count"] == 8
    assert summary["slo_attainment"] == 1.0
    assert summary["goodput_rps"] == pytest.approx(summary["completed_rps"])
    ratio = summary["prompt_tokens_per_s"] / summary["output_tokens_per_s"]
    assert ratio == pytest.approx(11 / 5)
    assert (report["errors"], report["num_overloaded"], report["num_uncounted"]) == ({}, 0, 0)
    assert len(peer.bodies) == 10
    assert {str(body["model"]) for body in peer.bodies} == {"tiny"}
    assert all(body["ignore_eos"] and body["stream"] for body in peer.bodies)
    (plot,) = tmp_path.glob("*.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_warm_up_prompts_are_not_those_of_the_run(peer: Peer, tmp_path: Path) -> None:
    run_client(peer, tmp_path, "--num-requests", "4", "--warmup", "4", "--prompt-tokens", "30")
    assert len({str(body["prompt"]) for body in peer.bodies}) == 8


def test_requests_go_out_while_no_answer_has_come(peer: Peer, tmp_path: Path) -> None:
    peer.hold_until = 20
    code, report = run_client(peer, tmp_path, "--num-requests", "20", "--timeout", "60")
    summary = report["summary"]
    assert isinstance(summary, dict)
    assert (code, summary["num_complete"]) == (0, 20)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("503", "http_503"),
        ("broken", "stream_error"),
        ("cut", "cut_short"),
        ("malformed", "malformed_event"),
    ],
)
def test_failures_are_counted_by_kind(
    peer: Peer, tmp_path: Path, behaviour: str, kind: str
) -> None:
    peer.behaviour = behaviour
    code, report = run_client(peer, tmp_path, "--num-requests", "3")
    assert (code, report["errors"], report["num_overloaded"]) == (1, {kind: 3}, 0)


def test_overload_is_counted_apart_from_errors(peer: Peer, tmp_path: Path) -> None:
    peer.behaviour = "429"
    code, report = run_client(
        peer, tmp_path, "--num-requests", "3", "--slo-ttft", "1", "--slo-itl", "1"
    )
    assert (code, report["errors"], report["num_overloaded"]) == (1, {}, 3)
    summary = report["summary"]
    assert isinstance(summary, dict)
    assert summary["slo_attainment"] == 0.0


def test_a_timeout_is_an_error_of_its_own(peer: Peer, tmp_path: Path) -> None:
    peer.hold_until = 1000
    code, report = run_client(peer, tmp_path, "--num-requests", "2", "--timeout", "0.2")
    assert (code, report["errors"]) == (1, {"timeout": 2})


def test_a_server_that_is_not_there_is_an_error_not_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    assert serving.main(["--base-url", url, "--num-requests", "1"]) == 2
    assert "Cannot connect" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--num-requests or --duration"),
        (["--num-requests", "1", "--slo-ttft", "1"], "both --slo-ttft and --slo-itl"),
        (["--num-requests", "1", "--prompt-tokens", "few"], "LOW-HIGH"),
        (["--duration", "1", "--rate", "0"], "must be above 0"),
        (
            ["--num-requests", "1", "--endpoint", "chat", "--prompt-source", "token-ids"],
            "a chat has text",
        ),
    ],
)
def test_arguments_that_make_no_run_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert serving.main(options) == 2
    assert complaint in " ".join(capsys.readouterr().out.split())


def test_a_trace_gives_arrivals_and_lengths(peer: Peer, tmp_path: Path) -> None:
    trace = tmp_path / "small.jsonl"
    rows = ((0, 40, 6), (900, 80, 200), (1000, 20, 4), (9000, 10, 2))
    trace.write_text(
        "".join(
            json.dumps({"timestamp": at_ms, "input_length": prompt, "output_length": output}) + "\n"
            for at_ms, prompt, output in rows
        )
    )
    _, report = run_client(
        peer,
        tmp_path,
        *("--trace", str(trace), "--trace-scale", "10", "--duration", "0.5"),
        *("--length-factor", "0.5", "--max-output-tokens", "10", "--prompt-source", "token-ids"),
    )
    prompts = [body["prompt"] for body in peer.bodies]
    assert [len(p) if isinstance(p, list) else None for p in prompts] == [20, 40, 10]
    assert [body["max_tokens"] for body in peer.bodies] == [3, 10, 2]
    rows_out = report["requests"]
    assert isinstance(rows_out, list)
    assert [row["output_tokens"] for row in rows_out] == [3, 10, 2]


@pytest.mark.parametrize("seed", range(10))
def test_sse_events_are_the_same_however_the_bytes_are_cut(seed: int) -> None:
    text = (
        "data: {}\n\n: ping\r\n\r\nid: 3\ndata: a\ndata: 日本\n\ndata:x\r\n\r\ndata: unfinished\n"
    )
    rng = random.Random(seed)
    rest, decoder, events = text.encode(), SseDecoder(), []
    while rest:
        size = rng.randint(1, 6)
        events += decoder.feed(rest[:size])
        rest = rest[size:]
    assert events == ["{}", "a\n日本", "x"]


def make_exchange(num_output_tokens: int | None, *event_times: float) -> Exchange:
    return Exchange(
        sent_at=0.0,
        event_times=list(event_times),
        outcome="complete",
        num_prompt_tokens=4,
        num_output_tokens=num_output_tokens,
    )


def test_tokens_without_an_event_of_their_own_have_gaps_of_zero() -> None:
    record = make_exchange(5, 1.0, 2.0, 4.0).record()
    assert sorted(record.itls_s) == [0.0, 0.0, 1.0, 2.0]
    assert (record.ttft_s, record.tpot_s, record.e2e_s) == (1.0, 0.75, 4.0)


def test_without_usage_events_stand_for_tokens() -> None:
    assert make_exchange(None, 1.0, 2.0).record().token_times == (1.0, 2.0)


def test_more_events_than_tokens_are_noticed() -> None:
    assert make_exchange(1, 1.0, 2.0).has_more_events_than_tokens
    assert not make_exchange(2, 1.0, 2.0).has_more_events_than_tokens


def test_an_error_after_the_end_of_the_text_is_still_an_error() -> None:
    seen = Exchange(sent_at=0.0)
    note_event(seen, {"error": {"message": "late"}}, 1.0)
    note_event(seen, {"choices": [{"text": "", "finish_reason": "stop"}]}, 1.0)
    assert seen.outcome == "stream_error"


async def test_answers_come_back_in_the_order_of_the_schedule() -> None:
    released = asyncio.Event()

    async def send(item: int) -> int:
        if item == 0:
            await released.wait()
        else:
            released.set()
        return item

    reports: list[tuple[int, int]] = []
    run = await run_open_loop(
        [(0.0, 0), (0.0, 1), (0.001, 2)], send, lambda sent, done: reports.append((sent, done))
    )
    assert run.answers == (0, 1, 2)
    assert len(run.send_lags_s) == 3
    assert reports[-1] == (3, 3)


def test_lengths_are_read_from_the_command_line() -> None:
    def first(text: str) -> list[int]:
        return list(islice(parse_lengths(text, random.Random(0)), 200))

    assert set(first("7")) == {7}
    assert set(first("2-4")) == {2, 3, 4}
    assert all(5 <= length <= 50 for length in first("lognormal:20,0.5,5,50"))


def test_random_token_ids_have_the_exact_length_and_no_special_ids() -> None:
    prompt = make_prompt("token-ids", 500, 2000, random.Random(0))
    assert len(prompt) == 500
    assert all(isinstance(token_id, int) and 1000 <= token_id < 2000 for token_id in prompt)


def test_in_flight_goes_up_and_down_with_each_request() -> None:
    assert in_flight_steps([(0.0, 2.0), (1.0, 2.0)]) == ([0.0, 1.0, 2.0, 2.0], [1, 2, 1, 0])
