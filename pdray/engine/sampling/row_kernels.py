"""Compiled loops over rows of logits on a CPU: weights, draws, likeliest tokens, ranks.

Suffixes as in blocks.py. A body's arguments begin with [R, V, logits_SV, rows_R, maxima_SB]:
rows are taken by their numbers, so that nothing is copied. What a row gives depends on that row
alone, whichever thread has it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import FAST, fast_exp, rows
from pdray.engine.openmp import arguments, share
from pdray.engine.sampling.blocks import BLOCK

_FP32 = np.empty(0, np.float32)
_FP64 = np.empty(0, np.float64)
_INT64 = np.empty(0, np.int64)
_BELOW_NOISE = np.float32(-50.0)
"""A whole vocabulary of weights of e^-50 is less than 53 bits of noise can fall on."""
_RUN = 8
_LOWEST = np.float32(np.finfo(np.float32).min)


@njit(inline="always")
def _num_blocks(vocab_size):
    return (vocab_size + BLOCK - 1) // BLOCK


@njit(inline="always")
def _block(logits, row, vocab_size, block):
    """One block of a row; the last may be shorter."""
    start = block * BLOCK
    size = min(BLOCK, vocab_size - start)
    return rows(logits + 4 * (row * vocab_size + start), size, _FP32)


@njit(inline="always")
def _maxima(maxima, row, vocab_size):
    num_blocks = _num_blocks(vocab_size)
    return rows(maxima + 4 * row * num_blocks, num_blocks, _FP32)


@njit(fastmath=FAST, error_model="numpy", inline="always")
def _weight(logit, best, scale):
    difference = (logit - best) * scale
    return fast_exp(difference) if difference > _BELOW_NOISE else np.float32(0.0)


@njit(fastmath=FAST, error_model="numpy")
def _sum_weights(logits, best, scale):
    total = np.float32(0.0)
    for place in range(logits.shape[0]):
        total += _weight(logits[place], best, scale)
    return total


def add_weights(address):
    """[..., best_R, temperatures_R, sums_RB out]: the weights of each block's tokens, added up."""
    args = arguments(address)
    num_rows, vocab_size = args[0], args[1]
    num_blocks = _num_blocks(vocab_size)
    rows_R = rows(args[3], num_rows, _INT64)
    best_R, temperatures_R = rows(args[5], num_rows, _FP32), rows(args[6], num_rows, _FP32)
    sums = rows(args[7], num_rows * num_blocks, _FP64)
    start, end = share(num_rows * num_blocks)
    for item in range(start, end):
        r, block = item // num_blocks, item % num_blocks
        best, scale = best_R[r], np.float32(1.0) / temperatures_R[r]
        sums[item] = 0.0
        if (_maxima(args[4], rows_R[r], vocab_size)[block] - best) * scale > _BELOW_NOISE:
            sums[item] = _sum_weights(_block(args[2], rows_R[r], vocab_size, block), best, scale)


@njit
def _first_above(weights, target):
    """The first place whose cumulative sum is above the target, and the sum before it; where
    rounding leaves none, the last that adds something."""
    before = 0.0
    last, before_last = 0, 0.0
    for place in range(weights.shape[0]):
        if weights[place] > 0.0:
            last, before_last = place, before
            if before + weights[place] > target:
                break
        before += weights[place]
    return last, before_last


def draw(address):
    """[..., best_R, temperatures_R, sums_RB, noise_R, token_ids_R out]: the block that the noise
    falls in, then the token in it."""
    args = arguments(address)
    num_rows, vocab_size = args[0], args[1]
    num_blocks = _num_blocks(vocab_size)
    rows_R = rows(args[3], num_rows, _INT64)
    best_R, temperatures_R = rows(args[5], num_rows, _FP32), rows(args[6], num_rows, _FP32)
    noise_R, token_ids_R = rows(args[8], num_rows, _FP64), rows(args[9], num_rows, _INT64)
    weights = np.empty(BLOCK, np.float64)
    start, end = share(num_rows)
    for r in range(start, end):
        sums_B = rows(args[7] + 8 * r * num_blocks, num_blocks, _FP64)
        total = 0.0
        for block in range(num_blocks):
            total += sums_B[block]
        target = noise_R[r] * total
        block, before = _first_above(sums_B, target)
        logits = _block(args[2], rows_R[r], vocab_size, block)
        scale = np.float32(1.0) / temperatures_R[r]
        size = logits.shape[0]
        for place in range(size):
            weights[place] = _weight(logits[place], best_R[r], scale)
        place, _ = _first_above(weights[:size], target - before)
        token_ids_R[r] = block * BLOCK + place


