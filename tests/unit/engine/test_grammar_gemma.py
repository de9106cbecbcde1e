"""Held output of a real model with a vocabulary of 262,144 tokens, drawn at temperature 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from pdray.core.grammar import Grammar, GrammarKind
from pdray.engine.engine import Engine
from pdray.frontend.text import Tokenizer
from tests.engine_driver import engine_config, generate, request_of, sampling_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["cheese", "été", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
PATTERN = r"[A-Z][a-zé]{2,12} \d{4}-\d{2}"
CHOICES = ["Paris", "Parma", "São Paulo", "the capital of the moon"]
SEEDS = range(6)
KINDS = {
    "schema": Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(PERSON)),
    "regex": Grammar(kind=GrammarKind.REGEX, text=PATTERN),
    "choice": Grammar(kind=GrammarKind.CHOICE, text=json.dumps(CHOICES)),
}


@pytest.fixture(scope="module")
def tokenizer(demo_model_path: Path) -> Tokenizer:
    return Tokenizer(demo_model_path)


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Engine:
    torch.set_num_threads(1)
    return Engine.load(demo_model_path, engine_config(kv_cache_bytes=1 << 28))


async def test_every_answer_is_in_its_grammar(engine: Engine, tokenizer: Tokenizer) -> None:
    """All kinds in one batch, with rows between them that are held to none."""
    prompt = await tokenizer.encode("Here is somebody, with a name and an age:")
    requests = {
        f"{kind} {seed}": request_of(
            prompt,
            sampling_params(
                grammar=grammar, seed=seed, temperature=1.0, max_tokens=200, ignore_eos=False
            ),
            request_id=f"{kind} {seed}",
        )
        for seed in SEEDS
        for kind, grammar in {**KINDS, "free": None}.items()
    }
    answers = dict(zip(requests, generate(engine, list(requests.values())), strict=True))
    texts: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name, answer in answers.items():
        kind = name.split()[0]
        if kind in texts:
            *token_ids, end = answer
            assert tokenizer.decode([end]) == "", "it ended by itself"
            texts[kind].add(tokenizer.decode(token_ids))
    for text in texts["schema"]:
        jsonschema.validate(json.loads(text), PERSON)
    assert all(re.fullmatch(PATTERN, text, re.ASCII) for text in texts["regex"])
    assert texts["choice"] <= set(CHOICES)
    assert len(texts["schema"]) == len(texts["regex"]) == len(SEEDS), "temperature 1 varies"
