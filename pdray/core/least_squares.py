"""Least squares of a few unknowns, none of them negative, from the normal equations."""

from __future__ import annotations

from collections.abc import Sequence

_NOTHING = 1e-30


def solve_nonnegative(
    products: Sequence[Sequence[float]],
    targets: Sequence[float],
    before: Sequence[float],
    stay: Sequence[float],
) -> list[float]:
    """``products`` times the answer is ``targets``. ``stay``: how strongly each part stays what it
    was ``before``, where the equations tell nothing else; of 1. A part that is in none of them
    stays."""
    answer = [part if products[i][i] < _NOTHING else 0.0 for i, part in enumerate(before)]
    fixed = [i for i, part in enumerate(before) if products[i][i] < _NOTHING]
    free = [i for i in range(len(before)) if products[i][i] >= _NOTHING]
    while free:
        # Each in units of its own, so that all weigh alike.
        units = [products[i][i] ** -0.5 for i in free]
        rows: list[list[float]] = []
        for i, unit in zip(free, units, strict=True):
            row = [products[i][j] * unit * other for j, other in zip(free, units, strict=True)]
            row[len(rows)] += stay[i]
            rest = targets[i] - sum(products[i][j] * answer[j] for j in fixed)
            rows.append([*row, rest * unit + stay[i] * before[i] / unit])
        found = _eliminate(rows)
        least = min(range(len(free)), key=found.__getitem__)
        if found[least] >= 0.0:
            for i, unit, value in zip(free, units, found, strict=True):
                answer[i] = value * unit
            break
        del free[least]
    return answer


def _eliminate(rows: list[list[float]]) -> list[float]:
    """Of a symmetric, positive definite matrix with the right-hand side as its last column."""
    size = len(rows)
    for pivot, row in enumerate(rows):
        for lower in rows[pivot + 1 :]:
            factor = lower[pivot] / row[pivot]
            for column in range(pivot, size + 1):
                lower[column] -= factor * row[column]
    found = [0.0] * size
    for index in reversed(range(size)):
        row = rows[index]
        known = sum(row[column] * found[column] for column in range(index + 1, size))
        found[index] = (row[size] - known) / row[index]
    return found
