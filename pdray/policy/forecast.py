"""What a placement would mean, in seconds: for its own request, and for those that run already.

Everything is foretold from the workers' fitted step times (`core/step_time.py`); nothing here
knows which worker is which.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.placement import PlacementAsk
from pdray.core.snapshot import WorkerView
from pdray.core.step_time import StepTime

UNMEASURED = StepTime(
    base_s=0.01, prefill_token_s=1e-4, prefill_pair_s=0.0, decode_s=1e-3, context_token_s=1e-7
)
"""A worker that has made no step yet: among its like it is as good as any other."""
MAX_FORETOLD_OUTPUT_TOKENS = 256
"""Nobody knows how long an answer will be; ``max_tokens`` is often the model's limit."""
_MIN_PREFILL_SHARE = 0.05
"""Of a step beside decodes, however full it is: its floor."""
_MAX_LOAD = 0.9


@dataclass(slots=True)
class PrefillForecast:
    """``others_s`` is what it takes from the decodes that run on the same worker, all together.
    Like all that is made of every worker for every decision it is not frozen, only because that
    would take four times as long to make."""

    queue_s: float
    compute_s: float
    others_s: float

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.compute_s

    @property
    def cost_s(self) -> float:
        return self.queue_s + self.compute_s + self.others_s


@dataclass(slots=True)
class DecodeForecast:
    """``step_s``: of those who run already, alone; ``itl_s`` with this one. ``wait_s``: until it
    has a seat and blocks. ``decode_s``: for all of its tokens. ``others_s``: what a longer step
    takes from all others of the batch, for as long."""

    step_s: float
    itl_s: float
    wait_s: float
    decode_s: float
    others_s: float

    @property
    def cost_s(self) -> float:
        return self.wait_s + self.decode_s + self.others_s


def step_time_of(worker: WorkerView, stand_in: StepTime = UNMEASURED) -> StepTime:
    """What is known of it; for a phase that it has not run yet, what ``stand_in`` says."""
    own = worker.step_time
    if own is None:
        return stand_in
    if own.prefill_token_s > 0.0 and own.decode_s + own.context_token_s > 0.0:
        return own
    has_prefilled = own.prefill_token_s > 0.0
    return StepTime(
        base_s=own.base_s,
        prefill_token_s=own.prefill_token_s if has_prefilled else stand_in.prefill_token_s,
        prefill_pair_s=own.prefill_pair_s if has_prefilled else stand_in.prefill_pair_s,
        decode_s=stand_in.decode_s if has_prefilled else own.decode_s,
        context_token_s=stand_in.context_token_s if has_prefilled else own.context_token_s,
        prefill_base_s=own.prefill_base_s,
    )


def queued_prompts_s(worker: WorkerView) -> float:
    """What its prompts that wait would take it."""
    return worker.prefill_backlog_tokens * step_time_of(worker).prefill_token_s


def forecast_prefill(
    worker: WorkerView, ask: PlacementAsk, num_cached_tokens: int, step_time: StepTime, itl_s: float
) -> PrefillForecast:
    """Beside decodes, prompts get what these leave of a step as long as ``itl_s``. Not all of the
    prompt is cached."""
    base_s = step_time.base_s + step_time.prefill_base_s
    max_chunk = worker.info.max_tokens_per_step
    backlog = worker.prefill_backlog_tokens
    queue_s = backlog * step_time.prefill_token_s - (-backlog // max_chunk) * base_s
    num_uncached = ask.num_prompt_tokens - num_cached_tokens
    compute_s = step_time.chunk_s(num_cached_tokens, num_uncached)
    compute_s -= (-num_uncached // max_chunk) * base_s
    num_decodes = worker.num_decoding
    if num_decodes == 0:
        return PrefillForecast(queue_s, compute_s, 0.0)
    step_s = step_time.decodes_s(num_decodes, worker.num_decoding_tokens)
    share = max(1.0 - step_s / itl_s, _MIN_PREFILL_SHARE)
    return PrefillForecast(queue_s / share, compute_s / share, num_decodes * compute_s)


def forecast_decode(
    worker: WorkerView, ask: PlacementAsk, step_time: StepTime, prompt_load: float
) -> DecodeForecast:
    """``prompt_load``: what prompts take of the worker's time."""
    num_others, num_others_tokens = worker.num_decoding, worker.num_decoding_tokens
    num_tokens = min(ask.max_tokens, MAX_FORETOLD_OUTPUT_TOKENS)
    num_own_tokens = ask.num_prompt_tokens + num_tokens // 2
    step_s = step_time.decodes_s(num_others, num_others_tokens)
    longer_s = step_time.decode_s + step_time.context_token_s * num_own_tokens
    itl_s = step_s + longer_s
    decode_s = num_tokens * itl_s / (1.0 - min(prompt_load, _MAX_LOAD))
    others_s = num_others * num_tokens * longer_s
    num_seats = worker.info.max_batch_size
    if num_others < num_seats and worker.kv_utilization < 1.0:
        return DecodeForecast(step_s, itl_s, 0.0, decode_s, others_s)
    # One in, one out: those who run leave in the time that one of them takes.
    num_before = max(num_others + 1 - num_seats, 0) + (worker.kv_utilization >= 1.0)
    return DecodeForecast(step_s, itl_s, num_before / num_seats * decode_s, decode_s, others_s)


def fits_in_a_step(
    decode: DecodeForecast,
    num_prompt_tokens: int,
    num_cached_tokens: int,
    step_time: StepTime,
    itl_s: float,
) -> bool:
    """Whether the rest of a prompt can be computed in one step beside all that decodes on this
    worker, within the time that a step may take."""
    num_uncached = num_prompt_tokens - num_cached_tokens
    chunk_s = step_time.prefill_base_s + step_time.chunk_s(num_cached_tokens, num_uncached)
    return decode.step_s + chunk_s <= itl_s
