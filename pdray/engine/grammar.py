"""Sequences that are held to a grammar: compiled beside the steps, masks made between them.

A matcher's state follows from the output tokens alone, so a sequence that begins here with some
(placed again, or handed over by another worker) replays them into a fresh one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pdray.core.errors import InvalidRequestError
from pdray.core.grammar import Grammar
from pdray.engine.sequence import Sequence
from pdray.grammar import compile_grammar, first_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

MAX_COMPILED = 256
NUM_COMPILERS = 2
"""A grammar that takes long holds up one of them, and no step."""

Mask = NDArray[np.int32]


@dataclass(slots=True, eq=False)
class GrammarState:
    """One sequence's place in its grammar, and which tokens may come next.

    ``mask`` has a bit for each token of the tokenizer, token 0 the lowest of the first word.
    With ``due`` unfinished both are another thread's. With ``error`` no token may come.
    """

    matcher: LLMatcher | None = None
    mask: Mask | None = None
    error: str | None = None
    due: Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Nothing but the end may come."""
        return self.matcher is not None and self.matcher.is_stopped()

    def wait(self) -> None:
        """Returns when the mask of the next token is there."""
        if self.due is not None:
            self.due.result()
            self.due = None


class Grammars:
    """The grammars of one engine, and the sequences that wait for theirs (``preparing``).

    For those who hold the engine's lock; ``advance`` for its own thread."""

    def __init__(self, model_path: Path, eos_token_ids: Collection[int]) -> None:
        self._model_path = model_path
        self._eos_token_ids = sorted(eos_token_ids)
        self.preparing: set[Sequence] = set()
        self._compiled_lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._tokenizer_lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, "pdray-grammar")
        self._masker = ThreadPoolExecutor(1, "pdray-masks")

    @property
    def preparing_tokens(self) -> int:
        """Those that are still to be computed here."""
        waiting = (seq for seq in self.preparing if not seq.is_decoding)
        return sum(seq.num_uncomputed_tokens for seq in waiting)

    def expect(self, seq: Sequence) -> None:
        """Its grammar is compiled while it waits for its turn, or its KV for their transfer. For
        any thread."""
        if seq.request.sampling.grammar is not None:
            self._compiling(seq.request.sampling.grammar)

    def prepare(self, seq: Sequence, then: Callable[[Sequence], None]) -> None:
        """Gives the sequence its state, and then calls ``then`` in a thread, without the lock.
        What went wrong is in the state's ``error``."""
        assert seq.request.sampling.grammar is not None
        self.preparing.add(seq)

        def begin(compiled: Future[LLMatcher]) -> None:
            self._compilers.submit(self._begin, seq, compiled, then)

        self._compiling(seq.request.sampling.grammar).add_done_callback(begin)

    def leave(self, seq: Sequence) -> bool:
        """It waits for its grammar no longer; False where it did not."""
        was_preparing = seq in self.preparing
        self.preparing.discard(seq)
        return was_preparing

    def find(self, request_id: str, attempt: int) -> Sequence | None:
        for seq in self.preparing:
            if (seq.request_id, seq.attempt) == (request_id, attempt):
                return seq
        return None

    def _compiling(self, grammar: Grammar) -> Future[LLMatcher]:
        with self._compiled_lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                compiled = self._compilers.submit(self._compile, grammar)
                self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return compiled

    def _begin(
        self, seq: Sequence, compiled: Future[LLMatcher], then: Callable[[Sequence], None]
    ) -> None:
        seq.grammar_state = state = GrammarState()
        try:
            state.matcher = compiled.result().deep_copy()
            state.matcher.consume_tokens(seq.output_token_ids)
            self._fill([state])
        except InvalidRequestError as error:
            state.error = f"the grammar is no good: {error}"
        except Exception:
            logger.exception("request_id=%s: its grammar could not begin", seq.request_id)
            state.error = "internal error: the worker's log has it"
        then(seq)

    def advance(self, sequences: Iterable[Sequence]) -> None:
        """Each has a new output token: the masks of their next ones are made while the next step
        computes. Those without a grammar are left alone."""
        moves = [
            (seq.grammar_state, seq.output_token_ids[-1])
            for seq in sequences
            if seq.grammar_state is not None and seq.grammar_state.error is None
        ]
        if moves:
            due = self._masker.submit(self._advance, moves)
            for state, _ in moves:
                state.due = due

    def _advance(self, moves: list[tuple[GrammarState, int]]) -> None:
        for state, token_id in moves:
            assert state.matcher is not None
            state.matcher.consume_token(token_id)
        self._fill([state for state, _ in moves])

    def _fill(self, states: list[GrammarState]) -> None:
        assert self._tokenizer is not None
        num_words = -(-self._tokenizer.vocab_size // 32)
        masks = np.zeros((len(states), num_words), np.int32)
        for state, mask in zip(states, masks, strict=True):
            assert state.matcher is not None
            state.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            state.mask = mask
            if state.matcher.is_error():
                state.error = f"the grammar cannot go on: {first_line(state.matcher.get_error())}"

    def _compile(self, grammar: Grammar) -> LLMatcher:
        return compile_grammar(grammar, self._load_tokenizer())

    def _load_tokenizer(self) -> LLTokenizer:
        """Takes seconds for a large vocabulary, some of them with the interpreter's lock held, so
        it is loaded for the first grammar and not for engines that see none."""
        from llguidance import LLTokenizer

        with self._tokenizer_lock:
            if self._tokenizer is None:
                path = self._model_path / "tokenizer.json"
                if not path.is_file():
                    raise InvalidRequestError(
                        f"the model's folder has no {path.name}, which grammars need"
                    )
                if not self._eos_token_ids:
                    raise InvalidRequestError(
                        "the model has no end-of-text token, so no answer under a grammar would end"
                    )
                logger.info("loading %s for the first grammar", path)
                self._tokenizer = LLTokenizer(str(path), eos_token=self._eos_token_ids)
            return self._tokenizer
