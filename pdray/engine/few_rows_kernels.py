"""The loops of products of a few rows, compiled by numba. Panels as in few_rows.py."""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import aligned, narrow, rows, widen
from pdray.engine.openmp import arguments, share
from pdray.engine.vectors import LANES, packed_product

PANEL_OUTPUTS = 64

_MAX_TILE_ROWS = 6
"""Times four vectors: 24 of the 32 registers hold sums."""
_PANEL_ROW_BYTES = 4 * PANEL_OUTPUTS
_CHUNK_INPUTS = 64
"""Or pairs of them: 16 KiB of a panel."""
_FP32 = np.empty(0, np.float32)
_BF16 = np.empty(0, np.int16)

_one, _two, _three, _four, _five, _six = (
    packed_product(num_rows, PANEL_OUTPUTS // LANES) for num_rows in range(1, _MAX_TILE_ROWS + 1)
)


@njit
def _multiply(num_rows, data, row_bytes, panel, num_inputs, sums, elements):
    step, ahead = _PANEL_ROW_BYTES, panel + _CHUNK_INPUTS * _PANEL_ROW_BYTES
    if num_rows == 6:
        _six(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)
    elif num_rows == 5:
        _five(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)
    elif num_rows == 4:
        _four(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)
    elif num_rows == 3:
        _three(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)
    elif num_rows == 2:
        _two(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)
    else:
        _one(elements, data, row_bytes, panel, step, num_inputs, sums, step, ahead)


@njit
def _multiply_panel(data, num_rows, num_inputs, panel, sums, elements):
    tiles = (num_rows + _MAX_TILE_ROWS - 1) // _MAX_TILE_ROWS
    # One tile's sums stay in registers all the way; of more, chunks are read by each in turn.
    chunk_inputs = num_inputs if tiles == 1 else _CHUNK_INPUTS
    for start in range(0, num_inputs, chunk_inputs):
        count = min(chunk_inputs, num_inputs - start)
        chunk = panel + start * _PANEL_ROW_BYTES
        for tile in range(tiles):
            first, last = num_rows * tile // tiles, num_rows * (tile + 1) // tiles
            row = data + (first * num_inputs + start) * 4
            tile_sums = sums + first * _PANEL_ROW_BYTES
            _multiply(last - first, row, num_inputs * 4, chunk, count, tile_sums, elements)


@njit
def _start(sums, bias):
    for row in range(sums.shape[0]):
        for i in range(PANEL_OUTPUTS):
            sums[row, i] = widen(bias[i])


@njit
def _finish(out, sums, like):
    for i in range(PANEL_OUTPUTS):
        out[i] = narrow(sums[i], like)


@njit
def _multiply_panels(args, elements):
    num_rows, num_inputs, num_outputs, bias, out = args[0], args[1], args[2], args[5], args[6]
    like, num_bytes = elements.dtype.type(0), elements.itemsize
    sums = aligned(num_rows * PANEL_OUTPUTS).reshape(num_rows, PANEL_OUTPUTS)
    no_bias = np.zeros(PANEL_OUTPUTS, elements.dtype)
    begin, end = share(num_outputs // PANEL_OUTPUTS)
    for index in range(begin, end):
        column = index * PANEL_OUTPUTS * num_bytes
        _start(sums, rows(bias + column, PANEL_OUTPUTS, elements) if bias != 0 else no_bias)
        panel = args[4] + index * num_inputs * _PANEL_ROW_BYTES
        _multiply_panel(args[3], num_rows, num_inputs, panel, sums.ctypes.data, elements)
        for row in range(num_rows):
            place = out + row * num_outputs * num_bytes + column
            _finish(rows(place, PANEL_OUTPUTS, elements), sums[row], like)


def multiply_panels(address):
    """[rows, inputs, outputs, input, panels, bias, out]; a bias at 0 is none"""
    _multiply_panels(arguments(address), _FP32)


def multiply_pair_panels(address):
    """The same in bf16, with pairs of inputs in place of inputs."""
    _multiply_panels(arguments(address), _BF16)
