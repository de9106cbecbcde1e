"""The Ray Serve application: each replica of its one deployment is an ingress with a frontend
of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.context import _get_global_client

from pdray.cluster.client import RayControllerClient
from pdray.config import PdrayConfig, ServeConfig, load_config, parse_config
from pdray.config_checks import open_to_all
from pdray.core.clock import WallClock
from pdray.core.errors import ConfigError, UnavailableError
from pdray.frontend.frontend import Frontend
from pdray.frontend.text import Tokenizer
from pdray.model_source import resolve_model
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import RETRY_AFTER_S, IngressState, make_api
from pdray.serve.keys import KeyRing
from pdray.serve.phase_routes import max_output_tokens, phase_routes
from pdray.serve.trace_exporter import open_tracing

if TYPE_CHECKING:
    from pdray.serve.tracing import Tracing

logger = logging.getLogger(__name__)

DEPLOYMENT = "ingress"
SPARE_REQUESTS = 64
"""What Serve lets in past our own limit, so that it is ours that answers: in OpenAI's words,
and never to /health or /metrics."""

STATUS_TIMEOUT_S = 5.0
POLL_S = 0.2

# With user code in a thread of its own, Serve would take all that we send into a queue without
# bound, and a client that does not read would never hold its stream up.
REPLICA_ENV = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


def build_app(args: Mapping[str, object]) -> Application:
    """Serve's builder. ``args`` is ``config``: the path of a YAML file, or what such a file
    holds. Raises ConfigError."""
    config = config_of(args)
    autoscaling = _ingress_autoscaling(config.serve)
    as_deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=None if autoscaling else config.serve.ingress_replicas,
        autoscaling_config=autoscaling,
        max_ongoing_requests=config.serve.max_ongoing_requests + SPARE_REQUESTS,
        max_queued_requests=SPARE_REQUESTS,
        graceful_shutdown_timeout_s=config.serve.graceful_shutdown_timeout_s,
        # Of a changed config, all new ones come before any old one goes.
        max_surge_percent=100,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": REPLICA_ENV}},
    )
    application: Application = as_deployment(serve.ingress()(Ingress)).bind(config)
    return application


def _ingress_autoscaling(config: ServeConfig) -> AutoscalingConfig | None:
    """Serve's own: it looks at calls in flight, and at nothing that workers do."""
    if config.max_ingress_replicas is None:
        return None
    return AutoscalingConfig(
        min_replicas=config.ingress_replicas,
        max_replicas=config.max_ingress_replicas,
        target_ongoing_requests=max(config.max_ongoing_requests / 2, 1.0),
    )


def config_of(args: Mapping[str, object]) -> PdrayConfig:
    """Raises ConfigError."""
    if unknown := sorted(args.keys() - {"config"}):
        raise ConfigError(f"args: {', '.join(unknown)}: unknown; accepted: config")
    config = args.get("config")
    if isinstance(config, str):
        return load_config(config)
    if isinstance(config, Mapping):
        return parse_config(config, "args.config")
    raise ConfigError(
        f"args.config = {config!r}: accepted: the path of a YAML file, or a mapping with its keys"
    )


def keys_of(config: PdrayConfig) -> KeyRing | None:
    """None where everybody is let in. Raises ConfigError where that would be more than was asked
    for: Serve listens where whoever started it said, be that not in this config."""
    serve_client = _get_global_client()
    assert serve_client is not None, "a replica without Ray Serve"
    host = serve_client.http_config.host
    if (problem := open_to_all(config.serve, host)) is not None:
        raise ConfigError(f"Ray Serve listens on {host}: {problem}")
    keys_file = config.serve.keys_file
    return None if keys_file is None else KeyRing(Path(keys_file))


class Ingress:
    """A replica: ready when its application's workers can serve, else its start fails."""

    def __init__(self, config: PdrayConfig) -> None:
        frontend_id = f"{config.serve.application}-ingress-{uuid4().hex[:8]}"
        self._config = config
        self._tracing: Tracing | None = None
        self._controller = RayControllerClient(config, frontend_id)
        self._frontend = Frontend(
            frontend_id,
            self._controller,
            max_unread_tokens=config.serve.slow_reader_tokens,
            patience_s=config.controller.queue_timeout_s,
        )

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls it once; the replica gets requests when it has returned."""
        keys = await asyncio.to_thread(keys_of, self._config)
        self._tracing = open_tracing()
        # The controller first, as the workers load the model meanwhile.
        await self._controller.start(self._frontend.metrics)
        path = await asyncio.to_thread(resolve_model, self._config.model, logger.info)
        tokenizer = await asyncio.to_thread(Tokenizer, path)
        await self._wait_for_workers()
        service = CompletionService(
            self._frontend,
            tokenizer,
            model_name=self._config.model_name,
            limits=self._controller.limits,
            max_output_tokens=max_output_tokens(self._config),
        )
        routes = phase_routes(self._config, self._frontend, service, tokenizer)
        return make_api(
            IngressState(
                service=service,
                missing=self._missing,
                metrics_text=self._controller.metrics_text,
                overview=self._controller.overview,
                scaling=self._controller.scaling,
                max_ongoing_requests=self._config.serve.max_ongoing_requests,
                keys=keys,
                around=None if self._tracing is None else self._tracing.around,
            ),
            routes,
        )

    async def __del__(self) -> None:
        """Serve calls it when the replica ends."""
        await self._frontend.stop()
        await self._controller.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _missing(self) -> str | None:
        """Why no request can be placed now: not whether every worker is there."""
        try:
            return await self._missing_yet()
        except UnavailableError as error:
            return str(error)

    async def _missing_yet(self) -> str | None:
        """What may still come; raises UnavailableError where waiting does not help."""
        try:
            status = await asyncio.wait_for(self._controller.status(), STATUS_TIMEOUT_S)
        except TimeoutError:
            return f"the controller has not answered for {STATUS_TIMEOUT_S:g} s"
        if status.can_place:
            return None
        if status.layout_mismatch is not None:
            raise UnavailableError(status.layout_mismatch)
        return status.missing

    async def _wait_for_workers(self) -> None:
        """Raises UnavailableError."""
        timeout_s = self._config.serve.startup_timeout_s
        clock = WallClock()
        deadline = clock.now() + timeout_s
        said = None
        while (missing := await self._missing_yet()) is not None:
            if missing != said:
                logger.info("waiting for %s", missing)
                said = missing
            if clock.now() > deadline:
                raise UnavailableError(
                    f"not ready after serve.startup_timeout_s = {timeout_s:g}: {missing}"
                )
            await asyncio.sleep(POLL_S)
