from __future__ import annotations

from pdray.control.prefix_directory import PrefixDirectory
from pdray.core.placement import KeptPrefix
from pdray.core.prefix_report import name_number
from pdray.core.request import WorkerId


def kept(name: bytes, worker_id: str = "w", num_tokens: int = 16) -> KeptPrefix:
    return KeptPrefix(name=name, num_tokens=num_tokens, worker_id=WorkerId(worker_id))


def numbers(names: bytes) -> list[int]:
    """Of names of one letter each."""
    return [name_number(bytes([name])) for name in names]


def test_the_longest_known_prefix_comes_first() -> None:
    directory = PrefixDirectory(8)
    short, long = kept(b"a", num_tokens=16), kept(b"c", "v", num_tokens=48)
    directory.put(short)
    directory.put(long)
    assert list(directory.find(numbers(b"abcd"))) == [long, short]
    assert list(directory.find(numbers(b"ab"))) == [short]
    assert list(directory.find(numbers(b"b"))) == list(directory.find([])) == []


def test_who_ended_there_last_has_it() -> None:
    directory = PrefixDirectory(8)
    directory.put(kept(b"a", "old"))
    directory.put(kept(b"a", "new"))
    assert [each.worker_id for each in directory.find(numbers(b"a"))] == ["new"]
    assert len(directory) == 1


def test_it_is_bounded_and_forgets_what_nobody_speaks_of() -> None:
    directory = PrefixDirectory(3)
    for name in (b"a", b"b", b"c"):
        directory.put(kept(name))
    list(directory.find(numbers(b"a")))
    directory.put(kept(b"b"))
    directory.put(kept(b"d"))
    assert len(directory) == 3
    assert [each.name for each in directory.find(numbers(b"abcd"))] == [b"d", b"b", b"a"]
