"""The processes of a tensor-parallel engine: how they begin, end, and end one another."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from pdray.core.errors import ConfigError, RankLostError, UnsupportedModelError
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import save_family
from tests.tiny_model import NUM_TOKENS

HANGS_S = 20.0
"""Longer than anything here takes; shorter than a collective waits for a rank."""


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def load_two(path: Path) -> tuple[Engine, psutil.Process]:
    before = children()
    engine = Engine.load(path, engine_config(tensor_parallel=2))
    (follower,) = set(children()) - set(before)
    return engine, follower


def long_sequence() -> Sequence:
    (prompt,) = random_prompts([20], vocab_size=NUM_TOKENS)
    return sequence_of(request_of(prompt, sampling_params(max_tokens=400)))


@pytest.mark.slow
def test_a_follower_ends_with_its_engine(tiny_model_path: Path) -> None:
    engine, follower = load_two(tiny_model_path)
    engine.close()
    assert not follower.is_running()
    engine.close()


@pytest.mark.slow
def test_a_rank_killed_between_steps_is_an_error_of_the_next(tiny_model_path: Path) -> None:
    engine, follower = load_two(tiny_model_path)
    with closing(engine):
        follower.kill()
        assert engine.wait_for_work(HANGS_S), "nobody was told"
        with pytest.raises(RankLostError, match="rank 1 was killed by SIGKILL"):
            engine.step()
    assert not follower.is_running()


@pytest.mark.slow
def test_a_rank_killed_in_a_step_is_an_error_of_it(tiny_model_path: Path) -> None:
    engine, follower = load_two(tiny_model_path)
    with closing(engine):
        engine.add(long_sequence())
        engine.step()
        # Stopped, it takes the batch and never joins in; rank 0 waits for it when it is killed.
        follower.suspend()
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {follower.pid}"])
        with pytest.raises(RankLostError, match="rank 1 was killed by SIGKILL"):
            engine.step()
        killer.wait()
    assert not follower.is_running()


@pytest.mark.slow
def test_a_rank_that_fails_says_why(tiny_model_path: Path) -> None:
    engine, follower = load_two(tiny_model_path)
    with closing(engine):
        assert engine.ranks is not None
        engine.ranks._followers[0].steps.send("not a batch")
        assert engine.wait_for_work(HANGS_S)
        with pytest.raises(RankLostError, match=r"rank 1 failed: AttributeError: .*str"):
            engine.step()
    assert not follower.is_running()


@pytest.mark.slow
def test_a_stopped_rank_does_not_outlive_its_engine(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdray.engine.tensor_parallel.ranks._EXIT_S", 0.2)
    engine, follower = load_two(tiny_model_path)
    follower.suspend()
    engine.close()
    assert not follower.is_running()


RANK_0 = """
import sys
from pathlib import Path
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from tests.engine_driver import engine_config
if __name__ == "__main__":
    engine = Engine.load(Path(sys.argv[1]), engine_config(tensor_parallel=2))
    print("loaded", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_followers_do_not_outlive_a_killed_rank_0(tiny_model_path: Path) -> None:
    command = [sys.executable, "-c", RANK_0, str(tiny_model_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lead:
        assert lead.stdout is not None
        assert lead.stdout.readline() == b"loaded\n"
        (follower,) = psutil.Process(lead.pid).children()
        lead.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([follower], HANGS_S) == ([follower], [])


def test_a_rank_that_dies_while_it_loads_is_an_error_of_loading(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    before = children()
    with pytest.raises(RankLostError, match="rank 1 ended by itself with exit code 1"):
        Engine.load(tiny_model_path, engine_config(tensor_parallel=2))
    assert children() == before


@pytest.mark.slow
def test_two_engines_of_one_process_have_ranks_of_their_own(tiny_model_path: Path) -> None:
    requests = [
        request_of(prompt, request_id=str(i))
        for i, prompt in enumerate(random_prompts([5, 30], vocab_size=NUM_TOKENS))
    ]
    one, _ = load_two(tiny_model_path)
    with closing(one):
        other, _ = load_two(tiny_model_path)
        with closing(other):
            assert generate(one, requests) == generate(other, requests)
        assert generate(one, requests[:1]) == generate(one, requests[:1])


def test_head_counts_that_do_not_divide_are_refused(tiny_model_path: Path) -> None:
    before = children()
    with pytest.raises(
        ConfigError,
        match="tensor_parallel: 3 does not divide the model's num_attention_heads = 4; "
        "accepted: 1, 2",
    ):
        Engine.load(tiny_model_path, engine_config(tensor_parallel=3))
    assert children() == before


def test_a_single_kv_head_is_not_split(demo_model_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="2 does not divide the model's num_key_value_heads = 1; accepted: 1"
    ):
        Engine.load(demo_model_path, engine_config(tensor_parallel=2))


def test_a_model_without_a_plan_is_refused(tmp_path: Path) -> None:
    save_family("gpt_oss_sinks", tmp_path)
    with pytest.raises(
        UnsupportedModelError,
        match="no tensor-parallel plan for the layers of gpt_oss; accepted: 1",
    ):
        Engine.load(tmp_path, engine_config(tensor_parallel=2))
