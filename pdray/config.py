"""The YAML config as frozen models, and the only place that reads environment variables.

``parse_config`` and ``load_config`` are the doors: they refuse unknown keys and run the checks
that span several keys (``pdray/config_checks.py``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from pdray import __version__
from pdray.config_checks import problems_of
from pdray.config_report import config_error, require_mapping, validation_problems
from pdray.config_sections import (
    Count,
    FilePath,
    Fraction,
    Name,
    Positive,
    Seconds,
    Section,
    Size,
    SloConfig,
    matching,
)
from pdray.config_yaml import read_yaml
from pdray.core.errors import ConfigError
from pdray.core.mode import Mode
from pdray.core.model_source import ModelSource
from pdray.core.snapshot import Role
from pdray.engine.checkpoint import open_checkpoint
from pdray.engine.config import EngineConfig
from pdray.kvcache.tiers.base import TierConfig
from pdray.scaling_config import AutoscalingConfig, load_policy

DEMO_MODEL = "demo"
DEMO_MODEL_NAME = "gemma-3-270m"


def _block_size(value: int) -> int:
    if value <= 0 or value % 16:
        raise ValueError("should be a multiple of 16 (prefix hashes are over 16 tokens)")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("should be a URL such as http://10.0.0.7:8000/prefill")
    return value.rstrip("/")


BlockSize = Annotated[int, AfterValidator(_block_size)]
Device = Annotated[str, AfterValidator(matching(r"cpu|cuda(:\d+)?", "accepted: cpu, cuda, cuda:N"))]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class EngineSettings(Section):
    """A pool's engine."""

    block_size: BlockSize = 16
    kv_cache_bytes: Size | None = None
    kv_memory_fraction: Fraction | None = None
    max_tokens_per_step: Count = 512
    max_batch_size: Count = 16
    max_model_len: Count = 4096
    num_threads: Count | None = None
    tensor_parallel: Count = 1
    attention_backend: str = "auto"
    device: Device = "cpu"
    dtype: Dtype | None = None


class EngineOverrides(Section):
    """A node group's own engine settings; None leaves the pool's."""

    block_size: BlockSize | None = None
    kv_cache_bytes: Size | None = None
    kv_memory_fraction: Fraction | None = None
    max_tokens_per_step: Count | None = None
    max_batch_size: Count | None = None
    max_model_len: Count | None = None
    num_threads: Count | None = None
    tensor_parallel: Count | None = None
    attention_backend: str | None = None
    device: Device | None = None
    dtype: Dtype | None = None


class NodeGroupConfig(Section):
    """Machines of one kind: the custom Ray resource they carry, what a worker takes, and what that
    costs. ``spot`` ones may be taken away."""

    resource: Annotated[str, Field(min_length=1)] | None = None
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: {"CPU": 1.0}
    )
    accelerator_type: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    cost_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    spot: bool = False
    engine: EngineOverrides = EngineOverrides()


class TierSettings(Section):
    """Where a worker keeps KV blocks that its device has no room for."""

    host_bytes: Size
    disk_bytes: Size | None = None
    disk_path: Annotated[str, Field(min_length=1)] | None = None
    session_ttl_s: Seconds = 3600.0


class PoolConfig(Section):
    """Equal workers: ``replicas`` of them (1), or as many as ``autoscaling`` says. ``node_groups``
    are in order of preference."""

    role: Literal["prefill", "decode", "mixed"]
    replicas: Count | None = None
    autoscaling: AutoscalingConfig | None = None
    node_groups: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    engine: EngineSettings
    tiers: TierSettings | None = None

    @property
    def first_replicas(self) -> int:
        """What the pool starts with."""
        if self.autoscaling is None or self.autoscaling.dry_run:
            return self.replicas or 1
        return self.autoscaling.first_replicas

    @property
    def max_replicas(self) -> int:
        """Workers at most, warm ones among them."""
        if self.autoscaling is None or self.autoscaling.dry_run:
            return self.replicas or 1
        return self.autoscaling.max_replicas + self.autoscaling.standby_replicas


class RoleBoundsConfig(Section):
    min: Count
    max: Count


class RolesConfig(Section):
    """How many workers have each role; between those bounds they change it as the SLO needs."""

    prefill: RoleBoundsConfig
    decode: RoleBoundsConfig


