"""Pieces of text add up to the text of the whole, whatever the tokens and the split."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from pdray.frontend.detokenizer import MAX_HELD_TOKENS, DetokenizerFactory

TEXTS = ["Grüße", "日本語のテキスト", "👩‍👩‍👧 family", "a b  c\n", " leading", "\ufffd", ""]


@pytest.fixture(scope="module")
def byte_level() -> RustTokenizer:
    """Every byte, a few tokens that end inside a character, and a special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    euro = "".join(RustTokenizerBytes.spell("€"))
    merges = [(euro[0], euro[1]), (euro[:2], euro[2])]
    vocabulary = [*letters, euro[:2], euro]
    tokenizer = RustTokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens(["<été>"])
    return tokenizer


class RustTokenizerBytes:
    """How a byte-level vocabulary writes a text."""

    @staticmethod
    def spell(text: str) -> str:
        ((spelled, _),) = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        ).pre_tokenize_str(text)
        return spelled


@pytest.fixture(scope="module")
def byte_fallback() -> RustTokenizer:
    """Llama 2's way: words with a mark for the space, single bytes for the rest, and a text
    that drops the space it begins with."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", "é", "\ufffd", "a"]
    vocabulary = words + [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = RustTokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


factory_of = cache(DetokenizerFactory)


def in_pieces(tokenizer: RustTokenizer, token_ids: list[int], cuts: list[int]) -> str:
    detokenizer = factory_of(tokenizer).create()
    bounds = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    pieces = [detokenizer.push(token_ids[start:end]) for start, end in pairwise(bounds)]
    return "".join(pieces) + detokenizer.flush()


def whole(tokenizer: RustTokenizer, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


CUTS = st.lists(st.integers(0, 40), max_size=8)
property_settings = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@property_settings
@given(data=st.data(), cuts=CUTS)
def test_byte_level_pieces_add_up_to_the_whole(
    byte_level: RustTokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_level.get_vocab_size() + 3), max_size=40))
    assert in_pieces(byte_level, ids, cuts) == whole(byte_level, ids)


@property_settings
@given(data=st.data(), cuts=CUTS)
def test_byte_fallback_pieces_add_up_to_the_whole(
    byte_fallback: RustTokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    some_bytes = st.sampled_from(
        [byte_fallback.token_to_id(f"<0x{b:02X}>") for b in "Aé€".encode()]
    )
    any_token = st.integers(0, byte_fallback.get_vocab_size() + 3)
    ids = data.draw(st.lists(any_token | some_bytes, max_size=MAX_HELD_TOKENS - 1))
    assert in_pieces(byte_fallback, ids, cuts) == whole(byte_fallback, ids)


@property_settings
@given(texts=st.lists(st.text(), max_size=4), cuts=CUTS)
@example(texts=TEXTS, cuts=[1, 2, 3])
def test_any_text_comes_back_whole(
    byte_level: RustTokenizer, texts: list[str], cuts: list[int]
) -> None:
    text = "".join(texts).replace("<eos>", "")
    assert in_pieces(byte_level, byte_level.encode(text).ids, cuts) == text


@pytest.mark.parametrize("vocabulary", ["byte_level", "byte_fallback"])
def test_no_piece_holds_a_part_of_a_character(
    vocabulary: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(vocabulary)
    name = RustTokenizerBytes.spell if vocabulary == "byte_level" else fallback_names
    ids = [tokenizer.token_to_id(token) for token in name("€")]
    detokenizer = DetokenizerFactory(tokenizer).create()
    assert "".join(detokenizer.push([token_id]) for token_id in ids[:-1]) == ""
    last = detokenizer.push(ids[-1:]) + detokenizer.flush()
    assert last == "€"


def fallback_names(text: str) -> list[str]:
    return [f"<0x{value:02X}>" for value in text.encode()]


def test_an_unfinished_character_is_a_replacement_mark_at_the_end(
    byte_level: RustTokenizer,
) -> None:
    detokenizer = DetokenizerFactory(byte_level).create()
    ids = [byte_level.token_to_id(token) for token in RustTokenizerBytes.spell("€")[:2]]
    assert detokenizer.push(ids) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_special_tokens_have_no_text(byte_level: RustTokenizer) -> None:
    detokenizer = DetokenizerFactory(byte_level).create()
    eos = byte_level.token_to_id("<eos>")
    assert detokenizer.push([eos, byte_level.token_to_id("x"), eos]) == "x"


def test_a_long_run_of_byte_tokens_is_shown_before_it_ends(byte_fallback: RustTokenizer) -> None:
    text = "日本語" * 20
    ids = [byte_fallback.token_to_id(token) for token in fallback_names(text)]
    detokenizer = DetokenizerFactory(byte_fallback).create()
    shown = detokenizer.push(ids)
    assert text.startswith(shown)
    assert len(text) - len(shown) < MAX_HELD_TOKENS
    assert shown + detokenizer.flush() == text


def decodes_of(tokenizer: RustTokenizer, count: Callable[[], None]) -> DetokenizerFactory:
    class Counted(DetokenizerFactory):
        def decode(self, token_ids: list[int]) -> str:
            assert len(token_ids) <= 2 * MAX_HELD_TOKENS + 1
            count()
            return super().decode(token_ids)

    return Counted(tokenizer)


def test_work_for_a_token_does_not_grow_with_the_text(byte_fallback: RustTokenizer) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    detokenizer = decodes_of(byte_fallback, count).create()
    garbage = [byte_fallback.token_to_id("<0xFF>")] * 2000
    text = [byte_fallback.token_to_id("▁cat")] * 2000
    detokenizer.push(garbage + text)
    assert calls <= 3 * len(garbage + text)


@pytest.fixture(scope="module")
def gemma(demo_model_path: Path) -> RustTokenizer:
    return RustTokenizer.from_file(str(demo_model_path / "tokenizer.json"))


@pytest.mark.slow
@property_settings
@given(data=st.data(), cuts=CUTS)
def test_gemma_pieces_add_up_to_the_whole(
    gemma: RustTokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    some_bytes = st.sampled_from([gemma.token_to_id(f"<0x{b:02X}>") for b in "Aé€".encode()])
    any_token = st.integers(0, gemma.get_vocab_size() + 3)
    ids = data.draw(st.lists(any_token | some_bytes, max_size=MAX_HELD_TOKENS - 1))
    assert in_pieces(gemma, ids, cuts) == whole(gemma, ids)


@pytest.mark.slow
@property_settings
@given(text=st.text(), cuts=CUTS)
def test_gemma_pieces_of_a_text_add_up_to_its_decoding(
    gemma: RustTokenizer, text: str, cuts: list[int]
) -> None:
    ids = gemma.encode(text).ids
    assert in_pieces(gemma, ids, cuts) == whole(gemma, ids)


def test_a_tokens_spelling_is_its_part_of_a_text(
    byte_level: RustTokenizer, byte_fallback: RustTokenizer
) -> None:
    for tokenizer in (byte_level, byte_fallback):
        factory = factory_of(tokenizer)
        (eos,) = tokenizer.encode("<eos>").ids
        assert factory.spelling(eos) == b"<eos>"
        assert factory.spelling(10**6) == b""
        for text in ("a", "s", "€", "é"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            spelled = b"".join(factory.spelling(token_id) for token_id in ids)
            assert spelled.decode().strip() == text
    cat = byte_fallback.token_to_id("▁cat")
    assert factory_of(byte_fallback).spelling(cat) == b" cat"
    assert factory_of(byte_fallback).spelling(byte_fallback.token_to_id("<0xE2>")) == b"\xe2"
