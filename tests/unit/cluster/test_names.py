from __future__ import annotations

from pdray.cluster.names import (
    WorkerPlace,
    controller_name,
    largest_pools,
    place_of,
    worker_name,
)


def test_a_workers_name_says_its_place() -> None:
    name = worker_name("chat", "g1", "decode:fast", 12)
    assert place_of(name, "chat") == WorkerPlace("g1", "decode:fast", 12)


def test_a_controller_has_no_place_in_a_pool() -> None:
    assert place_of(controller_name("chat", "g1"), "chat") is None


def test_a_pool_is_as_large_as_the_generation_that_has_most_of_it() -> None:
    sizes = {("g1", "prefill"): 3, ("g2", "prefill"): 1, ("g2", "decode"): 2}
    places = [
        WorkerPlace(generation, pool, index)
        for (generation, pool), size in sizes.items()
        for index in range(size)
    ]
    assert largest_pools(places) == {"prefill": 3, "decode": 2}
    assert largest_pools([]) == {}
