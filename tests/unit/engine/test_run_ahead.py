"""One step ahead of what was read: when it is, when it is not, and what becomes of a step that
turns out to have been of no use. Equality of tokens is in tests/equivalence and tests/property."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pdray.core.grammar import Grammar, GrammarKind
from pdray.core.request import FinishReason
from pdray.engine.batch import Batch
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from pdray.engine.outputs import StepOutput
from pdray.engine.run_ahead import gains_by_running_ahead
from pdray.engine.sampling.sampled import Sampled, SampledToken
from pdray.engine.sequence import Sequence
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import save_family
from tests.tiny_model import NUM_TOKENS


@pytest.fixture(scope="module")
def loaded(tiny_model_path: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(tiny_model_path, dtype="float32", device="cpu")


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded, engine_config(), runs_ahead=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random_prompts([length], vocab_size=NUM_TOKENS, seed=seed)[0]


def add(engine: Engine, length: int = 20, name: str = "r", **params: object) -> Sequence:
    sequence = sequence_of(
        request_of(prompt_of(length, len(name)), sampling_params(**params), request_id=name)
    )
    engine.add(sequence)
    return sequence


def alone(loaded: LoadedModel, sequence: Sequence) -> list[int]:
    return generate(Engine(loaded, engine_config()), [sequence.request])[0]


def is_empty(engine: Engine) -> bool:
    engine.pool.check_integrity()
    return engine.pool.num_available_blocks == engine.pool.num_blocks


class Events:
    """What an engine ran and read, in order: a run is of as many sequences, ahead or not."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        runner, read = engine._launcher.runner, Sampled.read
        run = runner.run

        def seen_run(batch: Batch, *args: Callable[..., None]) -> torch.Tensor:
            is_ahead = isinstance(batch.input_ids_T, torch.Tensor)
            self.seen.append(f"{'ahead' if is_ahead else 'run'} {len(batch.sampled_rows)}")
            return run(batch, *args)

        def seen_read(sampled: Sampled) -> list[SampledToken]:
            self.seen.append("read")
            return read(sampled)

        monkeypatch.setattr(runner, "run", seen_run)
        monkeypatch.setattr(Sampled, "read", seen_read)

    def take(self) -> list[str]:
        taken, self.seen = self.seen, []
        return taken

    def runs(self) -> list[str]:
        return [each for each in self.take() if each != "read"]


