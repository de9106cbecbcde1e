"""Names of pdray's actors: they say whose they are, and let none exist twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorHandle

from .handles import ControllerHandle, WorkerHandle

NAMESPACE = "pdray"


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    generation: str
    pool: str
    index: int


def application_prefix(application: str) -> str:
    return f"pdray:{application}:"


def controller_name(application: str, generation: str) -> str:
    return f"{application_prefix(application)}{generation}:controller"


def worker_name(application: str, generation: str, pool: str, index: int) -> str:
    """One name for one place in a pool: a worker can follow another there, never join it."""
    return f"{application_prefix(application)}{generation}:worker:{pool}:{index}"


def place_of(name: str, application: str) -> WorkerPlace | None:
    """Of a worker, of any generation; None for whatever else has the name."""
    generation, is_worker, rest = name.removeprefix(application_prefix(application)).partition(
        ":worker:"
    )
    pool, _, index = rest.rpartition(":")
    return WorkerPlace(generation, pool, int(index)) if is_worker else None


def largest_pools(places: Iterable[WorkerPlace]) -> dict[str, int]:
    """By pool, the most places that a generation has there."""
    sizes = Counter((place.pool, place.generation) for place in places)
    largest: dict[str, int] = {}
    for (pool, _), size in sizes.items():
        largest[pool] = max(size, largest.get(pool, 0))
    return largest


def is_controller(name: str) -> bool:
    return name.endswith(":controller")


async def living_actors(application: str) -> list[str]:
    """Names of all of this application's actors, those that wait for resources included."""
    named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    prefix = application_prefix(application)
    return sorted(
        actor["name"]
        for actor in named
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    )


async def find_controller(name: str) -> ControllerHandle | None:
    """None where no actor has this name (any more)."""
    return cast("ControllerHandle | None", await _find(name))


async def find_worker(name: str) -> WorkerHandle | None:
    """None where no actor has this name (any more)."""
    return cast("WorkerHandle | None", await _find(name))


async def _find(name: str) -> object:
    try:
        return await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
    except ValueError:
        return None


async def kill_actor(handle: WorkerHandle | ControllerHandle) -> None:
    """Ends an actor's process at once, or takes back its wish for resources."""
    await asyncio.to_thread(ray.kill, cast("ActorHandle[object]", handle))
