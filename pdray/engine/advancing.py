"""What a step means for one of its sequences: the token that it got, and whether it has ended."""

from __future__ import annotations

from pdray.engine.ending import Ending, error_of
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sampling.sampled import SampledToken
from pdray.engine.scheduler import ScheduledChunk, Scheduler


def advance(
    scheduler: Scheduler, ending: Ending, chunk: ScheduledChunk, token: SampledToken | None
) -> SequenceOutput:
    """One that has ended, or was lent and has its first token, is in no queue any more; its blocks
    stay with it."""
    seq = chunk.sequence
    scheduler.advance(chunk)
    num_computed_tokens = seq.num_computed_tokens
    new_ids: tuple[int, ...] = ()
    finish_reason = logprobs = prompt_logprobs = None
    error = error_of(seq, token)
    if error is not None:
        scheduler.forget(seq)
    if token is not None and error is None:
        assert token.token_id is not None
        seq.output_token_ids.append(token.token_id)
        new_ids = (token.token_id,)
        prompt_logprobs = seq.take_prompt_logprobs()
        logprobs = None if token.logprobs is None else (token.logprobs,)
        finish_reason = ending.finish_reason(seq, token.token_id)
    if error or finish_reason or (seq.is_lent and new_ids):
        scheduler.remove(seq)
    return SequenceOutput(
        sequence=seq,
        index=len(seq.output_token_ids) - len(new_ids),
        token_ids=new_ids,
        finish_reason=finish_reason,
        num_computed_tokens=num_computed_tokens,
        error=error,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
