"""What decode pulled is what prefill wrote, to the byte, in full and sliding-window groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdray.engine.sequence import Sequence
from pdray.local import LocalCluster
from tests.equivalence.families import WINDOW, save_family
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of


@pytest.fixture(scope="module")
def gemma3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    save_family("gemma3_groups", folder)
    return folder


@pytest.mark.parametrize("transport", ["loopback", "nixl"])
@pytest.mark.parametrize("num_prompt_tokens", [1, WINDOW, 150])
async def test_pulled_blocks_equal_their_owners(
    gemma3_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, num_prompt_tokens: int
) -> None:
    config = config_of(gemma3_path, transfer={"transport": transport})
    async with LocalCluster(config, gemma3_path) as cluster:
        (prefill,), (decode,) = cluster.workers_of("prefill"), cluster.workers_of("decode")
        lent: list[Sequence] = []
        compared: dict[bool, int] = {True: 0, False: 0}
        run, join = prefill.engine.add, decode.engine.add

        def compare_and_join(pulled: Sequence) -> None:
            """Before the acknowledgement arrives: the owner still holds its blocks."""
            for blocks in prefill.engine.published.of_prompt(lent[0], num_prompt_tokens):
                group = decode.engine.layout.groups[blocks.group_id]
                table = pulled.block_tables[blocks.group_id]
                for number, owners_id in enumerate(blocks.block_ids, blocks.first_block):
                    ours = decode.engine.storage.block(table.block_ids[number - table.first_block])
                    assert torch.equal(ours, prefill.engine.storage.block(owners_id))
                    assert ours.any()
                    compared[group.sliding_window is None] += 1
            join(pulled)

        monkeypatch.setattr(prefill.engine, "add", lambda each: (lent.append(each), run(each)))
        monkeypatch.setattr(decode.engine, "add", compare_and_join)
        (prompt,) = random_prompts([num_prompt_tokens])
        await tokens_of(cluster, request_of(prompt, 4))
    num_full_groups = sum(group.sliding_window is None for group in decode.engine.layout.groups)
    assert compared[True] == num_full_groups * -(-num_prompt_tokens // 16)
    # Of the others, only the blocks with one of the window's last positions.
    first = max(0, num_prompt_tokens - WINDOW + 1) // 16
    num_sliding_groups = len(decode.engine.layout.groups) - num_full_groups
    assert compared[False] == num_sliding_groups * (-(-num_prompt_tokens // 16) - first)
