from __future__ import annotations

from dataclasses import replace

from pdray.core.request import Request, WorkerId
from pdray.frontend.prefix_names import PrefixNames
from tests.local_cluster import random_prompts, request_of

PROMPT, ANSWER, QUESTION = random_prompts([40, 30, 20])
WORKER = WorkerId("w")


def names_of(request: Request) -> list[bytes]:
    names = PrefixNames(request, "m").names
    return [names[start : start + 8] for start in range(0, len(names), 8)]


def test_prompts_have_the_names_of_what_they_share() -> None:
    first, second = names_of(request_of(PROMPT)), names_of(request_of(PROMPT[:33] + QUESTION))
    assert len(first) == 2
    assert len(second) == 3
    assert first == second[:2]
    assert all(len(name) == 8 for name in second)
    assert names_of(request_of(PROMPT[:15])) == []


def test_tenants_share_no_name() -> None:
    first, second = (names_of(request_of(PROMPT, cache_salt=salt)) for salt in ("a", "b"))
    assert not set(first) & set(second)


def test_the_next_turn_knows_where_the_last_one_ended_by_name() -> None:
    kept = PrefixNames(request_of(PROMPT), "m").kept_by(WORKER, ANSWER)
    next_turn = names_of(request_of(PROMPT + ANSWER + QUESTION))
    # The prompt's end, and that of 69 tokens: the newest one has no KV.
    assert [each.num_tokens for each in kept] == [32, 64]
    assert [each.name for each in kept] == [next_turn[1], next_turn[3]]
    assert {each.worker_id for each in kept} == {WORKER}


def test_the_newest_token_does_not_count() -> None:
    prompt = request_of(PROMPT[:30])
    assert [each.num_tokens for each in PrefixNames(prompt, "m").kept_by(WORKER, [1, 2])] == [16]
    assert [each.num_tokens for each in PrefixNames(prompt, "m").kept_by(WORKER, [1, 2, 3])] == [
        16,
        32,
    ]
    assert PrefixNames(request_of([5]), "m").kept_by(WORKER, [1]) == []


def test_what_earlier_attempts_made_is_part_of_the_prompt() -> None:
    again = replace(request_of(PROMPT), output_token_ids=tuple(ANSWER))
    assert names_of(again) == names_of(request_of(PROMPT + ANSWER))