@njit
def _nth_largest(values, n):
    """Of ``n`` from 1; leaves ``values`` in another order. Hoare's quickselect."""
    low, high, place = 0, values.shape[0] - 1, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@njit
def _threshold(maxima_B, count):
    """At least ``count`` of the blocks, and few more, have a token that is as likely. Found in
    the maxima of runs of blocks, where those are many enough."""
    num_runs = maxima_B.shape[0] // _RUN
    if num_runs < 2 * count:
        return max(_nth_largest(maxima_B.copy(), count), _LOWEST)
    run_maxima = np.empty(num_runs, np.float32)
    for run in range(num_runs):
        run_maxima[run] = maxima_B[run]
        for step in range(1, _RUN):
            run_maxima[run] = max(run_maxima[run], maxima_B[step * num_runs + run])
    return max(_nth_largest(run_maxima, count), _LOWEST)


@njit
def _collect(logits, row, vocab_size, maxima_B, threshold):
    """The tokens of a row from a threshold on, in the order of their ids."""
    num_blocks = 0
    for block in range(maxima_B.shape[0]):
        num_blocks += maxima_B[block] >= threshold
    found = np.empty(num_blocks * BLOCK, np.float32)
    ids = np.empty(num_blocks * BLOCK, np.int64)
    count = 0
    for block in range(maxima_B.shape[0]):
        if maxima_B[block] >= threshold:
            values = _block(logits, row, vocab_size, block)
            for place in range(values.shape[0]):
                if values[place] >= threshold:
                    found[count] = values[place]
                    ids[count] = block * BLOCK + place
                    count += 1
    return found[:count], ids[:count]


@njit
def _keep(found, ids, threshold, logits_K, ids_K):
    """All above the threshold, and as many that equal it as there is room for."""
    count = 0
    for place in range(found.shape[0]):
        if found[place] > threshold:
            logits_K[count], ids_K[count] = found[place], ids[place]
            count += 1
    for place in range(found.shape[0]):
        if found[place] == threshold and count < logits_K.shape[0]:
            logits_K[count], ids_K[count] = found[place], ids[place]
            count += 1
    logits_K[count:] = -np.inf
    ids_K[count:] = 0


def largest(address):
    """[..., K, logits_RK out, ids_RK out]: in any order; past the tokens that are possible, token
    0 at minus infinity. K is below the number of blocks."""
    args = arguments(address)
    num_rows, vocab_size, count = args[0], args[1], args[5]
    rows_R = rows(args[3], num_rows, _INT64)
    start, end = share(num_rows)
    for r in range(start, end):
        maxima_B = _maxima(args[4], rows_R[r], vocab_size)
        # K blocks have a token from here on, so that K tokens are, and no other block has one.
        threshold = _threshold(maxima_B, count)
        found, ids = _collect(args[2], rows_R[r], vocab_size, maxima_B, threshold)
        if found.shape[0] > count:
            threshold = _nth_largest(found.copy(), count)
        logits_K = rows(args[6] + 4 * r * count, count, _FP32)
        ids_K = rows(args[7] + 8 * r * count, count, _INT64)
        _keep(found, ids, threshold, logits_K, ids_K)


@njit(inline="always")
def _num_above(logits, bound):
    count = np.int32(0)
    for place in range(logits.shape[0]):
        count += np.int32(logits[place] > bound)
    return count


def count_above(address):
    """[..., logits_R, counts_R out]: the tokens of a row that are likelier than such a logit."""
    args = arguments(address)
    num_rows, vocab_size = args[0], args[1]
    rows_R = rows(args[3], num_rows, _INT64)
    bounds_R, counts_R = rows(args[5], num_rows, _FP32), rows(args[6], num_rows, _INT64)
    start, end = share(num_rows)
    for r in range(start, end):
        maxima_B = _maxima(args[4], rows_R[r], vocab_size)
        counts_R[r] = 0
        for block in range(maxima_B.shape[0]):
            if maxima_B[block] > bounds_R[r]:
                logits = _block(args[2], rows_R[r], vocab_size, block)
                counts_R[r] += _num_above(logits, bounds_R[r])
