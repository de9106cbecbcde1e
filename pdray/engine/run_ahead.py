"""One step ahead of the host: a GPU gets the next step's work while it computes the last one.

It takes the new tokens where they were sampled, and begins without a pause; the host reads them
meanwhile. A sequence that turns out to have ended has one token too many computed, which nobody
looks at, and keeps its blocks until that step is over too.
"""

from __future__ import annotations

import threading

import torch

from pdray.engine.ending import Ending
from pdray.engine.launcher import LaunchedStep, Launcher
from pdray.engine.scheduler import Scheduler, StepPlan
from pdray.engine.sequence import Sequence, SequenceState


def gains_by_running_ahead(device: str) -> bool:
    """On a CPU, host and device are the same cores."""
    return torch.device(device).type == "cuda"


class RunAhead:
    """Decides, under the engine's ``lock``, what of a step's successor can be known before its
    tokens are, and launches that."""

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        ending: Ending,
        *,
        lock: threading.Condition,
    ) -> None:
        self._scheduler = scheduler
        self._launcher = launcher
        self._lock = lock
        self._ending = ending

    def launch_after(self, step: LaunchedStep) -> LaunchedStep | None:
        """None where the host has to see the tokens of ``step`` first."""
        with self._lock:
            plan = self._plan_after(step.plan)
        return None if plan is None else self._launcher.launch(plan, step)

    def _plan_after(self, plan: StepPlan) -> StepPlan | None:
        sequences = [chunk.sequence for chunk in plan.chunks if self._goes_on(chunk.sequence)]
        if not sequences or any(map(looks_back, sequences)):
            return None
        return self._scheduler.schedule_ahead(sequences)

    def _goes_on(self, seq: Sequence) -> bool:
        """As far as is known: nobody has taken it out, and it does not end for its length."""
        return seq.state is SequenceState.RUNNING and not self._ending.must_end(seq)


def looks_back(seq: Sequence) -> bool:
    """Whether the choice of its next token depends on which one it got last, other than through
    the model."""
    return seq.grammar_state is not None or seq.request.sampling.has_penalties
