"""Every error that pdray raises on purpose.

::

    PdrayError
    +-- ConfigError                 the YAML: names file, key, value and what is accepted
    +-- InvalidRequestError         the client's fault (400); carries the parameter's name
    |   +-- ModelNotFoundError      (404)
    |   +-- HandleRefusedError      a KV handle that is forged, foreign, expired or used up
    |                               (400, 403, 410, 409)
    +-- AuthenticationError         no API key that is known here (401)
    +-- OverloadedError             past a bound (429); carries retry_after_s
    +-- UnavailableError            no worker can serve this now (503)
    +-- PrefillRefusedError         the prefill application's own answer, which is passed on
    +-- WorkerLostError             a worker died under a request, or cut its link (503)
    |   +-- RequestFailedError      it could not go on with it, and no other could
    +-- MigrationError              a running request was not moved: it goes on where it was
    +-- SlowReaderError             the client fell too far behind its own stream
    +-- UnsupportedModelError       a model that pdray cannot serve, with the reason
    +-- TransferError               a read of a peer's blocks failed
    |   +-- StaleReadError          it came when its lease was over: the bytes are others'
    +-- RankLostError               a process of a tensor-parallel worker died: it cannot go on
    +-- LinkError                   a link could not be made or was lost
    |   +-- LinkRefusedError        the peer refused it: key, wire version or layout
    +-- EventLogError               a controller's event log cannot be read, or lacks a request
    +-- IllegalTransitionError      a state machine was asked for an arrow it has not
"""

from __future__ import annotations

import enum


class PdrayError(Exception):
    """Base of all of pdray's own errors."""


class ConfigError(PdrayError):
    """A configuration file says something that cannot be."""


class InvalidRequestError(PdrayError):
    """The request itself is wrong; ``param`` names the field where one is at fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that is not served here."""


class HandleProblem(enum.StrEnum):
    """Why a KV handle, or the lease in it, is not taken: the error's code."""

    FORGED = "invalid_kv_handle"
    FOREIGN = "foreign_kv_handle"
    EXPIRED = "expired_kv_handle"
    USED_UP = "used_kv_handle"


class HandleRefusedError(InvalidRequestError):
    """The KV handle cannot be used, now or ever: prefill has to run again."""

    def __init__(self, message: str, *, problem: HandleProblem) -> None:
        super().__init__(message, param="kv_handle", code=problem.value)
        self.problem = problem


class AuthenticationError(PdrayError):
    """The request has no API key, or none that is known here."""


class OverloadedError(PdrayError):
    """A queue is at its bound; worth another try after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(PdrayError):
    """No worker can take the request now, and waiting was not possible."""


class PrefillRefusedError(PdrayError):
    """What the prefill application answered in place of a handle: ``status`` and ``body`` as HTTP
    has them, in OpenAI's shape where it was pdray that answered."""

    def __init__(self, status: int, body: bytes, *, retry_after: str | None) -> None:
        super().__init__(f"the prefill application answered {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after


class WorkerLostError(PdrayError):
    """The worker that ran the request died, or its link broke."""


class GivenBackError(WorkerLostError):
    """A worker that drains has not begun with the request: nobody is at fault."""


class RequestFailedError(WorkerLostError):
    """The worker could not go on with the request, and would not wherever it is placed."""


class MigrationError(PdrayError):
    """A running request was not moved: it goes on where it was, or has ended."""


class SlowReaderError(PdrayError):
    """The client did not read its stream, and the bound on what is kept for it was reached."""


class UnsupportedModelError(PdrayError):
    """The model cannot be served; the message says why."""


class TransferError(PdrayError):
    """A read of a peer's blocks failed, or the peer is unknown."""


class StaleReadError(TransferError):
    """A read ended after its lease: what it has read may be somebody else's."""


class RankLostError(PdrayError):
    """A process of a tensor-parallel worker died, and the worker cannot go on without it."""


class LinkError(PdrayError):
    """A link could not be made, or was lost."""


class LinkRefusedError(LinkError):
    """The peer refused the link: wrong key, unlike wire version or layout."""


class EventLogError(PdrayError):
    """A controller's event log cannot be read, or does not have what was asked of it."""


class IllegalTransitionError(PdrayError):
    """A state machine was asked for a transition that its table does not have."""
