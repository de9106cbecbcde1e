"""The engine's record of one attempt of a request: its tokens, its blocks and how far it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import Request

if TYPE_CHECKING:
    from pdray.engine.grammar import GrammarState


class SequenceState(enum.StrEnum):
    """Where the scheduler has it.

    ::

        NEW -> WAITING -> RUNNING -> ENDED
         |        ^          |
         |        +----------+  preempted
         +-> READY -> RUNNING   it holds its blocks already, and needs a seat in the batch
    """

    NEW = "new"
    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True)
class BlockTable:
    """Logical blocks ``first_block``, ``first_block + 1``, ... of one KV group."""

    first_block: int = 0
    block_ids: list[int] = field(default_factory=list)

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.block_ids)


@dataclass(slots=True, weakref_slot=True, eq=False, kw_only=True)
class Sequence:
    """One attempt's state. Only the scheduler, under the engine's lock, changes it.

    ``stock`` are blocks that it holds already and has not put into a table yet;
    ``allocated_tokens`` is how many tokens' KV its tables and stock are good for, so that it
    gets that far without asking the pool. A lent sequence is a prompt computed for another
    worker: it ends with its first token, and keeps its blocks until somebody releases them.
    """

    request: Request
    attempt: int
    is_lent: bool
    output_token_ids: list[int]
    block_tables: list[BlockTable] = field(default_factory=list)
    stock: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    allocated_tokens: int = 0
    state: SequenceState = SequenceState.NEW
    age: int = 0
    is_quarantined: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as they are computed."""
    grammar_state: GrammarState | None = None

    @classmethod
    def from_request(cls, request: Request, attempt: int, *, is_lent: bool) -> Sequence:
        return cls(
            request=request,
            attempt=attempt,
            is_lent=is_lent,
            output_token_ids=list(request.output_token_ids),
        )

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_prefill_tokens(self) -> int:
        """Those known when it was placed: the prompt, and earlier attempts' output."""
        return len(self.request.prompt_token_ids) + len(self.request.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether a step over its prompt has to tell how likely the model found it."""
        return self.request.scores_prompt and not self.output_token_ids

    @property
    def is_decoding(self) -> bool:
        """One token a step from here on: all but the newest token have their KV."""
        return self.num_computed_tokens > 0 and self.num_uncomputed_tokens <= 1

    def token_ids(self, start: int, end: int) -> tuple[int, ...]:
        """Known tokens at positions [start, end)."""
        prompt = self.request.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        outputs = self.output_token_ids[max(0, start - len(prompt)) : end - len(prompt)]
        return prompt[start:end] + tuple(outputs)

    @property
    def block_ids(self) -> list[int]:
        """All that it holds, in tables and in stock."""
        return [
            block_id for table in self.block_tables for block_id in table.block_ids
        ] + self.stock

    def add_prompt_logprobs(self, start: int, scores: list[TokenLogprobs]) -> None:
        """Of the tokens after those at positions from ``start`` on, computed for the first time
        or again."""
        self.prompt_logprobs[start:] = scores

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """All of them, with the first output token; None for later ones, and if not wanted."""
        if not self.request.scores_prompt or len(self.output_token_ids) != 1:
            return None
        taken, self.prompt_logprobs = tuple(self.prompt_logprobs), []
        return taken

    def drop_blocks(self) -> None:
        """It holds none any more: they have got another owner."""
        self.block_tables, self.stock, self.allocated_tokens = [], [], 0

    def arrive(self, first_token_id: int) -> None:
        """Its KV was pulled, and this is the token that the other worker sampled."""
        assert self.num_computed_tokens == 0, f"{self.request_id} has computed tokens already"
        self.num_computed_tokens = self.num_tokens
        self.output_token_ids.append(first_token_id)
