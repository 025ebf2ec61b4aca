"""deform_conv2d and its gradients, and how far they are from what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from timeit import repeat
from typing import Any

import numpy as np

import cvops
from tests.data import deformed

from . import peers
from .harness import Figure, Row, all_close_to_largest

# (images, channels, height, width, outputs)
SHAPES = [(2, 64, 64, 64, 64), (1, 128, 100, 134, 128), (2, 256, 50, 67, 256)]


def rows(quick: bool) -> Iterator[Row | Figure]:
    shapes = SHAPES[:1] if quick else SHAPES
    for shape in shapes:
        arrays = deformed(*shape)
        yield Row(
            table="deform_conv2d, 3x3, with mask",
            name=name(shape),
            inputs=f"deformed{shape}, seed=0",
            sides={"cvops": partial(cvops.deform_conv2d, **arrays, padding=1)}
            | peers.sides(peers.DEFORM_CONV2D, arrays),
            check=all_close_to_largest,
        )
    for shape in shapes:
        arrays = deformed(*shape)
        grad = np.random.default_rng(1).normal(0, 1, (shape[0], shape[4], *shape[2:4])).astype(np.float32)
        yield Row(
            table="deform_conv2d_backward, 3x3, all five gradients",
            name=name(shape),
            inputs=f"deformed{shape}, seed=0",
            sides={"cvops": partial(cvops.deform_conv2d_backward, grad, **arrays, padding=1)}
            | peers.sides(peers.DEFORM_CONV2D_BACKWARD, grad, arrays),
            check=all_close_to_largest,
        )
    for shape in shapes:
        yield from limits(shape)


def name(shape: tuple[int, ...]) -> str:
    images, channels, height, width, outputs = shape
    return f"({images}, {channels}, {height}, {width}) -> {outputs}"


def limits(shape: tuple[int, int, int, int, int]) -> Iterator[Figure]:
    """What the gather and the product need at least, by the speed of a copy and of np.matmul, and what the call takes.

    The gather reads four corners of every sample and writes it, all in the working precision; caches serve most of it.
    """
    images, channels, height, width, outputs = shape
    pixels, depth = images * height * width, 9 * channels
    arrays = deformed(*shape)
    call = seconds(partial(cvops.deform_conv2d, **arrays, padding=1))
    source = np.ones((1 << 24,), np.float32)
    bandwidth = 2 * source.nbytes / seconds(partial(np.copyto, np.empty_like(source), source))
    factors = np.ones((outputs, depth), np.float32), np.ones((depth, pixels), np.float32)
    matmul = seconds(partial(np.matmul, *factors, out=np.empty((outputs, pixels), np.float32)))
    one_output = arrays | {"weight": arrays["weight"][:1], "bias": arrays["bias"][:1]}
    gather = seconds(partial(cvops.deform_conv2d, **one_output, padding=1))
    flop = 2 * pixels * depth * outputs
    for what, value, unit in (
        ("the call", 1e3 * call, "ms"),
        ("the call with one output: almost only the gather", 1e3 * gather, "ms"),
        ("the gather's bytes at the speed of a copy", 1e3 * 5 * 4 * pixels * depth / bandwidth, "ms"),
        ("a plain np.matmul of the product's size", 1e3 * matmul, "ms"),
        ("the call, all of it counted as product", flop / call / 1e9, "GFLOP/s"),
        ("that np.matmul", flop / matmul / 1e9, "GFLOP/s"),
    ):
        yield Figure(table=f"limits of deform_conv2d, {name(shape)}", name=what, value=value, unit=unit)


def seconds(call: Any) -> float:
    """The median time of a call, in seconds, over 11 after the first."""
    return median(repeat(call, number=1, repeat=12)[1:])
