"""Convolution of 3x3 kernels in fewer multiplications: Winograd's F(4x4, 3x3), for float32.

    A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

A tile is 4x4 pixels of the result; the window of the image that it depends on is 6x6. In one dimension, four results y
of a kernel g along six pixels d are

    y = A ((G g) * (B d)),

where * multiplies six numbers by six. In two, B and A work on columns and then on rows, and each of the 36 products is
summed over channels: 36 matrix products, (outputs, channels) @ (channels, tiles), for what takes 144 directly.

The rows of the matrices evaluate polynomials at 0, +-sqrt(1/2), +-sqrt(2) and infinity. The usual points, 0, +-1, +-2
and infinity, are four times less exact; these, with sums over parts of the channels, are as exact as the direct sum.

Lanes run over tiles. A row of tiles has one more than the result needs, whose first two columns of pixels are what the
tile before it reads. So the tiles of all rows can be counted through, and the window of a tile is what lies in its own
columns and in the first two of the next; results of the tiles too many are dropped.
"""

from __future__ import annotations

import math

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty
from ._simd import WIDTH, load, load_every_fourth, madd, multiply, store, store_every_fourth

# A block is a row of `multiply` wide, and its products are computed for so many outputs at a time, and summed over so
# many channels at a time: what one product reads and writes then lies in the nearest caches.
_TILES, _OUTPUTS, _CHANNELS = 64, 48, 64
# Bytes of transformed weights at a time, and of the transformed tiles of a thread.
_WEIGHT_BYTES, _TILE_BYTES = 16 << 20, 8 << 20

_ROOT, _HALF_ROOT = math.sqrt(2), math.sqrt(0.5)
_G = np.array(
    [
        [1, 0, 0],
        [-_HALF_ROOT / 1.5, -0.5 / 1.5, -_HALF_ROOT / 3],
        [-_HALF_ROOT / 1.5, 0.5 / 1.5, -_HALF_ROOT / 3],
        [1 / 3, _ROOT / 3, 2 / 3],
        [1 / 3, -_ROOT / 3, 2 / 3],
        [0, 0, 1],
    ]
)
_KRONECKER_G = np.einsum("ai,bj->abij", _G, _G).reshape(36, 9).astype("f")


def is_faster(channels: int, outputs: int, height: int, width: int) -> bool:
    """Whether this method is faster than the direct one for a result of this size."""
    return min(channels, outputs) >= 16 and min(height, width) >= 8 and height * width >= 256