class TransferConfig(Section):
    transport: str = "nixl"
    weights: Annotated[ModelSource, Field(strict=False)] = ModelSource.AUTO
    lease_s: Seconds = 30.0


class EventLogConfig(Section):
    """A folder on the controller's machine."""

    folder: FilePath
    max_bytes: Annotated[Size, Field(ge=2**20)] = 256 * 2**20


class ControllerConfig(Section):
    placement: str = "cost"
    early_refusal: bool = False
    max_queued_requests: Annotated[int, Field(ge=0)] = 256
    queue_timeout_s: Seconds = 60.0
    worker_lease_s: Seconds = 60.0
    unused_exit_s: Seconds = 30.0
    drain_timeout_s: Seconds = 120.0
    termination_timeout_s: Seconds = 25.0
    event_log: EventLogConfig | None = None


class ServeConfig(Section):
    application: Name = "pdray"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    route_prefix: Annotated[str, AfterValidator(matching(r"/.*", "should start with /"))] = "/"
    ingress_replicas: Count = 1
    max_ingress_replicas: Count | None = None
    max_ongoing_requests: Count = 1024
    slow_reader_tokens: Count = 4096
    startup_timeout_s: Seconds = 600.0
    graceful_shutdown_timeout_s: Seconds = 600.0
    keys_file: FilePath | None = None
    allow_anonymous: bool = False
    prefill_url: Annotated[str, AfterValidator(_url)] | None = None


class HandlesConfig(Section):
    """KV handles, of ``mode: service``. ``lease_s`` and ``max_fraction`` are a prefill
    application's."""

    secret_file: FilePath | None = None
    lease_s: Seconds = 60.0
    max_fraction: Fraction = 0.5


