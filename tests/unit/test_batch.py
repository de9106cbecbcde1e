"""Batches over scripted tokens: the file format, resuming, retries, bounds."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from pdray.cli.batch import line_now_and_then, positive, summary
from pdray.cli.main import parser
from pdray.cli.progress import Progress
from pdray.core.clock import ManualClock
from pdray.core.errors import ConfigError, OverloadedError, UnavailableError, WorkerLostError
from pdray.core.request import Request
from pdray.frontend.text import Tokenizer
from pdray.serve import batch as batch_module
from pdray.serve.batch import BatchCounts, BatchRun
from pdray.serve.batch_files import check_input
from pdray.serve.completion import CompletionService
from tests.scripted_source import Script, ScriptedSource, spelled

MODEL = "tiny"
ANSWER = [ord(char) - ord("!") for char in "abc"]  # the tiny vocabulary starts at "!"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return Tokenizer(tiny_model_path)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(batch_module, "MAX_RETRY_S", 0.01)


def line(custom_id: str, **body: object) -> dict[str, object]:
    request = {"model": MODEL, "prompt": "Hi", **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": request}


def chat_line(custom_id: str) -> dict[str, object]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


class Files:
    """A batch's two files."""

    def __init__(self, folder: Path) -> None:
        self.input = folder / "in.jsonl"
        self.output = folder / "out.jsonl"

    def write(self, *lines: dict[str, object] | str) -> None:
        texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
        self.input.write_text("".join(f"{text}\n" for text in texts))

    def answers(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.output.read_text().split("\n")[:-1]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def abc(request: Request) -> Script:
    return spelled(ANSWER)


async def run(
    files: Files,
    tokenizer: Tokenizer,
    source: ScriptedSource,
    *,
    max_in_flight: int = 4,
    clock: ManualClock | None = None,
) -> BatchCounts:
    service = CompletionService(source, tokenizer, model_name=MODEL, limits=source.limits)
    batch = BatchRun(
        service,
        max_in_flight=max_in_flight,
        give_up_after_s=60.0,
        on_change=lambda counts: None,
        clock=clock or ManualClock(),
    )
    await batch.run(files.input, files.output)
    return batch.counts


async def test_every_line_gets_an_answer_in_openais_format(
    files: Files, tokenizer: Tokenizer
) -> None:
    files.write(line("one"), chat_line("two"))
    counts = await run(files, tokenizer, ScriptedSource(abc))
    answers = {answer["custom_id"]: answer for answer in files.answers()}
    assert answers.keys() == {"one", "two"}
    for answer in answers.values():
        assert answer.keys() == {"id", "custom_id", "response", "error"}
        assert answer["error"] is None
        assert answer["response"].keys() == {"status_code", "request_id", "body"}
        assert answer["response"]["status_code"] == 200
    one, two = (answers[name]["response"]["body"] for name in ("one", "two"))
    assert one["object"] == "text_completion"
    assert one["choices"][0]["text"] == "abc"
    assert two["object"] == "chat.completion"
    assert two["choices"][0]["message"]["content"] == "abc"
    assert (counts.num_ok, counts.num_failed, counts.num_output_tokens) == (2, 0, 6)


async def test_requests_that_are_wrong_get_their_status(files: Files, tokenizer: Tokenizer) -> None:
    files.write(
        line("unknown", model="other"),
        line("wrong", max_tokens=0),
        line("stream", stream=True),
        line("long", prompt="x" * 200),
        line("good"),
    )
    counts = await run(files, tokenizer, ScriptedSource(abc))
    statuses = {
        answer["custom_id"]: answer["response"]["status_code"] for answer in files.answers()
    }
    assert statuses == {"unknown": 404, "wrong": 400, "stream": 400, "long": 400, "good": 200}
    bodies = {answer["custom_id"]: answer["response"]["body"] for answer in files.answers()}
    assert bodies["wrong"]["error"]["param"] == "max_tokens"
    assert (counts.num_ok, counts.num_failed) == (1, 4)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{not json", "is no JSON"),
        ("[1]", "accepted: an object"),
        ({"url": "/v1/completions", "body": {}}, "custom_id = null"),
        ({"custom_id": "", "url": "/v1/completions"}, "custom_id = ''"),
        ({"custom_id": "x", "url": "/v1/embeddings"}, "url = '/v1/embeddings'"),
        ({"custom_id": "x", "url": "/v1/completions", "method": "GET"}, "method = 'GET'"),
    ],
)
async def test_a_bad_line_gives_an_error_line_that_names_it(
    files: Files, tokenizer: Tokenizer, bad: dict[str, object] | str, words: str
) -> None:
    files.write(line("one"), bad, line("two"))
    await run(files, tokenizer, ScriptedSource(abc))
    (error,) = [answer["error"] for answer in files.answers() if answer["error"]]
    assert error["message"].startswith("line 2: ")
    assert words in error["message"]
    assert len(files.answers()) == 3


