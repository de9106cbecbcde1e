"""The config refuses what cannot be, and says file, key, value and what is accepted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pdray.config import PdrayConfig, cache_dir, load_config, parse_config, ray_address
from pdray.core.errors import ConfigError
from pdray.core.snapshot import Role
from pdray.engine.checkpoint import open_checkpoint
from pdray.engine.config import EngineConfig
from pdray.serve.address import check_side_by_side, url_of

CONFIGS = Path(__file__).parents[2] / "configs"
DEPLOY_FILES = [CONFIGS / "serve.yaml", CONFIGS / "serve-service.yaml"]
PDRAY_CONFIGS = sorted(set(CONFIGS.glob("*.yaml")) - {*DEPLOY_FILES})
Data = dict[str, Any]


def good() -> Data:
    engine = {"kv_cache_bytes": "64MiB", "max_tokens_per_step": 128, "num_threads": 1}
    return {
        "model": "demo",
        "node_groups": {"a": {}, "b": {"resource": "b-machine"}},
        "pools": {
            "prefill": {"role": "prefill", "node_groups": ["a", "b"], "engine": dict(engine)},
            "decode": {"role": "decode", "node_groups": ["b"], "engine": dict(engine)},
        },
    }


def put(data: Data, key: str, value: object) -> Data:
    """A copy of ``data`` with ``value`` at a dotted key."""
    data = copy.deepcopy(data)
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return data


def error_of(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "my.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", PDRAY_CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_accepted(path: Path) -> None:
    config = load_config(path)
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", DEPLOY_FILES, ids=lambda path: path.name)
def test_a_serve_deploy_file_names_shipped_configs_and_the_builder(path: Path) -> None:
    from pdray.config_yaml import read_yaml

    data = read_yaml(path)
    assert isinstance(data, dict)
    for application in data["applications"]:
        config = load_config(CONFIGS.parent / application["args"]["config"])
        assert application["import_path"] == "pdray.serve:build_app"
        assert application["name"] == config.serve.application
        assert application["route_prefix"] == config.serve.route_prefix
        assert data["http_options"]["port"] == config.serve.port


def test_the_two_applications_of_service_fit_together() -> None:
    prefill, decode = (load_config(CONFIGS / f"service-{x}.yaml") for x in ("prefill", "decode"))
    assert (prefill.phases, decode.phases) == (Role.PREFILL, Role.DECODE)
    assert prefill.handles.secret_file == decode.handles.secret_file == str(CONFIGS / "secret")
    assert decode.serve.prefill_url == url_of(prefill)
    check_side_by_side([prefill, decode])
    with pytest.raises(ConfigError, match=r"serve\.application .* another one in each config"):
        check_side_by_side([prefill, prefill])


def test_a_prefill_application_has_no_other(tmp_path: Path) -> None:
    data = put(good(), "mode", "service") | {"handles": {"secret_file": "x"}}
    del data["pools"]["decode"]
    assert parse_config(data).phases is Role.PREFILL
    assert "leave it out here" in error_of(put(data, "serve.prefill_url", "http://x"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("modle", "demo", ["modle: unknown key", "did you mean mode", "known keys", "pools"]),
        (
            "pools.prefill.engine.blok_size",
            16,
            ["pools.prefill.engine.blok_size: unknown key", "did you mean block_size?"],
        ),
        ("lora", {}, ["lora: LoRA adapters are not supported", "merged into"]),
        (
            "pools.prefill.engine.enable_lora",
            True,
            ["enable_lora: LoRA adapters are not supported"],
        ),
        ("pools.prefill.engine.max_loras", 2, ["max_loras: LoRA adapters are not supported"]),
        ("lora_modules", ["a=b"], ["lora_modules: LoRA adapters are not supported"]),
        ("speculative", {}, ["speculative: speculative decoding is not supported"]),
        ("speculative_config", {}, ["speculative_config: speculative decoding is not"]),
        ("pools.decode.draft_model", "x", ["pools.decode.draft_model: speculative decoding is"]),
        ("limit_mm_per_prompt", {}, ["limit_mm_per_prompt: multimodal input is not supported"]),
        ("pools.prefill.engine.block_size", 24, ["block_size = 24", "multiple of 16"]),
        ("pools.prefill.engine.block_size", "16", ["block_size = '16'", "valid integer"]),
        ("pools.prefill.engine.block_size", True, ["block_size = True", "valid integer"]),
        ("pools.prefill.engine.tensor_parallel", 0, ["tensor_parallel = 0", "greater than"]),
        ("pools.prefill.engine.dtype", "int8", ["dtype = 'int8'", "'float32'"]),
        ("pools.prefill.engine.kv_cache_bytes", "1 Gib", ["'1 Gib'", "512MiB"]),
        ("pools.prefill.engine.kv_cache_bytes", 0, ["kv_cache_bytes = 0", "greater than 0"]),
        ("pools.prefill.engine.kv_cache_bytes", None, ["exactly one", "kv_memory_fraction"]),
        ("pools.prefill.engine.kv_memory_fraction", 0.5, ["exactly one", "kv_cache_bytes"]),
        ("pools.prefill.engine.max_tokens_per_step", 8, ["= 8", "at least block_size, 16"]),
        ("pools.prefill.engine.max_model_len", 0, ["max_model_len = 0", "greater than or equal"]),
        ("pools.prefill.engine.device", "gpu", ["device = 'gpu'", "accepted: cpu, cuda"]),
        ("pools.prefill.engine.device", "cuda", ["node_groups.a.resources_per_worker", "GPU: 1"]),
        (
            "pools.prefill.tiers",
            {"host_byte": 1},
            ["tiers.host_byte: unknown key", "did you mean host_bytes?", "known keys: host_bytes"],
        ),
        ("pools.prefill.tiers", {}, ["pools.prefill.tiers.host_bytes"]),
        (
            "pools.prefill.tiers",
            {"host_bytes": "1GiB", "disk_path": "/kv"},
            ["tiers.disk_bytes, pools.prefill.tiers.disk_path", "both or neither"],
        ),
        ("pools.prefill.role", "both", ["role = 'both'", "'prefill', 'decode' or 'mixed'"]),
        ("pools.prefill.replicas", 0, ["pools.prefill.replicas = 0"]),
        ("pools.prefill.node_groups", [], ["node_groups = []", "at least one"]),
        ("pools.prefill.node_groups", ["a", "a"], ["each group once"]),
        ("pools.prefill.node_groups", ["aa"], ["= 'aa'", "accepted: a, b"]),
        ("pools.Prefill", {}, ["pools.Prefill", "lower-case"]),
        ("node_groups.a.engine", {"max_batch_size": -1}, ["node_groups.a.engine.max_batch_size"]),
        ("node_groups.a.resources_per_worker", {"CPU": 0}, ["resources_per_worker.CPU = 0"]),
        ("serve.host", "0.0.0.0", ["serve.host = '0.0.0.0'", "serve.keys_file", "allow_anonymous"]),
        ("serve.host", "::", ["serve.host = '::'", "serve.keys_file"]),
        ("serve", {"keys_file": "k", "allow_anonymous": True}, ["allow_anonymous = True"]),
        ("mode", "soft", ["pools.prefill.role = 'prefill'", "mixed: in mode soft"]),
        ("mode", "service", ["pools of one role", "handles.secret_file = None", "openssl rand"]),
        ("handles.secret_file", "x", ["handles.secret_file = 'x'", "but in mode service"]),
        ("serve.prefill_url", "http://x", ["serve.prefill_url", "but in mode service"]),
        ("serve.prefill_url", "x:80", ["serve.prefill_url = 'x:80'", "should be a URL"]),
        ("handles.max_fraction", 1.0, ["handles.max_fraction = 1.0", "less than 1"]),
        ("mode", "poold", ["mode = 'poold'", "'soft', 'pooled', 'auto'"]),
        ("dtype", "int8", ["dtype = 'int8'", "'float32'"]),
        ("slo.percentile", 99, ["slo.percentile = 99", "less than 1"]),
        ("slo.ttft_s", float("inf"), ["slo.ttft_s = inf", "finite"]),
        ("pools.decode.engine.attention_backend", "spda", ["did you mean sdpa?"]),
        ("transfer.transport", "nixel", ["transport = 'nixel'", "did you mean nixl?"]),
        (
            "controller.placement",
            "best",
            ["placement = 'best'", "cost, least_loaded"],
        ),
        ("serve.port", 70000, ["serve.port = 70000", "65535"]),
        ("serve.route_prefix", "v1", ["serve.route_prefix = 'v1'", "start with /"]),
        ("serve.application", "my app", ["serve.application = 'my app'", "lower-case"]),
    ],
)
def test_what_cannot_be_is_refused_with_key_value_and_what_is_accepted(
    key: str, value: object, words: list[str]
) -> None:
    text = error_of(put(good(), key, value))
    assert text.startswith("my.yaml: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("device", "resources", "transport", "words"),
    [
        ("cuda", {"GPU": 1.0}, "nixl", ["resources_per_worker", "should have GPU: 2"]),
        ("cuda:1", {"GPU": 2.0}, "nixl", ["engine.device = 'cuda:1'", "cpu or cuda"]),
        ("cpu", {"CPU": 1.0}, "loopback", ["transfer.transport = 'loopback'", "nixl"]),
    ],
)
def test_what_several_ranks_cannot_have_is_refused(
    device: str, resources: dict[str, float], transport: str, words: list[str]
) -> None:
    data = put(good(), "transfer", {"transport": transport})
    for pool in ("prefill", "decode"):
        data = put(data, f"pools.{pool}.engine.tensor_parallel", 2)
        data = put(data, f"pools.{pool}.engine.device", device)
    for group in ("a", "b"):
        data = put(data, f"node_groups.{group}.resources_per_worker", resources)
    text = error_of(data)
    for word in words:
        assert word in text


def test_tiers_and_several_ranks_do_not_go_together() -> None:
    data = good()
    for pool in data["pools"].values():
        pool["engine"]["tensor_parallel"] = 2
    data["pools"]["decode"]["tiers"] = {"host_bytes": "1GiB"}
    with pytest.raises(ConfigError, match=r"decode.engine.tensor_parallel = 2.*tiers hold"):
        parse_config(data)


def test_a_pools_tiers_are_in_bytes() -> None:
    data = good()
    disk = {"disk_bytes": "1TiB", "disk_path": "~/kv"}
    data["pools"]["decode"]["tiers"] = {"host_bytes": "64GiB", "session_ttl_s": 60.0} | disk
    config = parse_config(data)
    assert config.tier_config("prefill") is None
    tiers = config.tier_config("decode")
    assert tiers is not None
    assert (tiers.host_bytes, tiers.disk_bytes) == (64 * 2**30, 2**40)
    assert tiers.disk_path == Path.home() / "kv"
    assert tiers.session_ttl_s == 60.0


def test_a_missing_key_is_named() -> None:
    data = good()
    del data["model"]
    assert "model: is missing" in error_of(data)


def test_all_problems_are_told_at_once() -> None:
    text = error_of(put(put(good(), "dtype", "x"), "slo.itl_s", -1))
    assert "2 problems" in text
    assert "dtype" in text
    assert "slo.itl_s" in text


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_pooled_mode_needs_both_phases(role: str) -> None:
    data = good()
    del data["pools"][role]
    assert f"needs a pool with role {role} or mixed" in error_of(data)


def test_one_mixed_pool_is_enough() -> None:
    data = put(good(), "pools.prefill.role", "mixed")
    del data["pools"]["decode"]
    assert parse_config(data).pools["prefill"].role == "mixed"


@pytest.mark.parametrize("data", [None, [], "model: demo", 3])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    assert "should be a mapping" in error_of(data)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512MiB", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("2 GB", 2 * 10**9), ("7", 7), (9, 9)],
)
def test_sizes_are_numbers_or_text_with_a_unit(text: object, num_bytes: int) -> None:
    config = parse_config(put(good(), "pools.decode.engine.kv_cache_bytes", text))
    assert config.pools["decode"].engine.kv_cache_bytes == num_bytes


def test_yaml_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("model: demo\npools: {a: [}\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: line 2, column \d+: not valid YAML"):
        load_config(path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("model: demo\ndtype: float32\nmodel: other\n")
    with pytest.raises(ConfigError, match=r"line 3.*'model' stands here twice"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_engine_config_has_the_pools_settings_in_bytes(tiny_model_path: Path) -> None:
    assert parse_config(good()).engine_config("prefill", "a", tiny_model_path) == EngineConfig(
        block_size=16,
        kv_cache_bytes=64 * 2**20,
        max_tokens_per_step=128,
        max_batch_size=16,
        max_model_len=4096,
        attention_backend="auto",
        device="cpu",
        dtype="float32",
        num_threads=1,
        tensor_parallel=1,
        itl_s=0.2,
        max_seat_wait_s=2.0,
    )


def test_a_dtype_that_is_named_is_taken_whatever_the_model_is_stored_in(
    tiny_model_path: Path,
) -> None:
    config = parse_config(good() | {"dtype": "bfloat16"})
    assert config.engine_config("prefill", "a", tiny_model_path).dtype == "bfloat16"


def test_pools_may_differ_in_ranks_block_size_and_dtype(tiny_model_path: Path) -> None:
    data = good() | {"dtype": "float32"}
    for key, value in {"tensor_parallel": 2, "block_size": 32, "dtype": "bfloat16"}.items():
        data = put(data, f"pools.decode.engine.{key}", value)
    config = parse_config(data)
    prefill = config.engine_config("prefill", "a", tiny_model_path)
    decode = config.engine_config("decode", "a", tiny_model_path)
    assert (prefill.tensor_parallel, prefill.block_size, prefill.dtype) == (1, 16, "float32")
    assert (decode.tensor_parallel, decode.block_size, decode.dtype) == (2, 32, "bfloat16")


def test_a_node_groups_own_settings_go_over_the_pools(tiny_model_path: Path) -> None:
    data = put(good(), "node_groups.b.engine", {"max_batch_size": 3, "kv_cache_bytes": "1MiB"})
    config = parse_config(data)
    assert config.engine_config("prefill", "a", tiny_model_path).max_batch_size == 16
    own = config.engine_config("prefill", "b", tiny_model_path)
    assert (own.max_batch_size, own.kv_cache_bytes) == (3, 2**20)
    assert own.max_tokens_per_step == 128


def test_a_groups_memory_fraction_replaces_the_pools_bytes(tiny_model_path: Path) -> None:
    def kv_cache_bytes(fraction: float, dtype: str) -> int:
        data = put(good(), "node_groups.b.engine", {"kv_memory_fraction": fraction})
        config = parse_config(data | {"dtype": dtype})
        return config.engine_config("prefill", "b", tiny_model_path).kv_cache_bytes

    weights = open_checkpoint(tiny_model_path).num_bytes_as("float32")
    half, quarter = kv_cache_bytes(0.5, "float32"), kv_cache_bytes(0.25, "float32")
    assert half + weights == pytest.approx(2 * (quarter + weights), abs=2)
    # Of the weights' bytes as they will be in memory, not as they are on the disk.
    assert kv_cache_bytes(0.5, "bfloat16") == half + weights // 2


def test_a_fraction_that_the_weights_use_up_is_refused(tiny_model_path: Path) -> None:
    config = parse_config(put(good(), "node_groups.b.engine", {"kv_memory_fraction": 1e-9}))
    with pytest.raises(ConfigError, match="no memory is left for KV"):
        config.engine_config("prefill", "b", tiny_model_path)


def renamed(change: Callable[[Data], Data]) -> bool:
    return parse_config(change(good())).generation != parse_config(good()).generation


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "./other"),
        ("dtype", "bfloat16"),
        ("pools.prefill.replicas", 2),
        ("pools.decode.engine.max_batch_size", 3),
        ("node_groups.a.engine", {"num_threads": 2}),
        ("transfer.lease_s", 5),
        ("controller.placement", "round_robin"),
    ],
)
def test_what_workers_run_makes_another_generation(key: str, value: object) -> None:
    assert renamed(lambda data: put(data, key, value))


@pytest.mark.parametrize(
    ("key", "value"), [("serve.port", 9000), ("serve.host", "::1"), ("served_model_name", "x")]
)
def test_what_only_the_ingress_reads_does_not(key: str, value: object) -> None:
    assert not renamed(lambda data: put(data, key, value))


def test_the_order_of_keys_does_not_make_another_generation() -> None:
    assert not renamed(lambda data: dict(reversed(data.items())))


@pytest.mark.parametrize(
    ("model", "own", "name"),
    [
        ("demo", None, "gemma-3-270m"),
        ("Qwen/Qwen3-0.6B", None, "Qwen3-0.6B"),
        ("/models/llama/", None, "llama"),
        ("demo", "mine", "mine"),
    ],
)
def test_the_name_that_clients_use(model: str, own: str | None, name: str) -> None:
    data = put(put(good(), "model", model), "served_model_name", own)
    assert parse_config(data).model_name == name


def test_the_config_cannot_be_changed() -> None:
    config: PdrayConfig = parse_config(good())
    with pytest.raises(ValueError, match="frozen"):
        config.model = "other"  # type: ignore[misc]


def test_environment_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDRAY_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("PDRAY_CACHE_DIR")
    assert cache_dir() == tmp_path / "pdray"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert ray_address() == "auto"
