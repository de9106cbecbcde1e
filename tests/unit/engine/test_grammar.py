"""Output held to a grammar: every kind, any batch, any point to go on from."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from llguidance import LLTokenizer

from pdray.core.grammar import Grammar, GrammarKind
from pdray.core.request import FinishReason, Request
from pdray.engine import grammar as grammar_module
from pdray.engine.engine import Engine
from pdray.frontend.text import Tokenizer
from pdray.grammar import compile_grammar
from tests.engine_driver import (
    engine_config,
    generate,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.tiny_model import EOS_TOKEN_ID, NUM_TOKENS

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "home"],
    "additionalProperties": False,
    "$defs": {"place": {"anyOf": [{"type": "boolean"}, {"const": "ö \"x\""}]}},
}  # fmt: skip
PATTERN = r"(\d{3}-)?[a-fé]{2,5}\n?"
CHOICES = ["yes", "yes, but", "no", 'a "quoted"\n\\ line', "ü", ""]
LIST = 'start: "[" item ("," item){0,3} "]"\nitem: /[xyz]/ | start'

SPACED_GRAMMAR = Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(PERSON))
COMPACT = {"x-guidance": {"whitespace_flexible": False}}
SCHEMA_GRAMMAR = Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(PERSON | COMPACT))
REGEX_GRAMMAR = Grammar(kind=GrammarKind.REGEX, text=PATTERN)
CHOICE_GRAMMAR = Grammar(kind=GrammarKind.CHOICE, text=json.dumps(CHOICES))
LARK_GRAMMAR = Grammar(kind=GrammarKind.LARK, text=LIST)
NUM_SEEDS = 16


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


def is_list(text: str) -> bool:
    return set(text) <= set("[],xyz") and text.count("[") == text.count("]") > 0


KINDS: list[tuple[Grammar, Callable[[str], object]]] = [
    (SPACED_GRAMMAR, is_person),
    (SCHEMA_GRAMMAR, is_person),
    (REGEX_GRAMMAR, re.compile(PATTERN, re.ASCII).fullmatch),
    (CHOICE_GRAMMAR, CHOICES.__contains__),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return Tokenizer(tiny_model_path)


@pytest.fixture(scope="module")
def engine(tiny_model_path: Path) -> Engine:
    return Engine.load(tiny_model_path, engine_config())


def held_to(
    grammar: Grammar | None, seed: int, *, max_tokens: int = 400, outputs: tuple[int, ...] = ()
) -> Request:
    sampling = sampling_params(
        grammar=grammar, seed=seed, temperature=1.0, max_tokens=max_tokens, ignore_eos=False
    )
    name = f"{grammar and grammar.kind}-{seed}"
    return request_of([5, 6, 7 + seed], sampling, request_id=name, output_token_ids=outputs)


@pytest.mark.parametrize(("grammar", "is_valid"), KINDS, ids=lambda each: getattr(each, "kind", ""))
def test_every_answer_is_in_the_grammar(
    engine: Engine, tokenizer: Tokenizer, grammar: Grammar, is_valid: Callable[[str], object]
) -> None:
    answers = generate(engine, [held_to(grammar, seed) for seed in range(NUM_SEEDS)])
    texts = [tokenizer.decode(answer[:-1]) for answer in answers]
    assert {answer[-1] for answer in answers} == {EOS_TOKEN_ID}
    assert [text for text in texts if not is_valid(text)] == []
    assert len(set(texts)) > 3


def test_an_endless_grammar_ends_at_max_tokens_within_it(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    requests = [held_to(LARK_GRAMMAR, seed, max_tokens=60) for seed in range(NUM_SEEDS)]
    for answer in generate(engine, requests):
        if answer[-1] == EOS_TOKEN_ID:
            assert is_list(tokenizer.decode(answer[:-1]))
        else:
            assert len(answer) == 60
            assert set(tokenizer.decode(answer)) <= set("[],xyz")


def test_rows_without_a_grammar_are_what_they_are_alone(engine: Engine) -> None:
    free = [held_to(None, seed, max_tokens=30) for seed in range(4)]
    alone = generate(engine, free)
    held = [held_to(SCHEMA_GRAMMAR, seed) for seed in range(3)]
    held_alone = generate(engine, held)
    mixed = generate(engine, [free[0], held[0], free[1], held[1], held[2], free[2], free[3]])
    assert [mixed[row] for row in (0, 2, 5, 6)] == alone
    assert [mixed[row] for row in (1, 3, 4)] == held_alone


def test_an_answer_goes_on_from_any_point(engine: Engine) -> None:
    """Placed again, its tokens are replayed: in fp32 the rest is the same."""
    (whole,) = generate(engine, [held_to(SCHEMA_GRAMMAR, 3)])
    cuts = [held_to(SCHEMA_GRAMMAR, 3, outputs=tuple(whole[:cut])) for cut in range(len(whole))]
    requests = [replace(each, request_id=f"cut at {cut}") for cut, each in enumerate(cuts)]
    assert generate(engine, requests) == [whole] * len(whole)


def test_preempted_answers_stay_in_the_grammar(
    tiny_model_path: Path, engine: Engine, tokenizer: Tokenizer
) -> None:
    requests = [held_to(SCHEMA_GRAMMAR, seed) for seed in range(8)]
    small = Engine.load(
        tiny_model_path, engine_config(kv_cache_bytes=20 * engine.layout.block_bytes)
    )
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        small.add(sequence)
    assert sum(output.num_preemptions for output in run_until_idle(small)) > 0
    answers = [sequence.output_token_ids for sequence in sequences]
    assert [is_person(tokenizer.decode(answer[:-1])) for answer in answers] == [True] * 8


SLOW_SCHEMA = pytest.param(SCHEMA_GRAMMAR, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "grammar", [SLOW_SCHEMA, REGEX_GRAMMAR, CHOICE_GRAMMAR, LARK_GRAMMAR], ids=lambda g: g.kind
)
def test_a_mask_has_exactly_the_tokens_that_the_grammar_takes(
    engine: Engine, tiny_model_path: Path, grammar: Grammar
) -> None:
    vocabulary = LLTokenizer(str(tiny_model_path / "tokenizer.json"), eos_token=EOS_TOKEN_ID)
    matcher = compile_grammar(grammar, vocabulary)
    sequence = sequence_of(held_to(grammar, 1))
    engine.add(sequence)
    num_states = 0
    while engine._grammars.preparing or engine.num_waiting or engine.num_running:
        if not engine.wait_for_work(0.01):
            continue
        assert sequence.grammar_state is not None
        sequence.grammar_state.wait()
        mask = sequence.grammar_state.mask
        assert mask is not None
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = [token for token in range(NUM_TOKENS) if matcher.deep_copy().consume_token(token)]
        assert np.flatnonzero(bits).tolist() == allowed
        assert (EOS_TOKEN_ID in allowed) == matcher.is_accepting()
        engine.step()
        matcher.consume_token(sequence.output_token_ids[-1])
        num_states += 1
    assert num_states == len(sequence.output_token_ids) > 1


def test_a_grammar_that_takes_long_holds_nobody_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile = threading.Event()

    def slowly(grammar: Grammar, vocabulary: LLTokenizer) -> object:
        assert may_compile.wait(60)
        return compile_grammar(grammar, vocabulary)

    monkeypatch.setattr(grammar_module, "compile_grammar", slowly)
    slow = sequence_of(held_to(Grammar(kind=GrammarKind.REGEX, text="[a-m]{7}"), 1))
    quick = sequence_of(held_to(None, 2, max_tokens=5))
    engine.add(slow)
    engine.add(quick)
    while engine.num_running or engine.num_waiting > 1:
        engine.step()
    assert len(quick.output_token_ids) == 5
    assert slow.output_token_ids == []
    assert engine.num_waiting == 1
    may_compile.set()
    run_until_idle(engine)
    assert len(slow.output_token_ids) == 8


def test_one_that_is_aborted_while_its_grammar_compiles_gives_its_blocks_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile = threading.Event()

    def slowly(grammar: Grammar, vocabulary: LLTokenizer) -> object:
        assert may_compile.wait(60)
        return compile_grammar(grammar, vocabulary)

    monkeypatch.setattr(grammar_module, "compile_grammar", slowly)
    sequence = sequence_of(held_to(Grammar(kind=GrammarKind.REGEX, text="[a-m]{8}"), 1))
    assert engine.allocate(sequence, 4)
    engine.add(sequence)
    engine.abort(sequence.request_id, sequence.attempt)
    assert engine.num_waiting == 0
    assert engine.pool.num_available_blocks == engine.pool.num_blocks
    may_compile.set()
    assert generate(engine, [held_to(None, 2, max_tokens=5)]) != []
    assert sequence.output_token_ids == []


def test_a_grammar_that_no_one_checked_fails_its_request_alone(engine: Engine) -> None:
    bad = sequence_of(held_to(Grammar(kind=GrammarKind.REGEX, text="(a"), 1))
    good = sequence_of(held_to(CHOICE_GRAMMAR, 2))
    engine.add(bad)
    engine.add(good)
    outputs = [each for step in run_until_idle(engine) for each in step.sequences]
    errors = {each.sequence.request_id: each.error for each in outputs if each.error}
    assert list(errors) == [bad.request_id]
    assert "unclosed group" in errors[bad.request_id]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert engine.pool.num_available_blocks == engine.pool.num_blocks


def test_a_model_without_a_tokenizer_file_says_so(tiny_model_path: Path, tmp_path: Path) -> None:
    for path in tiny_model_path.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    engine = Engine.load(tmp_path, engine_config())
    engine.add(sequence_of(held_to(CHOICE_GRAMMAR, 1)))
    (output,) = [each for step in run_until_idle(engine) for each in step.sequences]
    assert output.error is not None
    assert "tokenizer.json" in output.error


def test_min_tokens_and_penalties_stay_within_the_grammar(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    sampling = sampling_params(
        grammar=CHOICE_GRAMMAR,
        temperature=1.0,
        ignore_eos=False,
        min_tokens=6,
        presence_penalty=2.0,
        logit_bias=((EOS_TOKEN_ID, 100.0), (0, 100.0)),
    )
    requests = [request_of([5, seed], replace(sampling, seed=seed)) for seed in range(NUM_SEEDS)]
    texts = {tokenizer.decode(answer[:-1]) for answer in generate(engine, requests)}
    assert texts <= set(CHOICES)
    assert "" not in texts
