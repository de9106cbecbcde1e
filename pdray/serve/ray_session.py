"""A driver's Ray: a local one that ends with it, or a cluster that it joins."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdray.cluster.node_groups import worker_resources
from pdray.config import PdrayConfig
from pdray.core.errors import ConfigError, UnavailableError
from pdray.serve.free_port import free_port

OBJECT_STORE_BYTES = 256 * 2**20
"""Neither prompts nor KV go through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """``is_ours`` where Ray was started here: then ``close`` ends it. ``logs`` is where to look
    when something fails."""

    is_ours: bool
    logs: str

    def close(self) -> None:
        import ray

        ray.shutdown()


def open_ray(
    configs: Sequence[PdrayConfig], address: str | None, progress: Callable[[str], None]
) -> RaySession:
    """Starts a local Ray with what the configs' workers need, or joins the one at ``address``.

    Raises UnavailableError where there is none, and ConfigError for a transport that does not
    reach from one process to another.
    """
    if any(config.transfer.transport == "loopback" for config in configs):
        raise ConfigError(
            "transfer.transport = 'loopback': works within one process only; accepted: nixl"
        )
    if address is None:
        progress("starting a local Ray (about 7 s)")
        _set_environment()
    else:
        progress(f"joining the Ray cluster at {address}")
        # Read by Serve's own code in this process too.
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    import ray

    local = local_resources(configs) if address is None else None
    try:
        ray.init(
            address=address or "local",
            num_cpus=local.num_cpus if local else None,
            resources=local.custom if local else None,
            object_store_memory=OBJECT_STORE_BYTES if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(f"Ray at {address or 'this machine'}: {error}") from error
    return RaySession(is_ours=address is None, logs=_logs())


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResources:
    num_cpus: int
    custom: dict[str, float]


def local_resources(configs: Sequence[PdrayConfig]) -> LocalResources:
    """What a local Ray must have, so that all workers fit on this one machine, be it small.

    CPUs may be more than the machine has: they say how much may run, not on what. This machine
    stands for every node group. GPUs are counted by Ray itself: those cannot be made up.
    """
    num_cpus = 1.0 + sum(config.serve.ingress_replicas for config in configs)
    custom: dict[str, float] = {}
    for config, pool in ((c, pool) for c in configs for pool in c.pools.values()):
        wants = [worker_resources(config.node_groups[name]) for name in pool.node_groups]
        num_cpus += pool.max_replicas * max(want.num_cpus for want in wants)
        for want in wants:
            for name, amount in want.resources.items():
                custom[name] = custom.get(name, 0.0) + pool.max_replicas * amount
    return LocalResources(num_cpus=math.ceil(max(num_cpus, os.cpu_count() or 1)), custom=custom)


def _set_environment() -> None:
    """Ray's processes read these when they start; what the user has set stays."""
    defaults = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # HAProxy would listen on fixed ports for its own numbers: two servers would collide.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # No load balancer outside has to notice first that this server goes away.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _logs() -> str:
    from ray._private.worker import global_worker

    node = global_worker.node
    return "Ray's logs" if node is None else str(Path(node.get_logs_dir_path()))
