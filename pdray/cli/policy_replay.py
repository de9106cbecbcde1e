"""What ``pdray policy replay`` does: from its files to a table and a picture."""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pdray.config import PdrayConfig, load_config
from pdray.config_yaml import read_yaml
from pdray.control.controller import ControlConfig
from pdray.control_plane import control_config
from pdray.core.errors import ConfigError
from pdray.core.slo import Slo
from pdray.policy.scaling.base import ScalingSetup
from pdray.scaling_config import AutoscalingConfig, load_policy
from pdray.simulation.profile import Profile, parse_profile
from pdray.simulation.replay import PoolUnderPolicy, control_of, pools_of, replay_scenario
from pdray.simulation.report import Interval, intervals, rows_of
from pdray.simulation.simulator import simulate
from pdray.workload.day import Day, day_of, two_bursts
from pdray.workload.request import WorkloadRequest
from pdray.workload.trace import read_trace, scale_trace

_MAX_LINES = 24
_DRAWN_INTERVALS = 288


def replay(args: argparse.Namespace) -> int:
    """Everything is checked before anything is simulated. Raises PdrayError."""
    if args.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--png needs matplotlib, which is not here: pip install 'pdray[bench]'")
    profile = parse_profile(read_yaml(args.profile), str(args.profile))
    control, placement = _control(args.file, profile, dict(args.pool))
    requests = _requests(args)
    scenario = replay_scenario(profile, control, requests, placement=placement, seed=args.seed)
    result = simulate(scenario)
    width = max(len(label) for label, _ in rows_of(result))
    for label, text in rows_of(result):
        print(f"{label:<{width}}  {text}")
    print()
    for line in _course(intervals(result, result.ended_at / _MAX_LINES)):
        print(line)
    if args.png is not None:
        from pdray.cli.replay_plot import save_replay_plot

        course = intervals(result, result.ended_at / _DRAWN_INTERVALS)
        save_replay_plot(args.png, {args.file.name: (result, course)})
        print(f"\nwritten: {args.png}")
    return 0


def _control(file: Path, profile: Profile, fixed: Mapping[str, int]) -> tuple[ControlConfig, str]:
    """And the name of the placement policy."""
    data = read_yaml(file)
    if isinstance(data, Mapping) and "pools" in data:
        config = load_config(file)
        return _of_config(config, profile, fixed), config.controller.placement
    policy = load_policy(file)
    pools = pools_of(profile)
    _check_names(fixed, pools)
    slo = _slo_of(policy)
    under = [
        PoolUnderPolicy(
            name=name,
            role=role,
            node_groups=groups,
            policy=None if name in fixed else policy.policy(role, slo),
            num_workers=fixed.get(name, 1),
        )
        for name, (role, groups) in pools.items()
    ]
    return control_of(under, profile, slo), "cost"


def _slo_of(policy: AutoscalingConfig) -> Slo:
    from pdray.config_sections import SloConfig

    own = policy.slo.model_dump(exclude_none=True)
    return Slo(**(SloConfig().model_dump() | own))


def _of_config(config: PdrayConfig, profile: Profile, fixed: Mapping[str, int]) -> ControlConfig:
    _check_names(fixed, config.pools)
    control = control_config(config)
    assert control.scaling is not None
    pools = tuple(
        replace(each, policy=None, replicas=fixed[each.name]) if each.name in fixed else each
        for each in control.scaling.pools
    )
    for pool in pools:
        for group in pool.node_groups:
            profile.worker(pool.name, group)
    scaling = ScalingSetup(
        pools=pools, groups=control.scaling.groups, budget=control.scaling.budget
    )
    return replace(control, scaling=scaling)


def _check_names(fixed: Mapping[str, int], known: Mapping[str, object]) -> None:
    for name in fixed:
        if name not in known:
            raise ConfigError(f"--pool {name}: accepted: {', '.join(known)}")


def _requests(args: argparse.Namespace) -> Sequence[WorkloadRequest]:
    try:
        trace = read_trace(args.trace)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--trace: {error}") from error
    span_s = trace[-1].arrival_s
    if not span_s > 0:
        raise ConfigError(f"--trace {args.trace}: all its requests come at once")
    own_rps = (len(trace) - 1) / span_s
    rps = args.rps or own_rps
    if args.hours is None:
        return scale_trace(trace, speed=rps / own_rps)
    rng = random.Random(args.seed)
    duration_s = args.hours * 3600.0
    bursts = tuple(burst for burst in two_bursts(rng) if burst.begins_s < duration_s)
    return list(day_of(trace, Day(mean_rps=rps, bursts=bursts, duration_s=duration_s), rng))


def _course(course: Sequence[Interval]) -> Iterator[str]:
    pools = list(course[0].num_workers)
    widths = [max(len(pool), 7) for pool in pools]
    named = "  ".join(f"{pool:>{width}}" for pool, width in zip(pools, widths, strict=True))
    yield f"{'from':>9}  {'requests/s':>10}  {'SLO kept':>8}  {named}"
    for each in course:
        kept = "" if each.slo_attainment is None else f"{each.slo_attainment:.1%}"
        numbers = "  ".join(
            f"{each.num_workers[pool]:>{width}.1f}"
            for pool, width in zip(pools, widths, strict=True)
        )
        yield f"{_clock(each.begins_s):>9}  {each.arrived_rps:>10.2f}  {kept:>8}  {numbers}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"
