"""What running sequences make, on its way to their frontends."""

from __future__ import annotations

from pdray.core.request import PhaseAges
from pdray.engine.engine import Engine
from pdray.engine.outputs import SequenceOutput
from pdray.worker.attempts import AttemptTable
from pdray.worker.outbox import Outbox


class Decoding:
    """The sequences that decode on one worker, wherever their prompts were computed."""

    def __init__(self, *, engine: Engine, outbox: Outbox, attempts: AttemptTable) -> None:
        self._engine = engine
        self._outbox = outbox
        self._attempts = attempts

    def on_step(self, output: SequenceOutput, ages: PhaseAges | None) -> None:
        sequence = output.sequence
        key = (sequence.request_id, sequence.attempt)
        if not self._attempts.is_live(*key):
            self._engine.abort(*key)  # a later attempt has taken its place
            return
        frontend_id = self._attempts.frontend_of(sequence.request_id)
        if output.error is not None:
            self._outbox.fail(frontend_id, *key, output.error, comes_again=True)
        elif output.token_ids:
            self._outbox.put(frontend_id, output, ages)
        if output.error is not None or output.finish_reason is not None:
            self._attempts.end(*key)

    def cancel(self, request_id: str, attempt: int) -> None:
        """Ends a running sequence within a step; unknown ones are ignored."""
        self._engine.abort(request_id, attempt)
