"""Stop strings against a brute-force oracle that sees the whole text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from pdray.frontend.stop_strings import StopStrings

SMALL = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Looks at ever longer beginnings of the text: the first that ends with a stop string."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


def in_pieces(text: str, stops: list[str], cuts: list[int]) -> tuple[list[str], StopStrings]:
    matcher = StopStrings(stops)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = [matcher.push(text[start:end]) for start, end in pairwise(bounds)]
    return shown, matcher


@given(text=SMALL, stops=STOPS, cuts=st.lists(st.integers(0, 12), max_size=6))
@example(text="abab", stops=["bab", "aba"], cuts=[1, 2, 3])
@example(text="aab", stops=["ab"], cuts=[2])
def test_the_cut_is_the_oracles_for_any_split(text: str, stops: list[str], cuts: list[int]) -> None:
    shown, matcher = in_pieces(text, stops, cuts)
    assert ("".join(shown) + matcher.flush(), matcher.is_matched) == oracle(text, stops)


@given(text=SMALL, stops=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    shown, matcher = in_pieces(text, stops, [*range(len(text))])
    if matcher.is_matched:
        return
    held = text[len("".join(shown)) :]
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    starts = [text[k:] for k in range(len(text))]
    longest = max((len(s) for s in starts if any(x.startswith(s) for x in stops)), default=0)
    assert len(held) == longest


def test_nothing_is_shown_after_a_match() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("one EN") == "one "
    assert matcher.push("D two") == ""
    assert matcher.is_matched
    assert matcher.push(" three") == ""
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_through() -> None:
    matcher = StopStrings([])
    assert matcher.push("anything") == "anything"
    assert matcher.flush() == ""


def oracle_from(text: str, stops: list[str], num_exempt: int, is_shown: bool) -> tuple[str, bool]:
    """Only a stop string that ends beyond ``num_exempt`` characters counts."""
    for end in range(num_exempt + 1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if is_shown else end - len(stop)], True
    return text, False


@given(text=SMALL, stops=STOPS, num_exempt=st.integers(0, 12), is_shown=st.booleans())
@example(text="abab", stops=["ba", "abab"], num_exempt=3, is_shown=False)
@example(text="aab", stops=["ab", "aabb"], num_exempt=2, is_shown=True)
def test_a_beginning_that_may_not_end_the_text(
    text: str, stops: list[str], num_exempt: int, is_shown: bool
) -> None:
    num_exempt = min(num_exempt, len(text))
    matcher = StopStrings(stops, is_shown=is_shown)
    shown = [
        matcher.push(char, may_end=position >= num_exempt) for position, char in enumerate(text)
    ]
    expected = oracle_from(text, stops, num_exempt, is_shown)
    assert ("".join(shown) + matcher.flush(), matcher.is_matched) == expected