def conv2d(input: Array, weight: Array, bias: Array, padding: tuple[int, int]) -> Array:
    """The convolution of float32 arrays with a 3x3 kernel, of stride 1."""
    channels, height, width = input.shape[1:]
    out_height, out_width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    result = empty((len(input), len(weight), out_height, out_width), "f")
    tiles = min(max(WIDTH, _TILE_BYTES // (36 * 4 * channels) // WIDTH * WIDTH), _TILES)
    blocks = -(-(-(-out_height // 4) * (-(-out_width // 4) + 1)) // tiles)
    outputs = max(1, _WEIGHT_BYTES // (36 * 4 * channels))
    for first in range(0, len(weight), outputs):
        part = slice(first, first + outputs)
        weights, plane = _transformed(weight[part])
        biases = np.array(bias[part], "f")
        for image, image_result in zip(input, result[:, part], strict=True):
            _threads.run(
                _compute_blocks, blocks, contiguous(image, "f"), *padding, weights, plane, biases, tiles, image_result,
                nanoseconds=0.005 * image_result.size * weight[0].size,
            )  # fmt: skip
    return result


def _transformed(weight: Array) -> tuple[Array, int]:
    """Flat weights, G on columns and rows of each kernel, in 36 planes of (outputs, channels), and their distance."""
    count = len(weight) * weight.shape[1]
    plane = -(-count // WIDTH) * WIDTH
    taps = np.zeros((9, plane), "f")
    taps[:, :count] = weight.reshape(count, 9).T
    weights = np.empty(36 * plane, "f")
    _threads.run(
        _transform_weights, plane // WIDTH, taps.ravel(), _KRONECKER_G.ravel(), plane, weights, nanoseconds=20 * plane
    )
    return weights, plane


@jit(contract=True)
def _transform_weights(begin, end, taps, transform, plane, weights):
    """Columns [begin, end) of the product of `transform` and `taps`, in units of lanes."""
    none, one, nine, rows = np.int64(0), np.int64(1), np.int64(9), np.int64(36)
    run, first = np.zeros(1, np.int64), begin * WIDTH
    multiply(
        transform, none, nine, run, one, taps, first, run, plane, nine,
        weights, first, plane, rows, end * WIDTH - first, none,
    )  # fmt: skip


@jit(contract=True)
def _compute_blocks(begin, end, image, top, left, weights, weights_plane, bias, tiles, out):
    """Blocks [begin, end) of tiles of the result."""
    one = np.int64(1)  # a literal would be a type of its own, and `multiply` compiled for it
    channels, outputs = len(image), len(out)
    row_tiles = (out.shape[2] + 3) // 4 + 1
    count = (out.shape[1] + 3) // 4 * row_tiles
    run = np.zeros(1, np.int64)
    # The 36 numbers of a tile lie in 36 planes, a little further apart than needed: at a large power of two they would
    # drive each other out of the caches.
    image_plane, product_plane = channels * tiles + WIDTH, min(outputs, _OUTPUTS) * tiles + WIDTH
    transformed = _aligned(36 * image_plane, out)
    products = _aligned(36 * product_plane, out)
    strip = _aligned(6 * (4 * tiles + WIDTH), out)
    for block in range(begin, end):
        first = block * tiles
        columns = min(tiles, (count - first + WIDTH - 1) // WIDTH * WIDTH)
        for c in range(channels):
            _read(image[c], top, left, first, columns, row_tiles, strip)
            _transform_image(strip, columns, transformed, c * tiles, image_plane)
        for output in range(0, outputs, _OUTPUTS):
            group = min(outputs - output, _OUTPUTS)
            for k in range(36):
                for c in range(0, channels, _CHANNELS):
                    multiply(
                        weights, k * weights_plane + output * channels + c, channels, run, one,
                        transformed, k * image_plane + c * tiles, run, tiles, min(channels - c, _CHANNELS),
                        products, k * product_plane, tiles, group, columns, np.int64(c > 0),
                    )  # fmt: skip
            for o in range(group):
                _transform_products(products, o * tiles, product_plane, columns, strip)
                _write(strip, first, columns, row_tiles, bias[output + o], out[output + o])


@jit
def _aligned(size, like):
    memory = np.empty(size + WIDTH, like.dtype)
    return memory[-memory.ctypes.data % 64 // memory.itemsize :]


@jit
def _read(map, top, left, first, tiles, row_tiles, strip):
    """The six rows of pixels of the tiles from `first` on, and of the tile after them, to the rows of `strip`."""
    height, width = map.shape
    last = first + tiles + 1
    begin = first
    while begin < last:
        y, x = begin // row_tiles * 4 - top, begin % row_tiles * 4 - left
        end = min(last, (begin // row_tiles + 1) * row_tiles)
        stop = x + (end - begin) * 4
        low, high = min(max(x, 0), stop), max(min(stop, width), x)
        for i in range(6):
            at = i * (4 * tiles + WIDTH) + (begin - first) * 4 - x
            if 0 <= y + i < height and low < high:
                row = map[y + i]
                for j in range(x, low):
                    strip[at + j] = 0
                for j in range(low, high):
                    strip[at + j] = row[j]
                for j in range(high, stop):
                    strip[at + j] = 0
            else:
                for j in range(x, stop):
                    strip[at + j] = 0
        begin = end


@jit(contract=True)
def _transform_image(strip, tiles, transformed, at, plane):
    """B on the columns of each window of `strip`, in place, and on its rows, to `transformed`."""
    row = 4 * tiles + WIDTH
    for q in range(0, row, WIDTH):
        window = _window(
            load(strip, q), load(strip, q + row), load(strip, q + 2 * row), load(strip, q + 3 * row),
            load(strip, q + 4 * row), load(strip, q + 5 * row),
        )  # fmt: skip
        for i in range(6):
            store(strip, q + i * row, window[i])
    for i in range(6):
        for p in range(0, tiles, WIDTH):
            own, following = load_every_fourth(strip, i * row + 4 * p), load_every_fourth(strip, i * row + 4 * p + 4)
            window = _window(own[0], own[1], own[2], own[3], following[0], following[1])
            for j in range(6):
                store(transformed, (i * 6 + j) * plane + at + p, window[j])


@jit(contract=True)
def _transform_products(products, at, plane, tiles, strip):
    """A on the columns and rows of the products of each tile, to the first four rows of `strip`."""
    row = 4 * tiles + WIDTH
    for p in range(0, tiles, WIDTH):
        q = at + p
        a, b, c = (
            _column(products, q, plane),
            _column(products, q + plane, plane),
            _column(products, q + 2 * plane, plane),
        )
        d, e, f = (
            _column(products, q + 3 * plane, plane),
            _column(products, q + 4 * plane, plane),
            _column(products, q + 5 * plane, plane),
        )
        for i in range(4):
            tile = _tile(a[i], b[i], c[i], d[i], e[i], f[i])
            store_every_fourth(strip, i * row + 4 * p, tile[0], tile[1], tile[2], tile[3])


@jit(contract=True)
def _column(products, q, plane):
    """A on column q of the products."""
    return _tile(
        load(products, q), load(products, q + 6 * plane), load(products, q + 12 * plane),
        load(products, q + 18 * plane), load(products, q + 24 * plane), load(products, q + 30 * plane),
    )  # fmt: skip


@jit
def _write(strip, first, tiles, row_tiles, bias, map):
    """The four rows of pixels of the tiles from `first` on, from the rows of `strip`."""
    height, width = map.shape
    begin = first
    while begin < first + tiles:
        y, x = begin // row_tiles * 4, begin % row_tiles * 4
        end = min(first + tiles, (begin // row_tiles + 1) * row_tiles)
        for i in range(min(4, height - y)):
            at = i * (4 * tiles + WIDTH) + (begin - first) * 4 - x
            row = map[y + i]
            for j in range(x, min(x + (end - begin) * 4, width)):
                row[j] = strip[at + j] + bias
        begin = end


_ONE, _HALF, _TWO, _FIVE_HALVES, _ROOT_2, _ROOT_HALF = np.array([1, 0.5, 2, 2.5, _ROOT, _HALF_ROOT], "f")


@jit(contract=True)
def _window(d0, d1, d2, d3, d4, d5):
    """B d, for the polynomial of the points, x (x^2 - 1/2) (x^2 - 2)."""
    even, odd = madd(-_TWO, d2, d4), madd(-_TWO, d1, d3)
    wide_even, wide_odd = madd(-_HALF, d2, d4), madd(-_HALF, d1, d3)
    return (
        madd(-_FIVE_HALVES, d2, madd(_ONE, d0, d4)),
        madd(_ROOT_HALF, odd, even),
        madd(-_ROOT_HALF, odd, even),
        madd(_ROOT_2, wide_odd, wide_even),
        madd(-_ROOT_2, wide_odd, wide_even),
        madd(-_FIVE_HALVES, d3, madd(_ONE, d1, d5)),
    )


@jit(contract=True)
def _tile(m0, m1, m2, m3, m4, m5):
    """A m, with sums and differences of each point and its opposite."""
    even, odd = madd(_ONE, m1, m2), madd(-_ONE, m2, m1)
    wide_even, wide_odd = madd(_ONE, m3, m4), madd(-_ONE, m4, m3)
    return (
        madd(_ROOT_2, even, madd(_HALF, wide_even, m0)),
        madd(_ROOT_HALF, wide_odd, odd),
        madd(_ROOT_HALF, even, wide_even),
        madd(_ROOT_2, wide_odd, madd(_HALF, odd, m5)),
    )
