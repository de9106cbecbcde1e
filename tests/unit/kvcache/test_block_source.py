"""The kernel that moves blocks, compiled for a Hopper GPU where CUDA's compiler is installed."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from pdray.kvcache.block_source import source_of
from pdray.kvcache.layout import DTYPE_BYTES

PAIRS = list(itertools.product(DTYPE_BYTES, repeat=2))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_compiles_to_accesses_of_16_bytes(pair: tuple[str, str], tmp_path: Path) -> None:
    source, ptx = tmp_path / "blocks.cu", tmp_path / "blocks.ptx"
    source.write_text(source_of(*pair))
    command = ["nvcc", "-ptx", "-arch=sm_90", "-Werror", "all-warnings", "-o", ptx, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = ptx.read_text().splitlines()
    # Ids are read one by one; all else in fours of words.
    moved = [line for line in lines if "ld.global" in line or "st.global" in line]
    assert [line for line in moved if ".v4." not in line and "u64" not in line] == []
    from_four, to_four = (DTYPE_BYTES[dtype] // 2 for dtype in pair)
    assert sum("ld.global" in line and ".v4." in line for line in moved) == 4 * from_four
    assert sum("st.global" in line and ".v4." in line for line in moved) == 4 * to_four