class PdrayConfig(Section):
    """The whole file. Make it with ``load_config`` or ``parse_config``, which check it."""

    model: Annotated[str, Field(min_length=1)]
    served_model_name: Annotated[str, Field(min_length=1)] | None = None
    dtype: Dtype = "auto"
    mode: Annotated[Mode, Field(strict=False)] = Mode.POOLED
    node_groups: Annotated[dict[Name, NodeGroupConfig], Field(min_length=1)]
    pools: Annotated[dict[Name, PoolConfig], Field(min_length=1)]
    roles: RolesConfig | None = None
    slo: SloConfig = SloConfig()
    max_gpu_budget: Positive | None = None
    max_cost_per_hour: Positive | None = None
    transfer: TransferConfig = TransferConfig()
    controller: ControllerConfig = ControllerConfig()
    handles: HandlesConfig = HandlesConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def model_name(self) -> str:
        """The name that clients use."""
        if self.served_model_name is not None:
            return self.served_model_name
        if self.model == DEMO_MODEL:
            return DEMO_MODEL_NAME
        return Path(self.model).name.removesuffix(".gguf")

    @property
    def phases(self) -> Role:
        """What this application does: both, or in ``mode: service`` what its pools are for."""
        if self.mode is not Mode.SERVICE:
            return Role.MIXED
        roles = [Role.parse(pool.role) for pool in self.pools.values()]
        return functools.reduce(operator.or_, roles)

    @property
    def generation(self) -> str:
        """Names what the workers and their controller run: another hash, other workers."""
        facts = self.model_dump(mode="json", exclude={"serve", "served_model_name"})
        text = json.dumps([__version__, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def engine_settings(self, pool: str, node_group: str) -> EngineSettings:
        """The pool's settings with the node group's own on top."""
        changes = self.node_groups[node_group].engine.model_dump(exclude_none=True)
        if changes.keys() & {"kv_cache_bytes", "kv_memory_fraction"}:
            changes = {"kv_cache_bytes": None, "kv_memory_fraction": None} | changes
        return self.pools[pool].engine.model_copy(update=changes)

    def engine_config(self, pool: str, node_group: str, model_path: Path) -> EngineConfig:
        """What a worker of this pool on this node group gives its engine.

        To be called on the worker's own machine: ``dtype: auto`` and ``kv_memory_fraction``
        depend on its device and on the model. Raises ConfigError.
        """
        settings = self.engine_settings(pool, node_group)
        fields = settings.model_dump(exclude={"kv_memory_fraction", "dtype"})
        dtype = _dtype_on(settings.dtype or self.dtype, settings.device, model_path)
        if settings.kv_memory_fraction is not None:
            from pdray.kv_memory import kv_cache_bytes_of_fraction  # torch, where it is needed

            fields["kv_cache_bytes"] = kv_cache_bytes_of_fraction(
                settings.kv_memory_fraction,
                settings.device,
                open_checkpoint(model_path).num_bytes_as(dtype),
                settings.tensor_parallel,
            )
        slo = self.slo
        return EngineConfig(dtype=dtype, itl_s=slo.itl_s, max_seat_wait_s=slo.ttft_s, **fields)

    def tier_config(self, pool: str) -> TierConfig | None:
        """What a worker of this pool has below its device."""
        tiers = self.pools[pool].tiers
        if tiers is None:
            return None
        return TierConfig(
            host_bytes=tiers.host_bytes,
            disk_bytes=tiers.disk_bytes,
            disk_path=None if tiers.disk_path is None else Path(tiers.disk_path).expanduser(),
            session_ttl_s=tiers.session_ttl_s,
        )


def _dtype_on(dtype: Dtype, device: str, model_path: Path) -> str:
    if dtype != "auto":
        return dtype
    from pdray.engine.device import auto_dtype  # torch, where it is needed

    return auto_dtype(open_checkpoint(model_path), device)


def parse_config(data: object, source: str = "config") -> PdrayConfig:
    """Checks ``data``, a mapping as YAML gives it; raises ConfigError with every problem."""
    mapping: Mapping[str, object] = require_mapping(data, source)
    try:
        config = PdrayConfig.model_validate(mapping)
    except ValidationError as error:
        raise config_error(source, validation_problems(error, PdrayConfig)) from None
    if problems := problems_of(config):
        raise config_error(source, problems)
    return config


def load_config(path: str | Path) -> PdrayConfig:
    """Reads and checks a YAML file; raises ConfigError. The files that it names by relative paths
    are looked for beside it; those of autoscaling policies are read as well."""
    config = parse_config(_with_policies(read_yaml(Path(path)), Path(path).parent), str(path))

    def beside(name: str | None) -> str | None:
        return name and str((Path(path).parent / Path(name).expanduser()).absolute())

    serve = {"keys_file": beside(config.serve.keys_file)}
    handles = {"secret_file": beside(config.handles.secret_file)}
    log = config.controller.event_log
    controller = {"event_log": log and log.model_copy(update={"folder": beside(log.folder)})}
    return config.model_copy(
        update={
            "controller": config.controller.model_copy(update=controller),
            "serve": config.serve.model_copy(update=serve),
            "handles": config.handles.model_copy(update=handles),
        }
    )


def _with_policies(data: object, folder: Path) -> object:
    """The config with each pool's policy in it instead of its file's name."""
    pools = data.get("pools") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(pools, Mapping):
        return data
    read = dict(pools)
    for name, pool in pools.items():
        file = pool.get("autoscaling") if isinstance(pool, Mapping) else None
        if isinstance(file, str):
            path = folder / Path(file).expanduser()
            load_policy(path)  # what is wrong with it is told with the policy's own name
            read[name] = {**pool, "autoscaling": read_yaml(path)}
    return {**data, "pools": read}


def cache_dir() -> Path:
    """Where prepared models live: PDRAY_CACHE_DIR, else the user's cache folder."""
    if own := os.environ.get("PDRAY_CACHE_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pdray"


def ray_address() -> str | None:
    """The Ray cluster that the environment names, as in a ``ray job submit`` entry point."""
    return os.environ.get("RAY_ADDRESS") or None


def ucx_settings() -> dict[str, str]:
    """What the environment tells UCX, below NIXL."""
    return {name: value for name, value in os.environ.items() if name.startswith("UCX_")}


def exports_traces() -> bool:
    """Whether OpenTelemetry's variables name somebody to send spans to; the exporter reads the
    rest of them itself. Raises ConfigError for what it cannot do."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "otlp" if any(os.environ.get(name) for name in endpoints) else "none"
    if _one_of("OTEL_TRACES_EXPORTER", "otlp", "none", default=default) == "none":
        return False
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        _one_of(name, "http/protobuf", default="http/protobuf")
    return True


def _one_of(name: str, *accepted: str, default: str) -> str:
    """An environment variable that may be empty, or missing."""
    value = os.environ.get(name) or default
    if value not in accepted:
        raise ConfigError(f"{name} = {value!r}: accepted: {', '.join(accepted)}")
    return value
