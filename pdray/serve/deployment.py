"""The application on the Ray that the driver has: deployed, waited for, taken down.

Import it after ``open_ray``: Serve reads the environment when it is imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException

from pdray.cluster.launch import down, in_use, up
from pdray.config import PdrayConfig
from pdray.core.errors import UnavailableError

from .address import url_of
from .app import build_app

if TYPE_CHECKING:
    from .ray_session import RaySession

_POLL_S = 0.2
_HTTP_TIMEOUT_S = 60.0
# For a Serve controller that is made now, on a cluster whose Ray was started without it.
_CONTROLLER_OPTIONS = {"runtime_env": {"env_vars": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}}


class Deployment:
    """One application, from its start to its end."""

    def __init__(self, config: PdrayConfig, session: RaySession) -> None:
        self._config = config
        self._session = session
        self._started_serve = False

    def start(self, progress: Callable[[str], None]) -> None:
        """Starts the workers, then the ingress; returns when requests can be served.

        Raises UnavailableError with what is missing: what was started is left to ``stop``.
        """
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        config = self._config
        application = build_app({"config": config.model_dump(mode="json")})
        num_workers = sum(pool.first_replicas for pool in config.pools.values())
        progress(f"starting {num_workers} workers: each loads the model")
        up(config, progress)
        progress("starting the ingress on Ray Serve")
        with in_use(config):
            self._deploy(application)
        _wait_for_http(config)

    def _deploy(self, application: serve.Application) -> None:
        config = self._config.serve
        self._started_serve = not _serve_runs()
        serve.start(
            http_options={"host": config.host, "port": config.port},
            controller_options=_CONTROLLER_OPTIONS,
        )
        try:
            serve.run(application, name=config.application, route_prefix=config.route_prefix)
        except (RuntimeError, RayServeException) as error:
            raise UnavailableError(f"Ray Serve could not deploy: {error}") from error

    def stop(self) -> None:
        """Deletes the application and its actors, and waits until they are gone. Serve ends where
        it was started here and has no other application; other applications go on."""
        if not ray.is_initialized():
            return
        if _serve_runs() and self._config.serve.application in serve.status().applications:
            serve.delete(self._config.serve.application)
        down(self._config)
        if self._started_serve and (self._session.is_ours or not serve.status().applications):
            serve.shutdown()


def _serve_runs() -> bool:
    """Asked before ``serve.status``, which would start it."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _wait_for_http(config: PdrayConfig) -> None:
    """The ingress runs; now the proxy in front of it must have heard of it."""
    deadline = time.monotonic() + _HTTP_TIMEOUT_S
    while (problem := _problem(config)) is not None:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{url_of(config)}/health after {_HTTP_TIMEOUT_S:g} s: {problem}"
            )
        time.sleep(_POLL_S)


def _problem(config: PdrayConfig) -> str | None:
    """Why /health is not yet 200; None where it is."""
    try:
        answer = httpx.get(f"{url_of(config)}/health", timeout=10.0)
    except httpx.TransportError as error:
        return f"{error}; does Serve listen on another port of this cluster?"
    return None if answer.status_code == httpx.codes.OK else f"{answer.status_code} {answer.text}"
