"""The engine's record of one attempt of a request: its tokens, its blocks and how far it is."""

from __future__ import annotations

import enum
import itertools
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
               ^         v
               +---- PAUSED     out of the batch with its blocks, until somebody resumes it
    """

    NEW = "new"
    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(slots=True)
class BlockTable:
    """Logical blocks ``first_block``, ``first_block + 1``, ... of one KV group. The first
    ``num_shared`` were found in the prefix cache: others may hold them too. A block before
    ``first_whole_block`` lacks tokens that lie before the window, and gets no name."""

    first_block: int = 0
    block_ids: list[int] = field(default_factory=list)
    num_shared: int = 0
    first_whole_block: int = 0

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.block_ids)

    @property
    def first_own_block(self) -> int:
        return self.first_block + self.num_shared

    @property
    def num_own_blocks(self) -> int:
        return len(self.block_ids) - self.num_shared

    def drop_before(self, first_block: int) -> tuple[list[int], list[int]]:
        """Takes out the blocks before ``first_block``: the shared ones, and its own."""
        dropped = self.block_ids[: max(0, first_block - self.first_block)]
        num_shared = min(self.num_shared, len(dropped))
        del self.block_ids[: len(dropped)]
        self.first_block = max(self.first_block, first_block)
        self.num_shared -= num_shared
        return dropped[:num_shared], dropped[num_shared:]


@dataclass(slots=True, weakref_slot=True, eq=False, kw_only=True)
class Sequence:
    """One attempt's state. Only the scheduler, under the engine's lock, changes it.

    ``stock`` are blocks that it holds already and has not put into a table yet;
    ``allocated_tokens`` is how many tokens' KV its tables and stock are good for, so that it
    gets that far without asking the pool. A lent sequence is a prompt computed for another
    worker: it ends with its first token, and keeps its blocks until somebody releases them.

    ``prefix_hashes`` has one for every 16 tokens, as far as they are computed. Of the prompt,
    ``num_cached_tokens`` had their KV here already: None until its first chunk is scheduled.
    Where its last token alone was left, ``copy_sources`` are the full blocks with that token,
    one of each group, which it must copy before it writes. Others' prompts were the same as
    this one up to ``fork_tokens``, if that is not 0, and some of the KV up to there was gone.
    """

    request: Request
    attempt: int
    is_lent: bool
    output_token_ids: list[int]
    block_tables: list[BlockTable] = field(default_factory=list)
    stock: list[int] = field(default_factory=list)
    copy_sources: tuple[int, ...] = ()
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    allocated_tokens: int = 0
    fork_tokens: int = 0
    prefix_hashes: list[bytes] = field(default_factory=list)
    is_cacheable: bool = True
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

    @property
    def is_under_way(self) -> bool:
        """It decodes in the batch, and has made a token in this attempt."""
        has_token = len(self.output_token_ids) > len(self.request.output_token_ids)
        is_running = self.state is SequenceState.RUNNING and not self.is_lent
        return is_running and has_token and self.is_decoding

    def token_ids(self, start: int, end: int) -> tuple[int, ...]:
        """Known tokens at positions [start, end)."""
        prompt = self.request.prompt_token_ids
        if end <= len(prompt):
            return prompt[start:end]
        outputs = self.output_token_ids[max(0, start - len(prompt)) : end - len(prompt)]
        return prompt[start:end] + tuple(outputs)

    @property
    def block_ids(self) -> list[int]:
        """All that it holds; of each group's the last comes first."""
        tables = (reversed(table.block_ids) for table in self.block_tables)
        return [*itertools.chain.from_iterable(tables), *self.copy_sources, *self.stock]

    @property
    def num_held_blocks(self) -> int:
        num_in_tables = sum(len(table.block_ids) for table in self.block_tables)
        return num_in_tables + len(self.copy_sources) + len(self.stock)

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
        self.block_tables, self.stock, self.copy_sources = [], [], ()
        self.allocated_tokens = self.num_computed_tokens = self.fork_tokens = 0

    def arrive(self, *token_ids: int) -> None:
        """Its KV was pulled, and these are the tokens that the other worker sampled; the last one's
        KV is still to be computed."""
        assert self.num_computed_tokens == 0, f"{self.request_id} has computed tokens already"
        assert token_ids, f"{self.request_id} arrives without a next token"
        self.output_token_ids += token_ids
        self.num_computed_tokens = self.num_tokens - 1
        self.num_cached_tokens = 0

    @property
    def has_arrived(self) -> bool:
        """Its KV was computed elsewhere, and nothing of it is computed here yet."""
        return self.state is SequenceState.NEW and self.num_cached_tokens is not None
