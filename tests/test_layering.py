"""The layers: who may import whom, and what a package may bring in when it is loaded.

Two ways, as each finds what the other cannot: the imports as written, also those inside
functions; and, in a fresh process, what importing a package really loads.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pdray"

CONFIG = {"config", "config_checks", "config_report", "config_sections", "config_yaml"}
CONFIG |= {"kv_memory", "scaling_config"}
PARTS: dict[str, set[str]] = {
    "core": set(),
    "grammar": {"core"},
    "kvcache": {"core"},
    "gguf_parsing": set(),
    "engine": {"core", "grammar", "kvcache", "gguf_parsing"},
    "transfer": {"core", "kvcache"},
    "link": {"core"},
    "policy": {"core"},
    "control": {"core", "policy"},
    "metrics": {"core"},
    "workload": {"core"},
    # Of engine how much goes into a step: see the test of what it loads.
    "simulation": {"core", "policy", "control", "workload", "metrics", "engine"},
    "worker": {"core", "kvcache", "engine", "transfer", "link", "metrics"},
    "frontend": {"core", "grammar", "kvcache", "link", "metrics", "gguf_parsing"},
    # What the checks ask for the names that registries know.
    "config": CONFIG | {"core", "engine", "kvcache", "policy", "transfer"},
    "demo_model": {"core"},
    "model_source": {"core", "config", "demo_model", "engine"},
    "event_log": {"core", "policy", "control"},
    "control_plane": {"core", "config", "control", "event_log", "policy"},
    "local": {"core", "config", "control", "control_plane", "worker", "frontend"},
    "cluster": {"core", "config", "model_source", "control", "control_plane", "worker", "frontend"}
    | {"engine", "link", "metrics"},
    "serve": {"core", "config", "grammar", "model_source", "cluster", "frontend", "metrics"},
    # Of serve what needs no Ray: see the test of what it loads.
    "doctor": {"core", "config", "demo_model", "engine", "kvcache", "model_source", "serve"}
    | {"transfer"},
    "profiling": {"core", "config", "doctor", "engine", "simulation", "transfer", "worker"},
    "cli": {"core", "config", "event_log", "model_source", "cluster", "doctor", "frontend"}
    | {"control", "control_plane", "policy", "profiling", "serve", "simulation", "workload"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""The parts of pdray that each part may import, besides itself."""

PLACES: dict[str, set[str]] = {
    "ray": {"cluster/", "serve/"},
    "fastapi": {"serve/"},
    "starlette": {"serve/"},
    "uvicorn": {"serve/"},
    "pydantic": {
        "config.py",
        "config_report.py",
        "config_sections.py",
        "scaling_config.py",
        "serve/",
    },
    "opentelemetry": {"serve/trace_exporter.py", "serve/tracing.py"},
    "nixl": {"transfer/nixl.py", "transfer/nixl_file.py"},
    "transformers": {
        "engine/model.py",
        "engine/pretrained.py",
        "engine/tensor_parallel/sharding.py",
        "frontend/text.py",
        "demo_model.py",
    },
    "cupy": {"kvcache/block_kernels.py"},
    "huggingface_hub": {"doctor/files.py", "model_source.py"},
    "triton": {"engine/"},
    "torch": {
        "demo_model.py",
        "doctor/visible_gpus.py",
        "doctor/probe_worker.py",
        "kv_memory.py",
        "kvcache/block_copy.py",
        "kvcache/block_kernels.py",
        "kvcache/staging.py",
        "kvcache/storage.py",
        "kvcache/tiers/disk.py",
        "kvcache/tiers/host.py",
        "engine/",
        "transfer/loopback.py",
        "worker/",
    },
}
"""Where alone a library may be imported. Others may be imported anywhere below ``core``."""

TIMELESS = ["core", "policy", "control", "simulation", "workload", "kvcache"]
TIMELESS += ["engine/scheduler.py", "engine/sequence.py", "engine/step_budget.py"]
"""Here time and randomness are arguments."""

ASYNC = {"link", "worker", "frontend", "cluster", "serve", "local", "cli"}
"""The parts that may be asynchronous."""


