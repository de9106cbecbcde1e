"""The fused Triton kernels compiled for a Hopper GPU, which compiling does not need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: here kernels are for the interpreter.
PROGRAM = """
import itertools

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pdray.engine.fusion import triton_kernels as kernels

SCALARS = dict.fromkeys(("eps", "branch_eps", "query_eps", "key_eps"), "fp32")


def check(kernel, pointers, **constants):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = pointers.get(name) or SCALARS.get(name, "i64")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]
    print(kernel.__name__, pointers, constants)


for dtype, block in itertools.product(("*bf16", "*fp16", "*fp32"), (64, 8192)):
    names = ("x_TD", "branch_TD", "residual_TD", "total_TD", "out_TD")
    rows = dict.fromkeys(names, dtype) | {"weight_D": "*fp32", "branch_weight_D": "*fp32"}
    check(kernels.rms_norm_kernel, rows, BLOCK=block)
    for flags in itertools.product((False, True), repeat=2):
        has = dict(zip(("HAS_BRANCH_NORM", "HAS_NORM"), flags))
        check(kernels.add_norms_kernel, rows, BLOCK=block, **has)
for activation in ("silu", "gelu_tanh", "gelu"):
    rows = {"x_TG": "*bf16", "out_TF": "*bf16"}
    check(kernels.gate_kernel, rows, ACTIVATION=activation, BLOCK=1024)
for has_norm, (half, rest) in itertools.product((False, True), ((64, 0), (16, 48))):
    names = ("query", "key", "query_weight", "key_weight", "cos", "sin")
    check(
        kernels.rotary_kernel,
        {name: "*bf16" for name in names},
        HAS_QUERY_NORM=has_norm,
        HAS_KEY_NORM=has_norm,
        HALF=half,
        REST=rest,
        HALF_BLOCK=half,
        REST_BLOCK=64,
        HEADS=16,
    )
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_sm_90() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 37
