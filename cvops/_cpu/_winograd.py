"""Convolution of 3x3 kernels in fewer multiplications: Winograd's F(4x4, 3x3), for float32.

    A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

A tile is 4x4 pixels of the result; it depends on a window of 6x6 pixels of the image. The method computes

    for o in range(outputs):
        for y in range(0, height, 4):
            for x in range(0, width, 4):
                products = np.zeros((6, 6))
                for c in range(channels):
                    window = image[c, y : y + 6, x : x + 6]
                    products += (G @ weight[o, c] @ G.T) * (B @ window @ B.T)
                result[o, y : y + 4, x : x + 4] = A @ products @ A.T + bias[o]

with constant matrices A (4, 6), B (6, 6) and G (6, 3). So 36 multiplications do what takes 144 directly, and each of
the 36 sums over channels is a matrix product for many tiles: (outputs, channels) @ (channels, tiles).

The rows of the matrices evaluate polynomials at 0, +-sqrt(1/2), +-sqrt(2) and infinity. The usual points, 0, +-1, +-2
and infinity, are four times less exact; these, with sums over parts of the channels, are as exact as the direct sum.

Lanes run over tiles. The windows of two neighbouring tiles have two columns of pixels in common, which are loaded once:

    columns    0  1  2  3 | 4  5  6  7 | 8  9 ...        tile 0 | tile 1 | tile 2
    windows    [ ---- of tile 0 ---- ]                   its own columns and two of the next tile
                            [ ---- of tile 1 ---- ]

So a row of tiles has one more tile than the result needs, only for its two first columns. The tiles of all rows are
numbered through, and the results of the surplus tiles are dropped.
"""

from __future__ import annotations

import math

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty
from ._simd import ONE, WIDTH, ZERO, load, load_every_fourth, madd, multiply, store, store_every_fourth

# A block of tiles is as wide as a row of `multiply`. Products are computed for so many outputs at a time, and summed
# over so many channels at a time: then what one product reads and writes lies in the nearest caches.
_TILES, _OUTPUTS, _CHANNELS = 64, 48, 64
# At most so many bytes of transformed weights at a time, and of the transformed tiles of a thread.
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
    """G @ kernel @ G.T for each kernel: flat, as 36 planes of (outputs, channels), and the stride between planes."""
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
    """Compute the columns of transform @ taps from 16 * begin up to 16 * end."""
    nine, rows = np.int64(9), np.int64(36)
    run, first = np.zeros(1, np.int64), begin * WIDTH
    multiply(
        transform, ZERO, nine, run, ONE, taps, first, run, plane, nine,
        weights, first, plane, rows, end * WIDTH - first, ZERO,
    )  # fmt: skip


@jit(contract=True)
def _compute_blocks(begin, end, image, top, left, weights, weights_plane, bias, tiles, out):
    """Compute blocks [begin, end) of tiles of the result."""
    channels, outputs = len(image), len(out)
    row_tiles = (out.shape[2] + 3) // 4 + 1
    count = (out.shape[1] + 3) // 4 * row_tiles
    run = np.zeros(1, np.int64)
    # The 36 numbers of a tile lie in 36 planes. These are a little further apart than needed: with a large power of two
    # as their stride, they would evict each other from the caches.
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
                        weights, k * weights_plane + output * channels + c, channels, run, ONE,
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
    """Copy the six rows of pixels that the tiles from `first` on read to the six rows of `strip`; 0 outside the map."""
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
    """B @ window @ B.T for each tile: B @ window in place in `strip`, then times B.T to `transformed`."""
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
    """A @ products @ A.T for each tile, to the first four rows of `strip`."""
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
    """A times a column of the products: four vectors of lanes, one for each row of the tile."""
    return _tile(
        load(products, q), load(products, q + 6 * plane), load(products, q + 12 * plane),
        load(products, q + 18 * plane), load(products, q + 24 * plane), load(products, q + 30 * plane),
    )  # fmt: skip


@jit
def _write(strip, first, tiles, row_tiles, bias, map):
    """Write the four rows of pixels of the tiles from `first` on, which are in `strip`, to the result."""
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
    """B times six pixels. The polynomial whose roots are the points is x (x^2 - 1/2) (x^2 - 2)."""
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
    """A times six products, by sums and differences of each point and its negative."""
    even, odd = madd(_ONE, m1, m2), madd(-_ONE, m2, m1)
    wide_even, wide_odd = madd(_ONE, m3, m4), madd(-_ONE, m4, m3)
    return (
        madd(_ROOT_2, even, madd(_HALF, wide_even, m0)),
        madd(_ROOT_HALF, wide_odd, odd),
        madd(_ROOT_HALF, even, wide_even),
        madd(_ROOT_2, wide_odd, madd(_HALF, odd, m5)),
    )