@pytest.fixture
def events(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Events:
    return Events(engine, monkeypatch)


class TestWhenItRunsAhead:
    def test_only_where_the_device_is_not_the_host(self) -> None:
        assert [gains_by_running_ahead(each) for each in ("cpu", "cuda", "cuda:1")] == [0, 1, 1]

    def test_a_decode_is_launched_before_the_last_one_is_read(
        self, engine: Engine, events: Events
    ) -> None:
        add(engine, max_tokens=5)
        run_until_idle(engine)
        # The prompt's step, four decodes; the length's end is known beforehand.
        assert events.take() == [
            *("run 1", "read"),
            *("run 1", "ahead 1", "read", "ahead 1", "read", "ahead 1", "read", "read"),
        ]
        assert is_empty(engine)

    def test_each_step_tells_of_one_token_in_order(self, engine: Engine) -> None:
        sequence = add(engine, max_tokens=12)
        outputs = [output for step in run_until_idle(engine) for output in step.sequences]
        assert [each.index for each in outputs] == list(range(12))
        assert [each.token_ids[0] for each in outputs] == sequence.output_token_ids
        assert [each.num_computed_tokens for each in outputs] == list(range(20, 32))
        assert outputs[-1].finish_reason is FinishReason.LENGTH

    def test_those_at_their_length_are_left_out_and_the_others_go_on(
        self, engine: Engine, events: Events
    ) -> None:
        add(engine, name="a", max_tokens=3)
        add(engine, name="bb", max_tokens=5)
        run_until_idle(engine)
        assert events.take() == [
            *("run 2", "read"),
            *("run 2", "ahead 2", "read", "ahead 1", "read", "ahead 1", "read", "read"),
        ]

    def test_a_prompt_that_comes_is_not_made_to_wait(self, engine: Engine, events: Events) -> None:
        add(engine, name="a")
        for _ in range(3):
            engine.step()
        assert events.take()[-2:] == ["ahead 1", "read"]
        add(engine, name="bb")
        engine.step()
        assert events.take() == ["read"], "the step that was launched already, and no further one"
        engine.step()
        assert events.take() == ["run 2", "read"]
        engine.step()
        assert events.take() == ["run 2", "ahead 2", "read"]

    def test_a_prompt_without_a_seat_holds_nobody_up(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = Engine(loaded, engine_config(max_batch_size=1), runs_ahead=True)
        events = Events(engine, monkeypatch)
        first, second = add(engine, name="a", max_tokens=4), add(engine, name="bb", max_tokens=2)
        run_until_idle(engine)
        assert events.runs() == [*("run 1", "run 1", "ahead 1", "ahead 1"), *("run 1", "run 1")]
        assert first.output_token_ids == alone(loaded, first)
        assert second.output_token_ids == alone(loaded, second)

    def test_lent_prompts_end_with_their_token(self, engine: Engine, events: Events) -> None:
        # Its whole prefix is in the cache, so that its one step is a decode like others.
        add(engine, 32, max_tokens=2)
        run_until_idle(engine)
        events.take()
        lent = sequence_of(request_of(prompt_of(32, 1), request_id="lent"), is_lent=True)
        assert engine.allocate(lent, 32)
        engine.add(lent)
        run_until_idle(engine)
        assert events.take() == ["run 1", "read"]
        assert len(lent.output_token_ids) == 1
        engine.release(lent)
        assert is_empty(engine)

    def test_a_whole_hit_copies_its_block_once(self, loaded: LoadedModel, engine: Engine) -> None:
        add(engine, 32, max_tokens=2)
        run_until_idle(engine)
        again = add(engine, 32, max_tokens=20)
        run_until_idle(engine)
        assert again.num_cached_tokens == 31
        assert again.output_token_ids == alone(loaded, again)
        assert is_empty(engine)


class TestWhatLooksBack:
    """Rows whose choice depends on the last token: none of their steps is ahead."""

    @pytest.mark.parametrize(
        "params",
        [
            {"presence_penalty": 1.5},
            {"frequency_penalty": 1.5},
            {"repetition_penalty": 1.5},
            {"grammar": Grammar(kind=GrammarKind.REGEX, text="[a-z]{30}")},
        ],
        ids=lambda params: next(iter(params)),
    )
    def test_it_runs_step_by_step_and_so_does_its_batch(
        self, loaded: LoadedModel, engine: Engine, events: Events, params: dict[str, object]
    ) -> None:
        held = add(engine, name="held", max_tokens=8, **params)
        while engine._grammars.preparing:
            engine.wait_for_work(0.01)
        free = add(engine, name="free", max_tokens=16)
        run_until_idle(engine)
        # While it gets its last token, what comes after that is without it.
        assert events.runs() == ["run 2"] * 8 + ["ahead 1"] * 8
        assert len(held.output_token_ids) == 8
        assert [free.output_token_ids] == [alone(loaded, free)]
        assert held.output_token_ids == alone(loaded, held)

    @pytest.mark.parametrize(
        "params",
        [
            {"logit_bias": ((7, 4.0), (9, -100.0))},
            {"min_tokens": 6, "ignore_eos": False},
            {"temperature": 0.9, "seed": 3, "top_p": 0.9},
            {"logprobs": 3},
        ],
        ids=lambda params: next(iter(params)),
    )
    def test_what_depends_on_the_index_alone_may_run_ahead(
        self, loaded: LoadedModel, engine: Engine, events: Events, params: dict[str, object]
    ) -> None:
        sequence = add(engine, **params)
        stepped = run_until_idle(engine)
        assert "ahead 1" in events.take()
        reference = Engine(loaded, engine_config())
        twin = sequence_of(sequence.request)
        reference.add(twin)
        expected = run_until_idle(reference)
        assert twin.output_token_ids == sequence.output_token_ids
        assert _logprobs(stepped) == _logprobs(expected)

    def test_min_tokens_counts_what_was_not_read(self, loaded: LoadedModel) -> None:
        # Every token of the greedy answer would end it, and may from the fourth on.
        free = generate(Engine(loaded, engine_config()), [request_of(prompt_of(20))])[0]
        sampling = sampling_params(stop_token_ids=tuple(set(free)), min_tokens=3)
        outputs = [
            generate(
                Engine(loaded, engine_config(), runs_ahead=runs_ahead),
                [request_of(prompt_of(20), sampling)],
            )
            for runs_ahead in (False, True)
        ]
        assert outputs[0] == outputs[1]
        assert len(outputs[0][0]) >= 4


def _logprobs(steps: list[StepOutput]) -> list[object]:
    return [each.logprobs for step in steps for each in step.sequences if each.token_ids]


class TestWhatEndsMeanwhile:
    def stop_at(self, loaded: LoadedModel, index: int) -> tuple[list[int], tuple[int, ...]]:
        """The greedy answer up to and with the first token that is new at ``index`` or later."""
        whole = generate(Engine(loaded, engine_config()), [request_of(prompt_of(20, 1))])[0]
        stop = next(i for i in range(index, len(whole)) if whole[i] not in whole[:i])
        return whole[: stop + 1], (whole[stop],)

    def test_a_stopped_sequence_gets_no_further_token_and_keeps_its_blocks_for_a_step(
        self, loaded: LoadedModel, engine: Engine, events: Events
    ) -> None:
        expected, stop_ids = self.stop_at(loaded, 4)
        sequence = add(engine, stop_token_ids=stop_ids)
        last = None
        while last is None or last.finish_reason is None:
            (last,) = engine.step().sequences
        assert last.finish_reason is FinishReason.STOP
        assert sequence.output_token_ids == expected
        assert events.take()[-2:] == ["ahead 1", "read"]
        assert engine.num_running == 0
        assert engine.pool.num_held_blocks > 0, "the step ahead writes there"
        assert engine.wait_for_work(0), "somebody has to end that step"
        assert engine.step().sequences == ()
        assert events.take() == ["read"]
        assert sequence.output_token_ids == expected
        assert is_empty(engine)
        assert not engine.wait_for_work(0)

    def test_eos_too_and_the_others_run_on_ahead(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, eos_ids = self.stop_at(loaded, 4)
        with_eos = replace(loaded, eos_token_ids=frozenset(eos_ids))
        engine = Engine(with_eos, engine_config(), runs_ahead=True)
        events = Events(engine, monkeypatch)
        ends = add(engine, name="r", ignore_eos=False)
        goes_on = add(engine, name="on", max_tokens=15)
        run_until_idle(engine)
        # The last step of both was launched before the end of one of them was read.
        num_both = len(expected) + 1
        assert events.runs() == (
            ["run 2"] * 2 + ["ahead 2"] * (num_both - 2) + ["ahead 1"] * (15 - num_both)
        )
        assert ends.output_token_ids == expected
        assert goes_on.output_token_ids == alone(loaded, goes_on)
        assert is_empty(engine)

    def test_an_aborted_one(self, loaded: LoadedModel, engine: Engine, events: Events) -> None:
        gone, stays = add(engine, name="gone"), add(engine, name="stays")
        for _ in range(3):
            engine.step()
        assert events.take()[-2:] == ["ahead 2", "read"]
        num_tokens, num_held = len(gone.output_token_ids), engine.pool.num_held_blocks
        engine.abort("gone", 0)
        assert engine.num_running == 1
        assert engine.pool.num_held_blocks == num_held, "it is computed still"
        assert [each.sequence for each in engine.step().sequences] == [stays]
        assert events.take() == ["ahead 1", "read"], "a step ahead of it is without it"
        assert engine.pool.num_held_blocks < num_held
        run_until_idle(engine)
        assert len(gone.output_token_ids) == num_tokens
        assert stays.output_token_ids == alone(loaded, stays)
        assert is_empty(engine)

    def test_all_aborted_at_once(self, engine: Engine) -> None:
        for name in ("a", "bb"):
            add(engine, name=name)
        for _ in range(3):
            engine.step()
        for name in ("a", "bb"):
            engine.abort(name, 0)
        assert engine.pool.num_held_blocks > 0
        assert [step.sequences for step in run_until_idle(engine)] == [()]
        assert is_empty(engine)

    def test_one_that_is_aborted_while_the_step_ahead_is_launched(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sequence = add(engine)
        for _ in range(2):
            engine.step()
        runner = engine._launcher.runner
        run = runner.run

        def run_and_abort(batch: Batch, *args: Callable[..., None]) -> torch.Tensor:
            thread = threading.Thread(target=engine.abort, args=("r", 0))
            thread.start()
            thread.join(timeout=10)
            assert not thread.is_alive(), "the engine's lock is held during a launch"
            return run(batch, *args)

        monkeypatch.setattr(runner, "run", run_and_abort)
        num_tokens = len(sequence.output_token_ids)
        assert engine.step().sequences == ()
        assert engine.pool.num_held_blocks > 0
        monkeypatch.undo()
        run_until_idle(engine)
        assert len(sequence.output_token_ids) == num_tokens
        assert is_empty(engine)

    def test_a_quarantine_begins_when_the_step_ahead_is_over(self, engine: Engine) -> None:
        sequence = add(engine)
        for _ in range(3):
            engine.step()
        engine.quarantine(sequence)
        assert engine.pool.num_quarantined_blocks == 0
        run_until_idle(engine)
        assert engine.pool.num_quarantined_blocks > 0
        engine.end_quarantine(sequence)
        assert is_empty(engine)

    def test_a_failed_step_leaves_nothing_behind(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(engine)
        for _ in range(3):
            engine.step()

        def fail(*args: object) -> torch.Tensor:
            engine.abort("r", 0)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._launcher.runner, "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
        assert is_empty(engine)
        assert not engine.wait_for_work(0)

    def test_numbers_that_are_none(self, tiny_model_path: Path) -> None:
        """A token that was no number is what the next step would begin with."""
        loaded = load_model(tiny_model_path, dtype="float32", device="cpu")
        free = generate(Engine(loaded, engine_config()), [request_of(prompt_of(20, 1))])[0]
        stop = next(i for i in range(4, len(free)) if free[i] not in [*prompt_of(20, 1), *free[:i]])
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[free[stop]] = float("nan")
        engine = Engine(loaded, engine_config(), runs_ahead=True)
        sequence = add(engine)
        last = [step.sequences for step in run_until_idle(engine) if step.sequences][-1][0]
        assert "not a number" in (last.error or "")
        assert sequence.output_token_ids == free[: stop + 1]
        assert is_empty(engine)


class TestBlocks:
    def test_a_window_moves_on_under_a_step_ahead(self, tmp_path: Path) -> None:
        save_family("gpt_oss_sinks", tmp_path)
        loaded = load_model(tmp_path, dtype="float32", device="cpu")
        requests = [
            request_of(prompt_of(length), sampling_params(max_tokens=150), request_id=str(length))
            for length in (1, 15, 16, 23, 24, 47)
        ]
        ahead = Engine(loaded, engine_config(), runs_ahead=True)
        assert generate(ahead, requests) == generate(Engine(loaded, engine_config()), requests)

    def test_without_blocks_to_spare_it_goes_step_by_step(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        block_bytes = Engine(loaded, engine_config()).storage.block_bytes
        config = engine_config(kv_cache_bytes=6 * block_bytes)
        engine = Engine(loaded, config, runs_ahead=True)
        events = Events(engine, monkeypatch)
        sequences = [add(engine, name=name, max_tokens=40) for name in ("a", "bb", "ccc")]
        steps = run_until_idle(engine)
        assert sum(step.num_preemptions for step in steps) > 0
        assert any(each.startswith("ahead") for each in events.runs())
        monkeypatch.undo()
        for sequence in sequences:
            assert sequence.output_token_ids == alone(loaded, sequence)
        assert is_empty(engine)


@pytest.mark.gpu
def test_a_launch_waits_for_nothing_that_the_device_does(tiny_model_path: Path) -> None:
    config = replace(engine_config(), device="cuda", dtype="bfloat16")
    engine = Engine.load(tiny_model_path, config)
    add(engine, name="a", max_tokens=60)
    add(engine, name="bb", max_tokens=60, temperature=0.8, top_p=0.9, logprobs=2)
    for _ in range(4):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(40):  # past some blocks' ends
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
