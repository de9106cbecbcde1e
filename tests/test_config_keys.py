"""The list of config keys, frozen: a new key is a promise, so it takes an edit here too."""

from __future__ import annotations

import re
from pathlib import Path

from pdray.config import EngineOverrides, EngineSettings, PdrayConfig
from pdray.config_report import all_keys

POLICY_KEYS = [
    "min_replicas",
    "max_replicas",
    "initial_replicas",
    "standby_replicas",
    "upscale_delay_s",
    "downscale_delay_s",
    "downscale_to_zero_delay_s",
    "metrics_interval_s",
    "look_back_period_s",
    "aggregation_function",
    "upscaling_factor",
    "downscaling_factor",
    "max_step_replicas",
    "cooldown_s",
    "slo.ttft_s",
    "slo.itl_s",
    "slo.percentile",
    "signals.*",
    "predictive",
    "schedule",
    "dry_run",
]

ENGINE_KEYS = [
    "block_size",
    "kv_cache_bytes",
    "kv_memory_fraction",
    "max_tokens_per_step",
    "max_batch_size",
    "max_model_len",
    "num_threads",
    "tensor_parallel",
    "attention_backend",
    "device",
    "dtype",
]

KEYS = [
    "model",
    "served_model_name",
    "dtype",
    "mode",
    "node_groups.*.resource",
    "node_groups.*.resources_per_worker.*",
    "node_groups.*.accelerator_type",
    "node_groups.*.labels.*",
    "node_groups.*.cost_per_hour",
    "node_groups.*.spot",
    *(f"node_groups.*.engine.{key}" for key in ENGINE_KEYS),
    "pools.*.role",
    "pools.*.replicas",
    *(f"pools.*.autoscaling.{key}" for key in POLICY_KEYS),
    "pools.*.node_groups",
    *(f"pools.*.engine.{key}" for key in ENGINE_KEYS),
    "pools.*.tiers.host_bytes",
    "pools.*.tiers.disk_bytes",
    "pools.*.tiers.disk_path",
    "pools.*.tiers.session_ttl_s",
    "roles.prefill.min",
    "roles.prefill.max",
    "roles.decode.min",
    "roles.decode.max",
    "slo.ttft_s",
    "slo.itl_s",
    "slo.percentile",
    "max_gpu_budget",
    "max_cost_per_hour",
    "transfer.transport",
    "transfer.weights",
    "transfer.lease_s",
    "controller.placement",
    "controller.early_refusal",
    "controller.max_queued_requests",
    "controller.queue_timeout_s",
    "controller.worker_lease_s",
    "controller.unused_exit_s",
    "controller.drain_timeout_s",
    "controller.termination_timeout_s",
    "controller.event_log.folder",
    "controller.event_log.max_bytes",
    "handles.secret_file",
    "handles.lease_s",
    "handles.max_fraction",
    "serve.application",
    "serve.host",
    "serve.port",
    "serve.route_prefix",
    "serve.ingress_replicas",
    "serve.max_ingress_replicas",
    "serve.max_ongoing_requests",
    "serve.slow_reader_tokens",
    "serve.startup_timeout_s",
    "serve.graceful_shutdown_timeout_s",
    "serve.keys_file",
    "serve.allow_anonymous",
    "serve.prefill_url",
]


def test_the_keys_are_these() -> None:
    assert all_keys(PdrayConfig) == KEYS


def test_a_node_group_can_override_every_engine_key() -> None:
    assert list(EngineOverrides.model_fields) == list(EngineSettings.model_fields)


def test_the_tables_in_the_readmes_have_every_key() -> None:
    root = Path(__file__).parents[1]
    tables = (root / "configs" / "README.md", root / "autoscaling" / "README.md")
    text = "".join(path.read_text() for path in tables)
    written = set(re.findall(r"`([a-z_.]+)`", text))
    short = {key: key.removesuffix(".*").rpartition(".")[2] for key in KEYS}
    assert [key for key in KEYS if not {key, short[key]} & written] == []
