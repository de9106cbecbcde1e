"""Parked prompts between those who leave them, those who come for them, and the table of them."""

from __future__ import annotations

from collections.abc import Callable

from pdray.core.clock import Clock
from pdray.core.cluster_secret import ClusterSecret
from pdray.core.errors import ConfigError, HandleRefusedError, OverloadedError, PdrayError
from pdray.core.parked import LeaseKey
from pdray.core.request import WorkerId
from pdray.engine.engine import Engine
from pdray.link.connection import Connection
from pdray.link.messages import Parked, ParkedAnswer, Submission
from pdray.worker.attempts import AttemptTable
from pdray.worker.outbox import Outbox
from pdray.worker.parked_table import ParkedTable, ParkingLimits
from pdray.worker.prompt import Phase, Prompt


class Parking:
    """What a worker does with prompts whose reader is not known yet: it keeps them for whoever has
    the key. Lives on the event loop.

    A frontend whose submission is refused here is told so, and its attempt has ended.
    """

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        secret: ClusterSecret | None,
        engine: Engine,
        limits: ParkingLimits,
        outbox: Outbox,
        attempts: AttemptTable,
        clock: Clock,
    ) -> None:
        self._secret_id = None if secret is None else secret.secret_id
        self._limits = limits
        self._engine = engine
        self._outbox = outbox
        self._attempts = attempts
        self._table = ParkedTable(worker_id=worker_id, engine=engine, limits=limits, clock=clock)

    @property
    def num_active(self) -> int:
        return self._table.num_active

    def tick(self) -> None:
        self._table.tick()

    def take_room(self, prompt: Prompt) -> bool:
        """For a prompt that is to be parked; False where it is refused."""
        try:
            if self._secret_id is None:
                raise ConfigError("handles.secret_file is missing: nobody could claim a prompt")
            prompt.num_parked_blocks = self._table.take_room(prompt.num_tokens)
        except (OverloadedError, ConfigError) as error:
            self._refuse(prompt.frontend_id, prompt.submission, error)
            return False
        return True

    def give_room(self, prompt: Prompt) -> None:
        """It comes to be parked no more. A second call does nothing."""
        self._table.give_room(prompt.num_parked_blocks)
        prompt.num_parked_blocks = 0

    def park(self, prompt: Prompt) -> None:
        """It is computed. From here on its blocks are kept for whoever has the key, which goes to
        its frontend; that may go then."""
        assert prompt.first_token_id is not None, f"{prompt.request_id} is not computed"
        assert self._secret_id is not None, f"{prompt.request_id} cannot be claimed"
        key = self._table.park(
            prompt.sequence,
            ready_tokens=prompt.ready_tokens,
            first_token_id=prompt.first_token_id,
            num_blocks=prompt.num_parked_blocks,
        )
        prompt.num_parked_blocks = 0
        parked = Parked(
            request_id=prompt.request_id,
            attempt=prompt.attempt,
            key=key,
            secret_id=self._secret_id,
            lease_s=self._limits.lease_s,
        )
        self._outbox.parked(prompt.frontend_id, parked)

    def claim(
        self, number: int, frontend_id: str, submission: Submission, key: LeaseKey
    ) -> Prompt | None:
        """The prompt as this submission's, ready to be read; None where it is refused. ``leave``
        follows."""
        try:
            parked = self._table.claim(key)
        except HandleRefusedError as error:
            self._refuse(frontend_id, submission, error)
            return None
        prompt = Prompt(number, frontend_id, submission, parked.sequence)
        prompt.phase, prompt.parked = Phase.HANDING_OFF, parked
        prompt.ready_tokens, prompt.first_token_id = parked.ready_tokens, parked.first_token_id
        return prompt

    def leave(self, prompt: Prompt, *, is_read: bool) -> None:
        """A prompt that is over gives its blocks back; one that was claimed, and that nobody has
        read to its end, can be claimed again."""
        if prompt.parked is not None and not is_read:
            self._table.put_back(prompt.parked)
            return
        self._engine.release(prompt.sequence)
        if prompt.parked is not None:
            self._table.use_up(prompt.parked)

    def on_renew(self, frontend: Connection, key: LeaseKey, *, may_extend: bool) -> None:
        self._answer(frontend, key, lambda: self._table.renew(key, may_extend=may_extend))

    def on_release(self, frontend: Connection, key: LeaseKey) -> None:
        self._answer(frontend, key, lambda: self._table.release(key))

    def _answer(self, frontend: Connection, key: LeaseKey, change: Callable[[], float]) -> None:
        try:
            answer = ParkedAnswer(lease_id=key.lease_id, lease_s=change(), problem=None)
        except HandleRefusedError as error:
            answer = ParkedAnswer(lease_id=key.lease_id, lease_s=0.0, problem=error.problem)
        frontend.send(answer)

    def _refuse(self, frontend_id: str, submission: Submission, error: PdrayError) -> None:
        request_id, attempt = submission.request.request_id, submission.attempt
        self._attempts.end(request_id, attempt)
        self._outbox.refuse(frontend_id, request_id, attempt, error)
