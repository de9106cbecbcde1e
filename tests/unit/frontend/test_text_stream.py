"""A request's tokens as text: stop strings, stop tokens, counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pdray.core.errors import InvalidRequestError, WorkerLostError
from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason, Request, SamplingParams
from pdray.frontend.chat_template import DEFAULT_CHAT_TEMPLATE
from pdray.frontend.text import Tokenizer
from pdray.frontend.text_stream import TextDelta, stream_text
from tests.scripted_source import Script, ScriptedSource, delta, spelled
from tests.tiny_model import BOS_TOKEN_ID, EOS_TOKEN_ID


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return Tokenizer(tiny_model_path)


def request_of(**changes: object) -> Request:
    sampling = SamplingParams(
        max_tokens=50,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=0,
        stop_token_ids=(),
        ignore_eos=False,
    )
    sampling = replace(sampling, **changes)  # type: ignore[arg-type]
    return Request(request_id="r", prompt_token_ids=(1, 2), output_token_ids=(), sampling=sampling)


async def deltas_of(
    tokenizer: Tokenizer,
    script: Script,
    *stop: str,
    is_stop_shown: bool = False,
    **sampling: object,
) -> tuple[list[TextDelta], ScriptedSource]:
    source = ScriptedSource(lambda request: script)
    texts = stream_text(
        source, tokenizer, request_of(**sampling), stop, is_stop_shown=is_stop_shown
    )
    return [each async for each in texts], source


def logprobs_of(token_ids: list[int]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            token_id=token_id, logprob=-float(i), rank=1, top_token_ids=(), top_logprobs=()
        )
        for i, token_id in enumerate(token_ids)
    )


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(each.text for each in deltas)


async def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return (await tokenizer.encode(text))[1:]


async def test_text_comes_token_by_token(tokenizer: Tokenizer) -> None:
    deltas, source = await deltas_of(tokenizer, spelled(await ids_of(tokenizer, "abc")))
    assert [each.text for each in deltas] == ["a", "b", "c"]
    assert [each.num_tokens for each in deltas] == [1, 1, 1]
    assert [each.finish_reason for each in deltas] == [None, None, FinishReason.LENGTH]
    assert source.cancelled == []


async def test_a_character_over_three_tokens_comes_at_once(tokenizer: Tokenizer) -> None:
    deltas, _ = await deltas_of(tokenizer, spelled(await ids_of(tokenizer, "€!")))
    assert [each.text for each in deltas] == ["", "", "€", "!"]


async def test_a_stop_string_cancels_and_ends_with_stop(tokenizer: Tokenizer) -> None:
    ids = await ids_of(tokenizer, "one, two, three")
    deltas, source = await deltas_of(tokenizer, spelled(ids), ", t")
    assert text_of(deltas) == "one"
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert sum(each.num_tokens for each in deltas) == len("one, t")
    assert source.cancelled == ["r"]
    assert source.num_open == 0


async def test_the_count_at_a_stop_string_does_not_depend_on_bundling(
    tokenizer: Tokenizer,
) -> None:
    ids = await ids_of(tokenizer, "one, two, three")
    bundled = [delta(*ids, finish=FinishReason.LENGTH)]
    deltas, _ = await deltas_of(tokenizer, bundled, ", t", "never")
    assert text_of(deltas) == "one"
    assert sum(each.num_tokens for each in deltas) == len("one, t")
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_text_held_for_a_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    deltas, _ = await deltas_of(tokenizer, spelled(await ids_of(tokenizer, "one, ")), ", t")
    assert text_of(deltas) == "one, "
    assert deltas[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("stop", [(), ("zzz",)])
async def test_the_stop_token_is_counted_and_not_shown(
    tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    ids = await ids_of(tokenizer, "abX")
    deltas, _ = await deltas_of(tokenizer, spelled(ids, FinishReason.STOP), *stop)
    assert text_of(deltas) == "ab"
    assert sum(each.num_tokens for each in deltas) == 3
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_what_ended_the_text_is_shown_where_asked(tokenizer: Tokenizer) -> None:
    ids = await ids_of(tokenizer, "one, two, three")
    deltas, _ = await deltas_of(tokenizer, spelled(ids), ", t", is_stop_shown=True)
    assert text_of(deltas) == "one, t"
    ids = await ids_of(tokenizer, "abX")
    deltas, _ = await deltas_of(tokenizer, spelled(ids, FinishReason.STOP), is_stop_shown=True)
    assert text_of(deltas) == "abX"
    assert sum(each.num_tokens for each in deltas) == 3


async def test_stop_strings_before_min_tokens_do_not_count(tokenizer: Tokenizer) -> None:
    ids = await ids_of(tokenizer, "a, b, c, d")
    for min_tokens, text in [(0, "a"), (1, "a"), (2, "a, b"), (5, "a, b, c"), (9, "a, b, c, d")]:
        for script in (spelled(ids), [delta(*ids, finish=FinishReason.LENGTH)]):
            deltas, _ = await deltas_of(tokenizer, script, ",", min_tokens=min_tokens)
            assert text_of(deltas) == text


@pytest.mark.parametrize("is_bundled", [False, True])
async def test_logprobs_come_with_their_tokens_and_places(
    tokenizer: Tokenizer, is_bundled: bool
) -> None:
    ids = await ids_of(tokenizer, "a€b,c")
    logprobs = logprobs_of(ids)
    script = [
        delta(token_id, logprobs=(each,)) for token_id, each in zip(ids, logprobs, strict=True)
    ]
    if is_bundled:
        script = [delta(*ids, logprobs=logprobs)]
    deltas, _ = await deltas_of(tokenizer, script, ",", logprobs=0)
    assert text_of(deltas) == "a€b"
    assert tuple(one for each in deltas for one in each.logprobs) == logprobs[:-1]
    # The three tokens of the one character stand where it does.
    places = [at for each in deltas for at in each.text_offsets]
    assert places == [0, 1, 1, 1, 2, 3]
    assert sum(each.num_tokens for each in deltas) == len(places)


async def test_special_tokens_in_the_middle_are_not_shown(tokenizer: Tokenizer) -> None:
    a, b = await ids_of(tokenizer, "ab")
    deltas, _ = await deltas_of(tokenizer, spelled([a, EOS_TOKEN_ID, b]))
    assert text_of(deltas) == "ab"
    assert sum(each.num_tokens for each in deltas) == 3


async def test_an_unfinished_character_at_the_end_is_marked(tokenizer: Tokenizer) -> None:
    deltas, _ = await deltas_of(tokenizer, spelled((await ids_of(tokenizer, "a€"))[:-1]))
    assert text_of(deltas) == "a\ufffd"


async def test_errors_of_the_source_come_after_the_text_before_them(tokenizer: Tokenizer) -> None:
    a, b = await ids_of(tokenizer, "ab")
    source = ScriptedSource(lambda request: [delta(a), delta(b), WorkerLostError("gone")])
    stream = stream_text(source, tokenizer, request_of(), ())
    assert [(await anext(stream)).text, (await anext(stream)).text] == ["a", "b"]
    with pytest.raises(WorkerLostError, match="gone"):
        await anext(stream)


async def test_closing_the_stream_cancels_the_request(tokenizer: Tokenizer) -> None:
    ids = await ids_of(tokenizer, "abc")
    source = ScriptedSource(lambda request: spelled(ids))
    stream = stream_text(source, tokenizer, request_of(), ())
    await anext(stream)
    await stream.aclose()
    assert source.cancelled == ["r"]


async def test_encode_adds_what_the_model_wants_and_decode_leaves_it_out(
    tokenizer: Tokenizer,
) -> None:
    ids = await tokenizer.encode("Grüße")
    assert ids[0] == BOS_TOKEN_ID
    assert tokenizer.decode(ids) == "Grüße"


async def test_long_texts_are_encoded_like_short_ones(tokenizer: Tokenizer) -> None:
    text = "long text, " * 1000
    assert tokenizer.decode(await tokenizer.encode(text)) == text


async def test_a_model_without_template_gets_the_plain_one_said_once(
    tiny_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer(tiny_model_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ids = await tokenizer.chat(messages)
    await tokenizer.chat(messages)
    assert ids[0] == BOS_TOKEN_ID
    assert tokenizer.decode(ids) == "System: Be brief.\nUser: Hi\nAssistant:"
    assert [r.getMessage() for r in caplog.records if "no chat template" in r.getMessage()] != []
    assert len([r for r in caplog.records if "no chat template" in r.getMessage()]) == 1


async def test_a_models_own_template_is_used_and_adds_no_second_start(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    for file in tiny_model_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = "<bos>" + DEFAULT_CHAT_TEMPLATE.replace("Assistant:", "Bot>")
    (tmp_path / "chat_template.jinja").write_text(own)
    ids = await Tokenizer(tmp_path).chat([{"role": "user", "content": "Hi"}])
    assert ids.count(BOS_TOKEN_ID) == 1
    assert Tokenizer(tmp_path).decode(ids) == "User: Hi\nBot>"


async def test_messages_that_the_template_refuses_are_the_clients_fault(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    for file in tiny_model_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        await Tokenizer(tmp_path).chat([{"role": "user", "content": "Hi"}])
    assert caught.value.param == "messages"
