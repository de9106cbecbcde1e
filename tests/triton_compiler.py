"""Compiles a Triton kernel to machine code for a GPU that need not be there.

Run as a program, it reads kernels from its standard input as JSON, as the process that calls it
may be interpreting them: {"module", "kernel", "arguments", "warps", "stages"}, where an argument
is a type ("*bf16", "i64", "fp32"), or a constant. Answers with what each needs of the GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOPPER = ("cuda", 90, 32)


def compile_kernels(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a fresh process, without the interpreter. Raises AssertionError with its message."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_compiler"],
        cwd=ROOT,
        input=json.dumps(kernels),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def _compile(kernel: dict[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(kernel["module"]), kernel["kernel"])
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        argument = kernel["arguments"][name]
        is_type = isinstance(argument, str)
        signature[name] = argument if is_type else "constexpr"
        if not is_type:
            constants[(index,)] = argument
        elif argument.startswith("*") or name.endswith("_stride"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": kernel["warps"], "num_stages": kernel["stages"]}
    compiled = triton.compile(
        source, target=GPUTarget(*HOPPER), options={**options, "enable_fp_fusion": True}
    )
    return {"shared_bytes": compiled.metadata.shared, **_resources(compiled)}


def _resources(compiled: Any) -> dict[str, Any]:
    from triton.knobs import nvidia

    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "uses_warpgroup_mma": "wgmma" in ptx,
        "uses_mma": "mma.sync" in ptx,
        "copies_ahead": "cp.async" in ptx,
    }


if __name__ == "__main__":
    json.dump([_compile(kernel) for kernel in json.load(sys.stdin)], sys.stdout)
