"""What ended a request badly, as the error that its reader gets and the outcome that is counted."""

from __future__ import annotations

from pdray.core.errors import (
    GivenBackError,
    InvalidRequestError,
    LinkError,
    OverloadedError,
    PdrayError,
    RequestFailedError,
    SlowReaderError,
    UnavailableError,
    WorkerLostError,
)
from pdray.core.parked import lease_refused
from pdray.core.placement import Refusal, WorkerAddress
from pdray.core.request import RequestState
from pdray.link.connection import Connection
from pdray.link.messages import Failed
from pdray.metrics.prometheus import Outcome


def refusal_error(refusal: Refusal) -> PdrayError:
    if refusal.retry_after_s is None:
        return InvalidRequestError(refusal.reason)
    return OverloadedError(refusal.reason, retry_after_s=refusal.retry_after_s)


def failure_of(message: Failed) -> PdrayError:
    if message.problem is not None:
        return lease_refused(message.problem)
    if message.retry_after_s is not None:
        return OverloadedError(message.reason, retry_after_s=message.retry_after_s)
    if message.is_given_back:
        return GivenBackError(message.reason)
    return (RequestFailedError if message.comes_again else WorkerLostError)(message.reason)


def lost(address: WorkerAddress, cause: Connection | BaseException) -> PdrayError:
    """For a link that could not be made, or is down again; raises what is no such cause."""
    if isinstance(cause, Connection):
        return lost_worker(address.worker_id, RequestState.QUEUED)
    if not isinstance(cause, LinkError):
        raise cause
    return WorkerLostError(f"worker {address.worker_id} cannot be reached: {cause}")


def lost_worker(worker_id: str, state: RequestState) -> PdrayError:
    return WorkerLostError(f"worker {worker_id} was lost while the request was {state}")


def outcome_of(error: PdrayError) -> Outcome:
    match error:
        case InvalidRequestError():
            return Outcome.INVALID
        case OverloadedError() | UnavailableError():
            return Outcome.OVERLOADED
        case SlowReaderError():
            return Outcome.SLOW_READER
        case _:
            return Outcome.FAILED
