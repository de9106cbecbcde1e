"""Serves a stamped API until it is told to stop: under uvicorn alone, or by Ray Serve with its
HAProxy. ``benchmarks.http_overhead`` starts it; prints nothing of its own.

    python -m benchmarks.stamped_server uvicorn|serve plain|pdray PORT INTERVAL_S FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fastapi import FastAPI

from benchmarks.stamped_api import make_pdray_api, make_plain_api
from pdray.serve.free_port import free_port


def make(kind: str, interval_s: float, folder: Path) -> FastAPI:
    if kind == "plain":
        return make_plain_api(interval_s)
    return make_pdray_api(interval_s, folder)


def serve_with_uvicorn(kind: str, port: int, interval_s: float, folder: Path) -> None:
    import uvicorn

    uvicorn.run(make(kind, interval_s, folder), port=port, log_level="warning", access_log=False)


def serve_with_ray(kind: str, port: int, interval_s: float, folder: Path) -> None:
    """A Ray of its own, on its own ports, so that it meets no other Ray here."""
    os.environ.update(proxy_settings())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from pdray.serve.app import REPLICA_ENV

    def build() -> FastAPI:
        return make(kind, interval_s, folder)

    # Raised, not handled: the main thread is the one that waits below.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # As pdray deploys its ingress.
        as_deployment = serve.deployment(
            max_ongoing_requests=1024,
            ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": REPLICA_ENV}},
        )
        deployment = as_deployment(serve.ingress(build)())
        serve.run(deployment.bind(), name="stamps")
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


def proxy_settings() -> dict[str, str]:
    """Serve's proxies as ``pdray serve`` sets them, on free ports."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
    }


if __name__ == "__main__":
    host, kind, port, interval, folder_name = sys.argv[1:]
    run = {"uvicorn": serve_with_uvicorn, "serve": serve_with_ray}[host]
    run(kind, int(port), float(interval), Path(folder_name))
