"""An engine a step ahead of what it has read, under any order of arrivals, aborts and leases:
every answer is that of transformers or of an engine that runs the request alone, nothing gets a
block that a step in flight uses, and in the end every block is free."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdray.core.request import FinishReason, Request
from pdray.engine.attention.base import GroupBatch
from pdray.engine.batch import Batch
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from pdray.engine.sequence import Sequence, SequenceState
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import VOCAB_SIZE, save_family
from tests.equivalence.reference import NEAR_TIE, Reference

NUM_TOKENS = 24
PROMPTS = random_prompts([3, 16, 30, 48], vocab_size=VOCAB_SIZE, seed=5)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "short": {"max_tokens": 3},
    "sampled": {"temperature": 0.9, "seed": 11},
    "filtered": {"temperature": 1.0, "seed": 5, "top_p": 0.8, "top_k": 50},
    "penalized": {"presence_penalty": 0.8, "frequency_penalty": 0.4},
    "biased": {"logit_bias": ((4, 2.0),), "min_tokens": 4},
}
CHOICES = st.tuples(st.sampled_from(range(len(PROMPTS))), st.sampled_from(sorted(KINDS)))


@functools.cache
def loaded() -> LoadedModel:
    """With a full and a sliding group."""
    torch.set_num_threads(1)
    return load_model(model_path(), dtype="float32", device="cpu")


@functools.cache
def model_path() -> Path:
    path = Path(tempfile.mkdtemp())
    save_family("gpt_oss_sinks", path)
    return path


@functools.cache
def free_answer(prompt: int, kind: str) -> list[int]:
    """Without a stop; the greedy ones are transformers' own."""
    params = {"max_tokens": NUM_TOKENS, **KINDS[kind]}
    request = request_of(PROMPTS[prompt], sampling_params(**params))
    (token_ids,) = generate(Engine(loaded(), engine_config()), [request])
    if not KINDS[kind]:
        reference = reference_model().generate(PROMPTS[prompt], NUM_TOKENS)
        assert min(reference.gaps) > NEAR_TIE
        assert token_ids == reference.token_ids
    return token_ids


@functools.cache
def reference_model() -> Reference:
    return Reference(model_path())


def used_blocks(group: GroupBatch) -> set[int]:
    """By a step of decodes: the blocks from the first that a query sees to the one it is in."""
    used: set[int] = set()
    for query, first_block, num_blocks, table in zip(
        group.query_starts_S.tolist(),
        group.first_blocks_S.tolist(),
        group.num_blocks_S.tolist(),
        group.block_tables_SB.tolist(),
        strict=True,
    ):
        first_seen = 0 if group.sliding_window is None else query - group.sliding_window + 1
        used |= set(table[max(0, first_seen) // group.block_size - first_block : num_blocks])
    return used


class RunAheadMachine(RuleBasedStateMachine):
    """Stands for the worker."""

    @initialize(num_blocks=st.integers(10, 40), max_batch_size=st.integers(1, 5))
    def start(self, num_blocks: int, max_batch_size: int) -> None:
        block_bytes = Engine(loaded(), engine_config()).storage.block_bytes
        self.engine = Engine(
            loaded(),
            engine_config(
                kv_cache_bytes=num_blocks * block_bytes,
                max_batch_size=max_batch_size,
                max_tokens_per_step=40,
            ),
            runs_ahead=True,
        )
        self.expected: dict[Sequence, list[int]] = {}
        self.lent: list[Sequence] = []
        self.used_block_ids: set[int] = set()
        """Those that the newest step reads or writes."""
        self.num_made = 0
        run = self.engine._launcher.runner.run

        def noted_run(batch: Batch, *args: Any) -> torch.Tensor:
            self.used_block_ids = set().union(*map(used_blocks, batch.groups))
            return run(batch, *args)

        self.engine._launcher.runner.run = noted_run  # type: ignore[method-assign]

    def new_request(self, prompt: int, kind: str, stop: int | None) -> tuple[Request, list[int]]:
        """With the token at output index ``stop``, if any, as one that ends it."""
        expected = free_answer(prompt, kind)
        params = {"max_tokens": NUM_TOKENS, **KINDS[kind]}
        if stop is not None and stop < len(expected) and not KINDS[kind].get("min_tokens"):
            params["stop_token_ids"] = (expected[stop],)
            expected = expected[: expected.index(expected[stop]) + 1]
        self.num_made += 1
        request = request_of(
            PROMPTS[prompt], sampling_params(**params), request_id=str(self.num_made)
        )
        return request, expected

    @rule(choice=CHOICES, stop=st.none() | st.integers(0, 12))
    def submit(self, choice: tuple[int, str], stop: int | None) -> None:
        request, expected = self.new_request(*choice, stop)
        if len(request.prompt_token_ids) + NUM_TOKENS > self.engine.max_sequence_tokens:
            return
        sequence = sequence_of(request)
        self.engine.add(sequence)
        self.expected[sequence] = expected

    @rule(choice=CHOICES)
    def lend(self, choice: tuple[int, str]) -> None:
        request, expected = self.new_request(*choice, None)
        sequence = sequence_of(request, is_lent=True)
        if self.engine.allocate(sequence, sequence.num_tokens):
            self.engine.add(sequence)
            self.expected[sequence] = expected[:1]
            self.lent.append(sequence)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def lease_ends(self, data: st.DataObject) -> None:
        sequence = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        self.engine.abort(sequence.request_id, 0)
        self.engine.release(sequence)
        self.expected.pop(sequence, None)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), is_quarantined=st.booleans())
    def drop(self, data: st.DataObject, is_quarantined: bool) -> None:
        """While the step ahead, if there is one, has it."""
        own = [each for each in self.expected if not each.is_lent]
        if not own:
            return
        sequence = own[data.draw(st.integers(0, len(own) - 1))]
        del self.expected[sequence]
        if is_quarantined:
            self.engine.quarantine(sequence)
            self.engine.end_quarantine(sequence)
        else:
            self.engine.abort(sequence.request_id, 0)

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if not self.engine.wait_for_work(0):
                return
            for output in self.engine.step().sequences:
                assert output.sequence in self.expected, "a sequence that is gone has an output"
                self.check(output.sequence, output.finish_reason)

    def check(self, sequence: Sequence, finish_reason: FinishReason | None) -> None:
        expected, made = self.expected[sequence], sequence.output_token_ids
        assert made == expected[: len(made)]
        if finish_reason is not None or (sequence.is_lent and made):
            assert made == expected
            assert sequence.state is SequenceState.ENDED
            del self.expected[sequence]

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.engine.pool.check_integrity()
        ahead = self.engine._ahead
        in_flight = set() if ahead is None else ahead.sequences
        held = {id_ for each in [*self.expected, *self.lent, *in_flight] for id_ in each.block_ids}
        assert len(held) == self.engine.pool.num_held_blocks
        if ahead is not None:
            assert self.used_block_ids <= held, "a step in flight uses a free block"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for sequence in self.lent:
            self.engine.abort(sequence.request_id, 0)
            self.engine.release(sequence)
            self.expected.pop(sequence, None)
        self.lent = []
        while self.engine.wait_for_work(0):
            self.step(1)
            self.every_block_is_accounted_for()
        assert not self.expected, "some sequence never ends"
        assert self.engine.pool.num_available_blocks == self.engine.pool.num_blocks


TestRunAhead = RunAheadMachine.TestCase
TestRunAhead.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
