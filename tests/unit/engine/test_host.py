from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from pdray.engine.host import prepare_host
from tests.engine_driver import engine_config

if sys.argv[1] == "prepared":
    prepare_host(engine_config())
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [torch.ones(2 << 20) for _ in range(3)]
    del layers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def count_faults(setting: str) -> list[int]:
    command = [sys.executable, "-c", COUNT_FAULTS, setting]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(number) for number in output.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")
def test_memory_that_a_step_freed_is_there_for_the_next() -> None:
    (plain_faults, _), (faults, num_threads) = count_faults("plain"), count_faults("prepared")
    # Where the heap's top happens to be in use, nothing goes back without our settings either.
    assert faults <= plain_faults / 10
    assert num_threads == 1