async def test_a_second_run_repeats_nothing(files: Files, tokenizer: Tokenizer) -> None:
    files.write(line("one"), "{bad", line("two", max_tokens=0), line("three"))
    await run(files, tokenizer, ScriptedSource(abc))
    before = files.output.read_bytes()
    source = ScriptedSource(abc)
    counts = await run(files, tokenizer, source)
    assert files.output.read_bytes() == before
    assert source.requests == []
    assert counts.num_skipped == counts.num_done == 4


async def test_an_interrupted_run_goes_on_and_cuts_a_torn_line(
    files: Files, tokenizer: Tokenizer
) -> None:
    files.write(*(line(f"r{index}") for index in range(20)))
    never = asyncio.Event()

    def stuck_later(request: Request) -> Script:
        return [never] if len(source.requests) > 7 else abc(request)

    source = ScriptedSource(stuck_later)
    first = asyncio.create_task(run(files, tokenizer, source, max_in_flight=3))
    while source.num_open < 3 or len(source.requests) < 10:
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert source.num_open == 0
    assert len(files.answers()) == 7
    with files.output.open("ab") as output:
        output.write(b'{"id": "batch_req_torn", "custom_id": "r9", "resp')
    counts = await run(files, tokenizer, ScriptedSource(abc))
    assert counts.num_skipped == 7
    ids = Counter(answer["custom_id"] for answer in files.answers())
    assert ids == Counter(f"r{index}" for index in range(20))


async def test_what_may_work_later_is_tried_again_and_not_written(
    files: Files, tokenizer: Tokenizer
) -> None:
    files.write(*(line(f"r{index}") for index in range(4)))
    errors = [
        OverloadedError("full", retry_after_s=0.001),
        UnavailableError("none"),
        WorkerLostError("gone"),
    ]

    def fails_at_first(request: Request) -> Script:
        return [errors.pop()] if errors else abc(request)

    counts = await run(files, tokenizer, ScriptedSource(fails_at_first))
    assert counts.num_ok == 4
    assert [answer["response"]["status_code"] for answer in files.answers()] == [200] * 4


async def test_it_gives_up_when_nothing_is_answered_for_long(
    files: Files, tokenizer: Tokenizer
) -> None:
    files.write(line("one"), line("two"))
    clock = ManualClock()

    def fails(request: Request) -> Script:
        clock.advance(20.0)
        return abc(request) if len(source.requests) == 1 else [WorkerLostError("gone")]

    source = ScriptedSource(fails)
    with pytest.raises(UnavailableError, match=r"nothing answered for .*gone.*go on"):
        await run(files, tokenizer, source, max_in_flight=1, clock=clock)
    assert [answer["custom_id"] for answer in files.answers()] == ["one"]


async def test_no_more_than_the_bound_is_in_flight(files: Files, tokenizer: Tokenizer) -> None:
    files.write(*(line(f"r{index}") for index in range(30)))
    most = 0

    def watch(request: Request) -> Script:
        nonlocal most
        most = max(most, source.num_open)
        return abc(request)

    source = ScriptedSource(watch)
    await run(files, tokenizer, source, max_in_flight=5)
    assert most == 5
    assert len(files.answers()) == 30


def test_a_custom_id_that_stands_twice_is_refused_up_front(files: Files) -> None:
    files.write(line("one"), line("two"), line("one"))
    with pytest.raises(ConfigError, match="custom_id = 'one' stands in lines 1 and 3"):
        check_input(files.input)


def test_empty_lines_are_passed_over(files: Files) -> None:
    files.write(line("one"), "", "  ", line("two"))
    assert check_input(files.input) == 2


def test_a_missing_input_is_named(files: Files) -> None:
    with pytest.raises(ConfigError, match=r"--input .*in\.jsonl: No such file"):
        check_input(files.input)


async def test_a_file_that_is_no_batch_output_is_left_alone(
    files: Files, tokenizer: Tokenizer
) -> None:
    files.write(line("one"))
    files.output.write_text("my notes\nmore notes\n")
    with pytest.raises(ConfigError, match="line 1 is no batch answer"):
        await run(files, tokenizer, ScriptedSource(abc))
    assert files.output.read_text() == "my notes\nmore notes\n"


async def test_our_own_bug_ends_the_run(files: Files, tokenizer: Tokenizer) -> None:
    files.write(line("one"))

    def broken(request: Request) -> Script:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await run(files, tokenizer, ScriptedSource(broken))
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["batch", "demo.yaml", "--input", "a", "--output", "b"]
    args = parser().parse_args([*command, "--max-in-flight", "7"])
    assert (args.config, args.input, args.max_in_flight) == ("demo.yaml", Path("a"), 7)
    assert positive("12") == 12
    with pytest.raises(SystemExit):
        parser().parse_args([*command, "--max-in-flight", "0"])
    assert "accepted: an integer from 1" in capsys.readouterr().err


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    on_change = line_now_and_then(3, Progress())
    counts = BatchCounts()
    for _ in range(3):
        counts.num_ok += 1
        on_change(counts)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].endswith("3 of 3 lines, 0 failed")
    assert summary(counts).startswith("3 answered, 0 failed")
