"""The engine: sequences in, tokens out, one step at a time.

One thread calls ``step`` and ``wait_for_work``; every other method may be called from any
thread at any time, and returns within a millisecond: the lock is never held during a forward
pass. Blocks of a sequence that a launched step computes change hands only after that step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pdray.core.errors import InvalidRequestError
from pdray.core.step_time import StepTime
from pdray.core.step_time_fit import StepTimeFit
from pdray.engine.advancing import advance
from pdray.engine.config import EngineConfig
from pdray.engine.cuda_graphs import Recorder, recorder_for
from pdray.engine.ending import Ending
from pdray.engine.grammar import Grammars
from pdray.engine.holds import Holds
from pdray.engine.launcher import LaunchedStep, Launcher
from pdray.engine.limits import check_limits, longest_sequence
from pdray.engine.loading import load_parts
from pdray.engine.model import LoadedModel
from pdray.engine.outputs import SequenceOutput, StepOutput
from pdray.engine.pausing import Pausing
from pdray.engine.prefix_cache import PrefixCache
from pdray.engine.prefix_fill import PrefixFills
from pdray.engine.published_blocks import PublishedBlocks
from pdray.engine.run_ahead import RunAhead, gains_by_running_ahead
from pdray.engine.runner import make_layout, make_runner
from pdray.engine.sampling.sampled import SampledToken
from pdray.engine.sampling.sampler import Sampler
from pdray.engine.scheduler import ScheduledChunk, Scheduler, StepPlan
from pdray.engine.seats import Seats
from pdray.engine.sequence import Sequence, SequenceState
from pdray.engine.sequence_blocks import SequenceBlocks, TurnEnd
from pdray.engine.shared_prefixes import SharedPrefixes
from pdray.engine.step_budget import StepBudget
from pdray.engine.tensor_parallel.ranks import LeadRunner, Ranks
from pdray.engine.told_prefixes import ToldPrefixes
from pdray.kvcache.block_pool import BlockPool, NextTier


class Engine:
    """A model with its KV cache and its batch."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        ranks: Ranks | None = None,
        recorder: Recorder | None = None,
        runs_ahead: bool = False,
    ) -> None:
        """``ranks`` are the engine's to close from here on, unless this raises. With a recorder,
        steps of decodes alone are recorded, which is slow, and repeated from then on. One that
        ``runs_ahead`` launches steps before it reads the last one's tokens (run_ahead.py): not
        with ranks, who get theirs from the host."""
        assert ranks is None or not runs_ahead, "ranks cannot run ahead"
        check_limits(loaded, config)
        self.config = config
        self.layout = make_layout(loaded, config)
        self.pool = BlockPool(config.kv_cache_bytes // self.layout.block_bytes)
        self.max_sequence_tokens = longest_sequence(self.layout, self.pool.num_blocks, config)
        self._ending = Ending(
            eos_token_ids=loaded.eos_token_ids, max_sequence_tokens=self.max_sequence_tokens
        )
        runner = make_runner(loaded, config, self.layout)
        if recorder is not None:
            runner.record_decodes(
                recorder,
                max_batch_size=config.max_batch_size,
                max_sequence_tokens=self.max_sequence_tokens,
            )
        self.storage = runner.storage
        self.ranks = ranks
        self._launcher = Launcher(
            runner if ranks is None else LeadRunner(runner, ranks),
            Sampler(loaded.eos_token_ids, config.device),
            self.layout,
        )
        self.prefix_cache = PrefixCache(
            groups=self.layout.groups,
            block_size=config.block_size,
            pool=self.pool,
            model_digest=loaded.digest,
        )
        self._changed = threading.Condition()
        self.holds = Holds(self.pool, self._changed)
        self._blocks = SequenceBlocks(
            groups=self.layout.groups,
            block_size=config.block_size,
            pool=self.pool,
            prefix_cache=self.prefix_cache,
            max_chunk=config.max_tokens_per_step,
        )
        self.records_decodes = recorder is not None
        self._fit = StepTimeFit(records_decodes=self.records_decodes)
        budget = StepBudget(
            self._fit,
            max_tokens_per_step=config.max_tokens_per_step,
            max_batch_size=config.max_batch_size,
            itl_s=config.itl_s,
        )
        seats = Seats(budget, max_wait_s=config.max_seat_wait_s, clock=time.monotonic)
        self._scheduler = Scheduler(self._blocks, budget, seats)
        self.published = PublishedBlocks(self._blocks, self.holds, self._changed)
        self.pausing = Pausing(self._scheduler, self._changed)
        self.prefix_fills = PrefixFills(
            groups=self.layout.groups,
            block_size=config.block_size,
            pool=self.pool,
            holds=self.holds,
            is_pool_promised=lambda: self._scheduler.is_pool_promised,
            lock=self._changed,
        )
        self.shared_prefixes = SharedPrefixes(
            groups=self.layout.groups,
            block_size=config.block_size,
            pool=self.pool,
            holds=self.holds,
            lock=self._changed,
        )
        self.told_prefixes = ToldPrefixes(self.layout.groups, self.pool, self._changed)
        self._run_ahead: RunAhead | None = None
        if runs_ahead:
            self._run_ahead = RunAhead(
                self._scheduler, self._launcher, self._ending, lock=self._changed
            )
        self._ahead: LaunchedStep | None = None
        self._read_at = 0.0
        self._is_woken = False
        self._grammars = Grammars(loaded.path, loaded.eos_token_ids)
        self._in_step: frozenset[Sequence] = frozenset()
        self._after_step: list[tuple[Sequence, Callable[[Sequence], None]]] = []
        if ranks is not None:
            ranks.begin(self.layout.describe(), on_failure=self.wake)

    @classmethod
    def load(cls, model_path: Path, config: EngineConfig) -> Engine:
        """Slow. Raises UnsupportedModelError, ConfigError for limits that cannot be, and
        RankLostError."""
        return cls.of(*load_parts(model_path, config), config)

    @classmethod
    def of(cls, loaded: LoadedModel, ranks: Ranks | None, config: EngineConfig) -> Engine:
        """As is best on its device, and warmed up. The ``ranks`` are its own, also where this
        raises: ConfigError for limits that cannot be, and RankLostError."""
        recorder = None if ranks else recorder_for(config.device)
        runs_ahead = ranks is None and gains_by_running_ahead(config.device)
        try:
            engine = cls(loaded, config, ranks, recorder, runs_ahead)
            engine._launcher.warm_up(engine.storage.scratch_block_id)
        except BaseException:
            if ranks is not None:
                ranks.close()
            raise
        return engine

    def use_tiers(self, next_tier: NextTier, on_turn_end: TurnEnd) -> None:
        """Evicted blocks go to ``next_tier``; ``on_turn_end`` is called with the lock held."""
        with self._changed:
            self.pool.next_tier, self._blocks.on_turn_end = next_tier, on_turn_end

    def close(self) -> None:
        """Ends what runs beside this process; no step may follow. May be called twice."""
        if self.ranks is not None:
            self.ranks.close()

    # What others read

    @property
    def num_waiting(self) -> int:
        with self._changed:
            return self._scheduler.num_waiting + len(self._grammars.preparing)

    @property
    def num_running(self) -> int:
        with self._changed:
            return self._scheduler.num_running

    @property
    def prefill_backlog_tokens(self) -> int:
        with self._changed:
            return self._scheduler.prefill_backlog_tokens + self._grammars.preparing_tokens

    def has_room(self, num_taken: int) -> bool:
        """For one more to decode here, beside ``num_taken`` who do, or will (seats.py)."""
        with self._changed:
            return self._scheduler.has_room(num_taken)

    @property
    def step_time(self) -> StepTime | None:
        """How long steps take here; None until some have been measured."""
        return self._fit.step_time

    @property
    def num_unaccounted_blocks(self) -> int:
        """Those held by nobody that is known here: 0, or somebody has forgotten to give back."""
        with self._changed:
            return self.pool.num_references - self.holds.num_references

    # Blocks and queues, from any thread

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Takes all blocks that ``seq`` needs to compute ``num_tokens`` here, or none. What the
        prefix cache has of it counts as computed then."""
        self._grammars.expect(seq)
        self.prefix_cache.hash(seq)
        with self._changed:
            self.holds.watch(seq)
            return self._scheduler.allocate(seq, num_tokens)

    def reserve(
        self, seq: Sequence, num_margin_tokens: int, *, may_arrive_longer: bool = False
    ) -> bool:
        """Takes blocks for KV that will be pulled, and for ``num_margin_tokens`` after it, or
        none; those may be pulled too of one that ``may_arrive_longer``. The shared ones of its
        tables are here already, and must not be written. Once the rest is there:
        ``seq.arrive(tokens)`` and ``add(seq)``."""
        self._grammars.expect(seq)
        self.prefix_cache.hash(seq)
        with self._changed:
            self.holds.watch(seq)
            return self._scheduler.reserve(seq, num_margin_tokens, may_arrive_longer)

    def add(self, seq: Sequence) -> None:
        """Raises InvalidRequestError for one that could never fit. One with a grammar joins the
        queue when that is compiled."""
        if seq.num_tokens > self.max_sequence_tokens:
            raise InvalidRequestError(
                f"{seq.num_tokens} tokens do not fit; accepted: up to {self.max_sequence_tokens}"
            )
        self.prefix_cache.hash(seq)
        with self._changed:
            if seq.request.sampling.grammar is None:
                self._enter(seq)
            else:
                self._grammars.prepare(seq, self._enter_prepared)

    def _enter(self, seq: Sequence) -> None:
        self.holds.watch(seq)
        self._scheduler.add(seq)
        self._changed.notify_all()

    def _enter_prepared(self, seq: Sequence) -> None:
        with self._changed:
            if self._grammars.leave(seq):
                self._enter(seq)

    def _remove(self, seq: Sequence) -> None:
        self._grammars.leave(seq)
        self._scheduler.remove(seq)
        self._changed.notify_all()

    def abort(self, request_id: str, attempt: int) -> None:
        """Ends a sequence; unknown ones are ignored. A lent one keeps its blocks until released."""
        with self._changed:
            key = (request_id, attempt)
            seq = self._grammars.find(*key) or self._scheduler.find(*key)
            if seq is None:
                return
            self._remove(seq)
            if not seq.is_lent:
                self._when_not_in_step(seq, self._scheduler.release)

    def find_decode(self, request_id: str, attempt: int) -> Sequence | None:
        """One that runs, and whose newest token was made in this attempt."""
        with self._changed:
            seq = self._scheduler.find(request_id, attempt)
            return seq if seq is not None and seq.is_under_way else None

    def release(self, seq: Sequence) -> None:
        """Gives all its blocks back; a sequence in a queue ends, one that was never added may
        allocate or reserve again. A second call does nothing."""
        with self._changed:
            assert not seq.is_quarantined, f"{seq.request_id} is in quarantine"
            self._remove(seq)
            self._when_not_in_step(seq, self._scheduler.release)

    def quarantine(self, seq: Sequence) -> None:
        """As release, but nobody gets its blocks before ``end_quarantine``."""
        with self._changed:
            assert not seq.is_quarantined, f"{seq.request_id} is in quarantine already"
            seq.is_quarantined = True
            self._remove(seq)
            self._when_not_in_step(seq, lambda each: self.pool.quarantine(each.block_ids))

    def end_quarantine(self, seq: Sequence) -> None:
        with self._changed:
            assert seq.is_quarantined, f"{seq.request_id} is not in quarantine"
            self._when_not_in_step(seq, self._end_quarantine)

    def _end_quarantine(self, seq: Sequence) -> None:
        self.pool.end_quarantine(seq.block_ids)
        seq.drop_blocks()
        seq.is_quarantined = False

    def _when_not_in_step(self, seq: Sequence, action: Callable[[Sequence], None]) -> None:
        """Now, or when the steps that compute it are over. Blocks may be free after it."""
        if seq in self._in_step:
            self._after_step.append((seq, action))
        else:
            action(seq)
            self._changed.notify_all()

    # The engine's own thread

    def wait_for_work(self, timeout_s: float | None) -> bool:
        """Blocks until a step has something to do or ``wake`` was called; False on a timeout. Who
        waited for the last step to pause a sequence hears of it here: its tokens are told."""
        with self._changed:
            self.pausing.end_step()
            is_due = self._changed.wait_for(
                lambda: self._is_woken or self._ahead is not None or self._scheduler.has_work,
                timeout_s,
            )
            self._is_woken = False
            return is_due

    def wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def step(self) -> StepOutput:
        """Schedules, runs, samples; where the call before has launched a step ahead already, it
        is that one that is ended here, and told of. With nothing to do it returns an empty output
        at once. Raises RankLostError, after which there can be no other step."""
        # One launched ahead has run since the one before it was over.
        started = time.perf_counter() if self._ahead is None else self._read_at
        self._check_ranks()
        step, self._ahead = self._ahead, None
        tokens: dict[Sequence, SampledToken] = {}
        try:
            plan = self._schedule(step)
            if plan.chunks:
                step = step or self._launcher.launch(plan)
                ahead = None if self._run_ahead is None else self._run_ahead.launch_after(step)
                tokens = step.read()
                self._read_at = time.perf_counter()
                self._check_ranks()  # on a GPU, sums without a rank end too, and are of nothing
                self._ahead = ahead
        finally:
            with self._changed:
                self._end_step()
        outputs = self._postprocess(plan, tokens)
        step_s = time.perf_counter() - started
        foretold_s = self._fit.add(plan.work, step_s) if plan.chunks else None
        return StepOutput(
            sequences=outputs,
            num_prefill_tokens=plan.num_tokens - plan.num_decodes,
            num_decode_tokens=plan.num_decodes,
            num_preemptions=plan.num_preemptions,
            step_s=step_s,
            foretold_s=foretold_s,
        )

    def _schedule(self, ahead: LaunchedStep | None) -> StepPlan:
        with self._changed:
            self.pausing.end_step()
            plan = self._scheduler.schedule() if ahead is None else ahead.plan
            self._in_step = frozenset(chunk.sequence for chunk in plan.chunks)
            self.pausing.begin_step(self._in_step)
            return plan

    def _check_ranks(self) -> None:
        if self.ranks is not None:
            self.ranks.check()

    def _end_step(self) -> None:
        self._in_step = frozenset() if self._ahead is None else self._ahead.sequences
        due, self._after_step = self._after_step, []
        for seq, action in due:
            self._when_not_in_step(seq, action)

    def _postprocess(
        self, plan: StepPlan, tokens: dict[Sequence, SampledToken]
    ) -> tuple[SequenceOutput, ...]:
        with self._changed:
            outputs = tuple(
                self._advance(chunk, tokens.get(chunk.sequence))
                for chunk in plan.chunks
                if chunk.sequence.state is SequenceState.RUNNING
            )
        self._grammars.advance(seq for seq in tokens if seq.state is SequenceState.RUNNING)
        return outputs

    def _advance(self, chunk: ScheduledChunk, token: SampledToken | None) -> SequenceOutput:
        output = advance(self._scheduler, self._ending, chunk, token)
        if output.has_ended and not chunk.sequence.is_lent:
            self._when_not_in_step(chunk.sequence, self._scheduler.release)
        return output
