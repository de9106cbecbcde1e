"""What a control plane was told, and what came of it: for who writes that down."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from pdray.core.placement import Placement, Refusal
from pdray.policy.roles import RoleFlip

if TYPE_CHECKING:
    from .controller import ControlPlane

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A call of the control plane's method ``event``: with what, its answer, and the decisions
    that came with it."""

    event: str
    arguments: Mapping[str, object]
    answer: object
    decisions: Sequence[Placement | Refusal]
    role_flips: Sequence[RoleFlip]


Journal = Callable[[Told], None]

EVENTS: list[str] = []
"""The names of all events."""


def event(
    method: Callable[Concatenate[ControlPlane, P], R],
) -> Callable[Concatenate[ControlPlane, P], R]:
    """A method that what is decided later may depend on: the control plane's journal hears of
    every call. Such methods do not call each other, so that each call is heard of once."""
    signature = inspect.signature(method)
    EVENTS.append(method.__name__)

    @functools.wraps(method)
    def told(self: ControlPlane, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.journal is None:
            return method(self, *args, **kwargs)
        before = self.num_outcomes
        answer = method(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        decisions, role_flips = self.outcomes_since(before)
        self.journal(
            Told(
                event=method.__name__,
                arguments=arguments,
                answer=answer,
                decisions=decisions,
                role_flips=role_flips,
            )
        )
        return answer

    return cast("Callable[Concatenate[ControlPlane, P], R]", told)
