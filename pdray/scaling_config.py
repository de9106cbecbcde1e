"""An autoscaling policy's YAML file as a frozen model, and the policy that it means.

Where Ray Serve's AutoscalingConfig has a word for it, the word and its meaning are Serve's.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from pdray.config_report import (
    Problem,
    choice,
    config_error,
    require_mapping,
    validation_problems,
)
from pdray.config_sections import (
    Count,
    CountOrNone,
    Fraction,
    Positive,
    Seconds,
    SecondsOrNone,
    Section,
    matching,
)
from pdray.config_yaml import read_yaml
from pdray.core.scaling import Aggregation
from pdray.core.slo import Slo
from pdray.core.snapshot import Role, WorkerSnapshot
from pdray.policy.scaling.base import Rails, ScalingPolicy, ScheduledFloor
from pdray.policy.signals import DEFAULT_TARGETS, SIGNALS

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TimeOfDay = Annotated[
    str,
    AfterValidator(matching(r"([01]\d|2[0-3]):[0-5]\d", "should be a quoted time such as '08:30'")),
]
_MAX_SAMPLES = 10_000


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("should be an IANA name such as Europe/Berlin, or UTC") from None
    return value


class PolicySloConfig(Section):
    """What the pool's policy works for; what is left out is the application's ``slo``."""

    ttft_s: Seconds | None = None
    itl_s: Seconds | None = None
    percentile: Fraction | None = None


class ScheduledFloorConfig(Section):
    """A part of the day with workers that are there before anybody asks for them."""

    days: Annotated[tuple[Day, ...], Field(strict=False, min_length=1)] = _DAYS
    start: TimeOfDay
    end: TimeOfDay
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    min_replicas: Count


class AutoscalingConfig(Section):
    """One pool's policy. Make it with ``load_policy`` or ``parse_policy``, which check it."""

    min_replicas: CountOrNone = 1
    max_replicas: Count = 1
    initial_replicas: CountOrNone | None = None
    standby_replicas: CountOrNone = 0
    upscale_delay_s: SecondsOrNone = 30.0
    downscale_delay_s: SecondsOrNone = 600.0
    downscale_to_zero_delay_s: SecondsOrNone | None = None
    metrics_interval_s: Seconds = 1.0
    look_back_period_s: Seconds = 30.0
    aggregation_function: Annotated[Aggregation, Field(strict=False)] = Aggregation.MEAN
    upscaling_factor: Positive = 1.0
    downscaling_factor: Positive = 1.0
    max_step_replicas: Count | None = None
    cooldown_s: SecondsOrNone = 30.0
    slo: PolicySloConfig = PolicySloConfig()
    signals: dict[str, Positive] | None = None
    predictive: bool = False
    schedule: Annotated[tuple[ScheduledFloorConfig, ...], Field(strict=False)] = ()
    dry_run: bool = False

    @property
    def first_replicas(self) -> int:
        """Without ``initial_replicas`` what must be; one at least, which shows what fits."""
        initial = self.initial_replicas
        return max(self.min_replicas if initial is None else initial, 1)

    def policy(self, role: Role, slo: Slo) -> ScalingPolicy:
        """For a pool with this role, of an application that promises ``slo``."""
        own = self.slo.model_dump(exclude_none=True)
        return ScalingPolicy(
            rails=Rails(**{field.name: getattr(self, field.name) for field in fields(Rails)}),
            initial_replicas=self.first_replicas,
            standby_replicas=self.standby_replicas,
            look_back_period_s=self.look_back_period_s,
            metrics_interval_s=self.metrics_interval_s,
            aggregation=self.aggregation_function,
            targets=dict(DEFAULT_TARGETS[role] if self.signals is None else self.signals),
            slo=Slo(
                ttft_s=own.get("ttft_s", slo.ttft_s),
                itl_s=own.get("itl_s", slo.itl_s),
                percentile=own.get("percentile", slo.percentile),
            ),
            is_predictive=self.predictive,
            schedule=tuple(_floor(each) for each in self.schedule),
            is_dry_run=self.dry_run,
        )


def parse_policy(data: object, source: str = "policy") -> AutoscalingConfig:
    """Checks ``data``, a mapping as YAML gives it; raises ConfigError with every problem."""
    mapping = require_mapping(data, source)
    try:
        config = AutoscalingConfig.model_validate(mapping)
    except ValidationError as error:
        raise config_error(source, validation_problems(error, AutoscalingConfig)) from None
    if problems := list(policy_problems(config)):
        raise config_error(source, problems)
    return config


def load_policy(path: Path) -> AutoscalingConfig:
    """Reads and checks a YAML file; raises ConfigError."""
    return parse_policy(read_yaml(path), str(path))


def policy_problems(config: AutoscalingConfig, prefix: str = "") -> Iterator[Problem]:
    """Where a policy contradicts itself; keys begin with ``prefix``."""

    def problem(key: str, accepted: str) -> Problem:
        return Problem(key=prefix + key, value=getattr(config, key), accepted=accepted)

    low, high = config.min_replicas, config.max_replicas
    if high < low:
        yield problem("max_replicas", f"should be at least min_replicas, {low}")
        return
    if config.initial_replicas is not None and not low <= config.initial_replicas <= high:
        yield problem(
            "initial_replicas", f"should be from min_replicas to max_replicas: {low}-{high}"
        )
    if config.downscale_to_zero_delay_s is not None and low > 0:
        yield problem("downscale_to_zero_delay_s", "leave it out, or set min_replicas: 0")
    if config.look_back_period_s < config.metrics_interval_s:
        accepted = f"should be at least metrics_interval_s, {config.metrics_interval_s:g}"
        yield problem("look_back_period_s", accepted)
    if config.look_back_period_s > _MAX_SAMPLES * config.metrics_interval_s:
        accepted = f"should be at most {_MAX_SAMPLES} times metrics_interval_s"
        yield problem("look_back_period_s", accepted)
    if config.downscaling_factor > 1.0:
        yield problem("downscaling_factor", "should be at most 1: what is more is taken back again")
    yield from _signal_problems(config, prefix)
    for number, floor in enumerate(config.schedule):
        key = f"{prefix}schedule.{number}"
        if floor.min_replicas > high:
            accepted = f"should be at most max_replicas, {high}"
            yield Problem(key=f"{key}.min_replicas", value=floor.min_replicas, accepted=accepted)
        if floor.start == floor.end:
            accepted = "should differ from its start; for all day raise min_replicas itself"
            yield Problem(key=f"{key}.end", value=floor.end, accepted=accepted)


def _signal_problems(config: AutoscalingConfig, prefix: str) -> Iterator[Problem]:
    if config.signals is None:
        return
    numbers = [each.name for each in fields(WorkerSnapshot) if each.name.startswith("num_")]
    known = [*SIGNALS, *(f"worker.{name}" for name in (*numbers, "prefill_backlog_tokens"))]
    for name in config.signals:
        if wrong := choice(name, known):
            yield Problem(key=f"{prefix}signals", value=name, accepted=wrong)
    if not config.signals and not config.schedule:
        accepted = "should name a signal, or leave it out for those of the pool's role"
        yield Problem(key=f"{prefix}signals", value={}, accepted=accepted)


def _floor(config: ScheduledFloorConfig) -> ScheduledFloor:
    return ScheduledFloor(
        weekdays=frozenset(_DAYS.index(day) for day in config.days),
        start_s=_second(config.start),
        end_s=_second(config.end),
        min_replicas=config.min_replicas,
        timezone=config.timezone,
    )


def _second(text: str) -> int:
    time = datetime.time.fromisoformat(text)
    return time.hour * 3600 + time.minute * 60