def sources(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places or (".",):
        path = PACKAGE / place
        found += [path] if path.suffix else sorted(path.rglob("*.py"))
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def part_of(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to; the config is one part."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "config" if part in CONFIG else part


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in the file, at any depth."""
    package = ("pdray", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            if module == "pdray":
                yield from ((node.lineno, f"pdray.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def at(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_part_has_its_place_in_the_table() -> None:
    assert {part_of(path) for path in sources()} <= PARTS.keys()


def test_parts_import_only_what_is_below_them() -> None:
    wrong = [
        f"{at(path, line)} imports {module}"
        for path in sources()
        for line, module in imports(path)
        if module.startswith("pdray.")
        and module != "pdray.__version__"
        and (target := module.split(".")[1])
        and ("config" if target in CONFIG else target) not in PARTS[part_of(path)] | {part_of(path)}
    ]
    assert wrong == []


def test_libraries_are_imported_only_where_they_belong() -> None:
    wrong = [
        f"{at(path, line)} imports {module}"
        for path in sources()
        for line, module in imports(path)
        if (places := PLACES.get(module.split(".")[0])) is not None
        and not any(str(path.relative_to(PACKAGE)).startswith(place) for place in places)
    ]
    assert wrong == []


@pytest.mark.parametrize("part", ["core", "policy", "control"])
def test_pure_parts_import_the_standard_library_only(part: str) -> None:
    wrong = [
        f"{at(path, line)} imports {module}"
        for path in sources(part)
        for line, module in imports(path)
        if module.split(".")[0] not in {*sys.stdlib_module_names, "pdray"}
    ]
    assert wrong == []


def calls_to_time_or_chance(path: Path) -> Iterator[str]:
    """Uses of ``time`` at all, and of ``random`` but for its class Random."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            if owner == "time" or (owner == "random" and name != "Random"):
                yield f"{at(path, node.lineno)} uses {owner}.{name}"
        elif isinstance(node, ast.ImportFrom) and node.module in {"time", "random"}:
            names = {alias.name for alias in node.names} - {"Random"}
            yield from (f"{at(path, node.lineno)} imports {name}" for name in sorted(names))


def test_time_and_randomness_are_arguments() -> None:
    paths = [path for path in sources(*TIMELESS) if path != PACKAGE / "core" / "clock.py"]
    assert [wrong for path in paths for wrong in calls_to_time_or_chance(path)] == []


def test_only_the_parts_that_wait_are_asynchronous() -> None:
    wrong = [
        at(path, node.lineno)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AsyncFunctionDef) and part_of(path) not in ASYNC
    ]
    assert wrong == []


def test_the_environment_is_read_in_one_file() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in {"environ", "getenv"}
    }
    # The others write what a library reads: Ray, NIXL with UCX, transformers.
    writers = {"serve/ray_session.py", "transfer/nixl.py", "engine/tensor_parallel/follower.py"}
    writers |= {"doctor/read_probe.py"}
    assert readers <= {"config.py"} | writers


NEVER = {"ray", "fastapi", "pydantic"}
HEAVY = {"torch", "nixl", "transformers"}
LOADS: list[tuple[str, set[str]]] = [
    ("core", NEVER | HEAVY | {"numpy", "msgspec"}),
    ("policy", NEVER | HEAVY | {"numpy", "msgspec"}),
    ("control", NEVER | HEAVY | {"numpy", "msgspec"}),
    ("link", NEVER | HEAVY),
    ("metrics", NEVER | HEAVY),
    ("workload", NEVER | HEAVY),
    ("simulation", NEVER | HEAVY),
    ("kvcache", NEVER | {"nixl", "transformers"}),
    ("frontend", NEVER | {"nixl"}),
    # transformers' model code loads pydantic where it is installed.
    ("engine", {"ray", "fastapi", "nixl"}),
    ("transfer", {"ray", "fastapi"}),
    ("worker", {"ray", "fastapi"}),
    ("profiling", {"ray", "fastapi"}),
]
"""Each Ray-free package and what importing all of it must not load. One process imports them in
this order, so what one may load, those after it may too."""

PROBE = """
import importlib, sys
for step in sys.argv[1:]:
    modules, watched = step.split(":")
    for name in modules.split(","):
        importlib.import_module(name)
    print(*sorted(set(watched.split(",")) & sys.modules.keys()))
"""


def loaded(*steps: tuple[list[str], set[str]]) -> list[str]:
    """A fresh process imports the modules of each step; which of those watched it has then."""
    texts = [f"{','.join(modules)}:{','.join(sorted(watched))}" for modules, watched in steps]
    command = [sys.executable, "-c", PROBE, *texts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[: len(steps)]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_importing_a_package_loads_nothing_from_above() -> None:
    steps = [([module_name(path) for path in sources(part)], banned) for part, banned in LOADS]
    parts = [part for part, _ in LOADS]
    assert dict(zip(parts, loaded(*steps), strict=True)) == dict.fromkeys(parts, "")


def test_what_the_simulator_follows_loads_no_torch() -> None:
    files = ["kvcache.block_pool", "engine.config", "engine.scheduler", "engine.sequence"]
    assert loaded(([f"pdray.{name}" for name in files], NEVER | HEAVY)) == [""]


def test_the_command_line_loads_nothing_heavy_for_its_help() -> None:
    assert loaded((["pdray.cli.main"], HEAVY | {"ray", "fastapi"})) == [""]


def test_the_doctor_loads_neither_ray_nor_what_it_has_no_use_for_yet() -> None:
    modules = [module_name(path) for path in sources("doctor")]
    assert loaded((modules, HEAVY | {"ray", "fastapi"})) == [""]
