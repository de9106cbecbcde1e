"""An engine's life with one tiny model: ends, stops, leases, cancellation, failure, waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdray.core.errors import ConfigError, InvalidRequestError
from pdray.core.request import FinishReason
from pdray.engine.batch import Batch
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from pdray.engine.outputs import SequenceOutput
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import VOCAB_SIZE, save_family

WINDOW = 24
BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-OSS: a full and a sliding group."""
    path = tmp_path_factory.mktemp("gpt-oss")
    save_family("gpt_oss_sinks", path)
    return path


@pytest.fixture(scope="module")
def loaded(model_path: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(model_path, dtype="float32", device="cpu")


MakeEngine = Callable[..., Engine]


@pytest.fixture(params=[False, True], ids=["step by step", "a step ahead"])
def make_engine(request: pytest.FixtureRequest, loaded: LoadedModel) -> MakeEngine:
    return lambda **limits: Engine(loaded, engine_config(**limits), runs_ahead=request.param)


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random_prompts([length], vocab_size=VOCAB_SIZE, seed=seed)[0]


def last_output(engine: Engine) -> SequenceOutput:
    return [each for step in run_until_idle(engine) for each in step.sequences][-1]


def is_empty(engine: Engine) -> bool:
    engine.pool.check_integrity()
    return engine.pool.num_available_blocks == engine.pool.num_blocks


def during_step(
    engine: Engine, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs one step, and ``action`` from another thread in the middle of its forward pass."""
    run = engine._launcher.runner.run

    def run_with_action(batch: Batch, *args: object) -> torch.Tensor:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive(), "the engine's lock is held during the forward pass"
        return run(batch, *args)

    monkeypatch.setattr(engine._launcher.runner, "run", run_with_action)
    engine.step()
    monkeypatch.undo()


class TestEnds:
    def test_max_tokens(self, engine: Engine) -> None:
        engine.add(sequence_of(request_of(prompt_of(5), sampling_params(max_tokens=3))))
        output = last_output(engine)
        assert output.finish_reason is FinishReason.LENGTH
        assert len(output.sequence.output_token_ids) == 3

    def test_outputs_of_earlier_attempts_count(self, engine: Engine) -> None:
        sampling = sampling_params(max_tokens=6)
        whole = generate(engine, [request_of(prompt_of(30), sampling)])[0]
        sent = tuple(whole[:4])
        assert generate(engine, [request_of(prompt_of(30), sampling, output_token_ids=sent)]) == [
            whole
        ]

    def test_a_stop_token_ends_it_and_is_delivered(self, engine: Engine) -> None:
        whole = generate(engine, [request_of(prompt_of(30))])[0]
        sampling = sampling_params(stop_token_ids=(whole[5],))
        engine.add(sequence_of(request_of(prompt_of(30), sampling)))
        output = last_output(engine)
        assert output.finish_reason is FinishReason.STOP
        assert output.token_ids == (whole[5],)
        assert output.sequence.output_token_ids == whole[: whole.index(whole[5]) + 1]
        assert is_empty(engine)

    def test_eos_ends_it_unless_ignored(self, loaded: LoadedModel) -> None:
        engine = Engine(loaded, engine_config())
        whole = generate(engine, [request_of(prompt_of(30))])[0]
        with_eos = LoadedModel(
            path=loaded.path,
            model=loaded.model,
            layers=loaded.layers,
            digest=loaded.digest,
            eos_token_ids=frozenset({whole[2]}),
            max_positions=None,
        )
        engine = Engine(with_eos, engine_config())
        stops, goes_on = sampling_params(ignore_eos=False), sampling_params(ignore_eos=True)
        first = whole.index(whole[2]) + 1
        assert generate(engine, [request_of(prompt_of(30), stops)]) == [whole[:first]]
        assert generate(engine, [request_of(prompt_of(30), goes_on)]) == [whole]

    def test_the_models_length_ends_it(self, make_engine: MakeEngine) -> None:
        engine = make_engine(max_model_len=40)
        engine.add(sequence_of(request_of(prompt_of(30), sampling_params(max_tokens=100))))
        output = last_output(engine)
        assert output.finish_reason is FinishReason.LENGTH
        assert output.sequence.num_tokens == 40

    def test_what_could_never_fit_is_refused(self, make_engine: MakeEngine) -> None:
        engine = make_engine(max_model_len=40)
        with pytest.raises(InvalidRequestError, match=r"41 tokens .* up to 40"):
            engine.add(sequence_of(request_of(prompt_of(41))))


class TestLent:
    def test_it_ends_with_the_first_token_and_keeps_what_decode_needs(self, engine: Engine) -> None:
        lent = sequence_of(request_of(prompt_of(100)), is_lent=True)
        assert engine.allocate(lent, 100)
        engine.add(lent)
        output = last_output(engine)
        assert (len(output.token_ids), output.finish_reason) == (1, None)
        assert engine.num_running == 0
        kept = [(t.first_block, t.end_block) for t in lent.block_tables]
        assert kept == [((100 - WINDOW + 1) // BLOCK_SIZE, 7), (0, 7)]
        assert engine.pool.num_held_blocks == 3 + 7
        engine.release(lent)
        engine.release(lent)
        assert is_empty(engine)

    def test_full_blocks_are_published_first_and_the_partial_one_last(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine(max_tokens_per_step=40)
        lent = sequence_of(request_of(prompt_of(100)), is_lent=True)
        engine.allocate(lent, 100)
        engine.add(lent)
        published = []
        while engine.wait_for_work(0):
            engine.step()
            runs = engine.published.of_prompt(lent, lent.num_computed_tokens)
            published.append({run.group_id: (run.first_block, len(run.block_ids)) for run in runs})
        # 40, 80 and 100 tokens; the sliding group (0) begins at block 77 // 16.
        assert published == [{1: (0, 2)}, {0: (4, 1), 1: (0, 5)}, {0: (4, 3), 1: (0, 7)}]

    def test_published_blocks_stay_the_same_blocks(self, make_engine: MakeEngine) -> None:
        engine = make_engine(max_tokens_per_step=16)
        lent = sequence_of(request_of(prompt_of(100)), is_lent=True)
        engine.allocate(lent, 100)
        engine.add(lent)
        known: dict[int, tuple[int, ...]] = {}
        while engine.wait_for_work(0):
            engine.step()
            for run in engine.published.of_prompt(lent, lent.num_computed_tokens):
                before = known.get(run.group_id, ())
                assert run.block_ids[: len(before)] == before
                known[run.group_id] = run.block_ids

    def test_abort_leaves_its_blocks_to_whoever_leases_them(self, engine: Engine) -> None:
        lent = sequence_of(request_of(prompt_of(100)), is_lent=True)
        engine.allocate(lent, 100)
        engine.add(lent)
        engine.step()
        engine.abort("r", 0)
        assert not engine.wait_for_work(0)
        assert engine.pool.num_held_blocks > 0
        engine.release(lent)
        assert is_empty(engine)


class TestBlocks:
    def test_allocation_is_all_or_nothing(self, make_engine: MakeEngine) -> None:
        block_bytes = make_engine().storage.block_bytes
        engine = make_engine(kv_cache_bytes=15 * block_bytes)
        first, second = (sequence_of(request_of(prompt_of(90))) for _ in range(2))
        assert engine.allocate(first, 90)
        num_available = engine.pool.num_available_blocks
        assert num_available > 0
        assert not engine.allocate(second, 90)
        assert not engine.reserve(second, 10)
        assert engine.pool.num_available_blocks == num_available
        engine.release(first)
        assert is_empty(engine)

    def test_a_refused_offer_is_made_again(self, engine: Engine) -> None:
        lent = sequence_of(request_of(prompt_of(50)), is_lent=True)
        assert engine.allocate(lent, 50)
        engine.release(lent)
        assert is_empty(engine)
        assert engine.allocate(lent, 50)
        engine.add(lent)
        assert last_output(engine).token_ids
        engine.release(lent)
        assert is_empty(engine)

    def test_a_reservation_has_room_for_its_margin(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        taken = sequence_of(request_of(prompt_of(100), sampling_params(max_tokens=40)))
        assert engine.reserve(taken, 40)
        num_available = engine.pool.num_available_blocks
        taken.arrive(5)
        engine.add(taken)
        while engine.wait_for_work(0):
            engine.step()
            assert engine.pool.num_available_blocks >= num_available
        assert is_empty(engine)

    def test_a_reservation_takes_no_blocks_for_what_is_here_already(self, engine: Engine) -> None:
        generate(engine, [request_of(prompt_of(70), sampling_params(max_tokens=2))])
        first, again = (sequence_of(request_of(prompt_of(70) + tail)) for tail in ([1], [2]))
        assert engine.reserve(first, 10)
        num_held = engine.pool.num_held_blocks
        sliding, full = first.block_tables
        assert (full.first_block, full.num_shared, len(full.block_ids)) == (0, 4, 5)
        # Of position 71 the window begins in block 3, at position 48.
        assert (sliding.first_block, sliding.num_shared, len(sliding.block_ids)) == (3, 1, 2)
        assert engine.reserve(again, 10)
        assert engine.pool.num_held_blocks == 2 * num_held - 4 - 1
        engine.release(first)
        engine.quarantine(again)
        assert engine.pool.num_held_blocks == 0
        engine.end_quarantine(again)
        assert is_empty(engine)

    def test_what_fits_an_empty_pool_is_reserved_in_a_full_cache(
        self, make_engine: MakeEngine
    ) -> None:
        block_bytes = make_engine().storage.block_bytes
        engine = make_engine(kv_cache_bytes=12 * block_bytes)
        for length in range(20, engine.max_sequence_tokens - 30, 7):
            generate(engine, [request_of(prompt_of(length), sampling_params(max_tokens=2))])
            taken = sequence_of(request_of(prompt_of(length)))
            assert engine.reserve(taken, 30)
            engine.release(taken)
            assert is_empty(engine)

    def test_long_outputs_free_what_left_the_window(self, engine: Engine) -> None:
        sequence = sequence_of(request_of(prompt_of(5), sampling_params(max_tokens=150)))
        engine.add(sequence)
        most = 0
        while engine.wait_for_work(0):
            engine.step()
            most = max(most, engine.pool.num_held_blocks)
        # ceil(154 / 16) in the full group, three at most in the sliding one.
        assert most <= 10 + 3

    def test_a_lent_prompt_that_fills_its_worker_does_not_end_the_request(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine(max_model_len=40)
        lent = sequence_of(request_of(prompt_of(40)), is_lent=True)
        assert engine.allocate(lent, 40)
        engine.add(lent)
        output = last_output(engine)
        assert len(output.token_ids) == 1
        assert output.finish_reason is None

    def test_quarantined_blocks_wait_for_the_last_read(self, engine: Engine) -> None:
        taken = sequence_of(request_of(prompt_of(100)))
        engine.reserve(taken, 10)
        num_held = engine.pool.num_held_blocks
        engine.quarantine(taken)
        assert taken.is_quarantined
        assert engine.pool.num_quarantined_blocks == num_held
        engine.end_quarantine(taken)
        assert is_empty(engine)


class TestWhileAStepRuns:
    def test_an_aborted_sequence_keeps_its_blocks_until_the_step_is_over(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.add(sequence_of(request_of(prompt_of(60))))
        held = []

        def abort() -> None:
            engine.abort("r", 0)
            held.append(engine.pool.num_held_blocks)

        during_step(engine, abort, monkeypatch)
        assert held[0] > 0
        assert is_empty(engine)
        assert not engine.wait_for_work(0)

    def test_a_released_lease_too(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        lent = sequence_of(request_of(prompt_of(60)), is_lent=True)
        engine.allocate(lent, 60)
        engine.add(lent)

        def end_lease() -> None:
            engine.abort("r", 0)
            engine.release(lent)
            assert engine.pool.num_held_blocks > 0

        during_step(engine, end_lease, monkeypatch)
        assert is_empty(engine)

    def test_a_quarantine_begins_after_it(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sequence = sequence_of(request_of(prompt_of(60)))
        engine.add(sequence)
        during_step(engine, lambda: engine.quarantine(sequence), monkeypatch)
        assert engine.pool.num_quarantined_blocks > 0
        engine.end_quarantine(sequence)
        assert is_empty(engine)

    def test_others_may_come_and_reserve(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = generate(engine, [request_of(prompt_of(60))])
        first, second = sequence_of(request_of(prompt_of(60))), sequence_of(request_of([4, 5]))
        taken = sequence_of(request_of(prompt_of(70)))
        engine.add(first)

        def come() -> None:
            assert engine.reserve(taken, 5)
            engine.add(second)

        during_step(engine, come, monkeypatch)
        engine.release(taken)
        run_until_idle(engine)
        assert [first.output_token_ids] == alone
        assert len(second.output_token_ids) == 20

    def test_a_failed_step_does_not_lose_what_others_asked_for(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.add(sequence_of(request_of(prompt_of(60))))

        def fail(batch: Batch, *args: object) -> torch.Tensor:
            engine.abort("r", 0)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._launcher.runner, "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
        assert is_empty(engine)


class TestNotANumber:
    BAD_TOKEN = 3

    @pytest.fixture
    def poisoned(self, model_path: Path) -> Engine:
        loaded = load_model(model_path, dtype="float32", device="cpu")
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[self.BAD_TOKEN] = float("nan")
        return Engine(loaded, engine_config())

    def test_the_request_fails_and_others_do_not(self, poisoned: Engine) -> None:
        alone = generate(poisoned, [request_of(prompt_of(50)[4:])])
        good = sequence_of(request_of(prompt_of(50)[4:], request_id="good"))
        bad = sequence_of(request_of([9, self.BAD_TOKEN, 9], request_id="bad"))
        poisoned.add(bad)
        poisoned.add(good)
        outputs = [each for step in run_until_idle(poisoned) for each in step.sequences]
        errors = {each.sequence.request_id: each.error for each in outputs if each.error}
        assert list(errors) == ["bad"]
        assert "not a number" in errors["bad"]
        assert bad.output_token_ids == []
        assert [good.output_token_ids] == alone

    def test_later_owners_of_its_blocks_are_not_poisoned(self, poisoned: Engine) -> None:
        requests = [request_of(prompt_of(n)[4:]) for n in (20, 70)]
        clean = [generate(poisoned, [request])[0] for request in requests]
        for num_blocks_deep in (1, 3):
            bad_prompt = [self.BAD_TOKEN] * (BLOCK_SIZE * num_blocks_deep)
            poisoned.add(sequence_of(request_of(bad_prompt)))
            run_until_idle(poisoned)
            assert [generate(poisoned, [request])[0] for request in requests] == clean


class TestWaiting:
    def test_no_work_is_a_timeout(self, engine: Engine) -> None:
        assert not engine.wait_for_work(0.01)
        assert engine.step().sequences == ()

    def test_wake_ends_the_wait_once(self, engine: Engine) -> None:
        engine.wake()
        assert engine.wait_for_work(10)
        assert not engine.wait_for_work(0)

    @pytest.mark.parametrize("event", ["add", "release"])
    def test_work_that_comes_ends_the_wait(self, make_engine: MakeEngine, event: str) -> None:
        block_bytes = make_engine().storage.block_bytes
        engine = make_engine(kv_cache_bytes=12 * block_bytes)
        holder = sequence_of(request_of(prompt_of(90)))
        sequence = sequence_of(request_of(prompt_of(90), request_id="s"))
        if event == "release":
            assert engine.allocate(holder, 90)
            engine.add(sequence)
            assert not engine.wait_for_work(0), "it waits for blocks"
        has_work = []
        thread = threading.Thread(target=lambda: has_work.append(engine.wait_for_work(30)))
        thread.start()
        engine.add(sequence) if event == "add" else engine.release(holder)
        thread.join(timeout=30)
        assert has_work == [True]

    def test_newcomers_do_not_take_blocks_that_others_wait_for(
        self, make_engine: MakeEngine
    ) -> None:
        block_bytes = make_engine().storage.block_bytes
        engine = make_engine(kv_cache_bytes=14 * block_bytes)
        holder = sequence_of(request_of(prompt_of(100)))
        engine.allocate(holder, 60)
        engine.add(sequence_of(request_of(prompt_of(100), request_id="waits")))
        assert not engine.reserve(sequence_of(request_of(prompt_of(10))), 1)
        engine.release(holder)
        assert engine.reserve(sequence_of(request_of(prompt_of(10))), 1)


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"max_tokens_per_step": 4, "max_batch_size": 8}, "max_tokens_per_step: 4"),
            ({"max_model_len": 100_000}, "max_model_len: 100000 .* up to 1024"),
            ({"kv_cache_bytes": 5000}, "kv_cache_bytes: 5000 holds 0 blocks"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, loaded: LoadedModel, limits: dict[str, int], message: str
    ) -> None:
        config: EngineConfig = engine_config(**limits)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=message):
            Engine(loaded, config)

    def test_a_sequence_of_the_longest_length_runs_in_an_empty_pool(
        self, make_engine: MakeEngine
    ) -> None:
        block_bytes = make_engine().storage.block_bytes
        engine = make_engine(kv_cache_bytes=15 * block_bytes)
        longest = engine.max_sequence_tokens
        assert 100 < longest < 15 * BLOCK_SIZE
        prompt = prompt_of(longest - 20)
        (tokens,) = generate(engine, [request_of(prompt, sampling_params(max_tokens=20))])
        assert len(tokens) == 20
