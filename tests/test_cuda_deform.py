"""Convolutions on CUDA beyond the answers: launches, tiles, schedules and bfloat16."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import cvops
from tests import compare, host_emulation
from tests import reference_deform as reference
from tests.host_emulation import device
from tests.libraries import require, to_numpy
from tests.strategies_deform import NAMES, OFFSETS, Case

FORWARD = ["deform_arrange", "deform_columns", "matmul", "deform_restore"]
BACKWARD = [
    "deform_bias", "deform_arrange", "matmul", "deform_slopes", "matmul",
    "deform_keys", "order_of_keys", "deform_starts", "deform_collect", "deform_restore",
]  # fmt: skip


@pytest.fixture
def most_columns(emulated, monkeypatch):
    """Sets how many numbers the columns of a tile may have."""
    device.load()
    tiles = importlib.import_module(f"{device.PACKAGE}._tiles")
    return lambda count: monkeypatch.setattr(tiles, "MOST_COLUMNS", count)


def on_device(case, convert):
    """The arguments of a case and the gradient of its result there."""
    arrays = {name: None if array is None else convert(array) for name, array in case.arrays().items()}
    return {**arrays, **case.options}, convert(case.grad())


def in_bfloat16(arrays):
    ml_dtypes = require("ml_dtypes")
    return {name: None if array is None else array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}


def check(case, convert):
    """Forward and backward against the reference."""
    arguments, grad = on_device(case, convert)
    arrays = case.arrays()
    like = arguments["input"]
    compare.close(cvops.deform_conv2d(**arguments), reference.deform_conv2d(**arrays, **case.options), like)
    want = reference.deform_conv2d_backward(case.grad(), **arrays, **case.options)
    for name, one, expected in zip(NAMES, cvops.deform_conv2d_backward(grad, **arguments), want, strict=True):
        if expected is None:
            assert one is None, name
        else:
            compare.close(one, expected, like)


# -------------------------------------------------------------------------------------------------------- launches


def check_launches(emulated, launches, case):
    arguments, grad = on_device(case, emulated)
    cvops.deform_conv2d(**arguments)
    assert launches == FORWARD
    launches.clear()
    cvops.deform_conv2d_backward(grad, **arguments)
    assert launches == BACKWARD


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_launches_whatever_the_values(emulated, launches, offsets, dtype):
    check_launches(emulated, launches, Case(offsets=offsets, dtype=dtype))


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (["input"], {"deform_bias", "deform_slopes"}),
        (["weight"], {"deform_bias", "deform_keys", "order_of_keys", "deform_starts", "deform_collect"}),
        (["offset", "mask"], {"deform_bias", "deform_restore", *BACKWARD[5:9]}),
        (["bias"], {*BACKWARD} - {"deform_bias"}),
        ([], {*BACKWARD}),
    ],
    ids=["input", "weight", "offset and mask", "bias", "nothing"],
)
def test_no_launches_for_what_is_not_wanted(emulated, launches, wanted, missing):
    arguments, grad = on_device(Case(dtype="float32"), emulated)
    cvops.deform_conv2d_backward(grad, **arguments, wanted=wanted)
    products = ("input" in wanted or "offset" in wanted) + ("weight" in wanted)
    assert launches.count("matmul") == products
    assert [name for name in launches if name != "matmul"] == [
        name for name in BACKWARD if name not in missing | {"matmul"}
    ]


@pytest.mark.parametrize(("batch", "groups"), [(3, 1), (1, 3), (2, 3), (5, 6)])
def test_one_product_for_all_images_and_groups(emulated, launches, batch, groups):
    check_launches(emulated, launches, Case(batch=batch, groups=groups, dtype="float32"))


def test_a_batch_of_none_launches_nothing(emulated, launches):
    arguments, grad = on_device(Case(batch=0, dtype="float32"), emulated)
    cvops.deform_conv2d(**arguments)
    cvops.deform_conv2d_backward(grad, **arguments)
    assert launches == []


def test_a_channels_last_input_is_not_copied(emulated, monkeypatch):
    """Unless its elements lie between the addresses at which a GPU reads 16 bytes."""
    case, made = Case(dtype="float32", channels=8), []
    arguments, grad = on_device(case, emulated)
    images = case.arrays()["input"]
    shape = 2, 5, 6, 8
    aligned, unaligned = (device.empty((images.size + 1,), "f")[i:][: images.size].reshape(shape) for i in (0, 1))
    aligned[...] = unaligned[...] = images.transpose(0, 2, 3, 1)
    module = importlib.import_module(f"{device.PACKAGE}._deform_conv")
    monkeypatch.setattr(module, "empty", lambda *what: made.append(what[0]) or device.empty(*what))
    results = []
    inputs = images, aligned.transpose(0, 3, 1, 2), unaligned.transpose(0, 3, 1, 2)
    for input, copied in zip(inputs, (True, False, True), strict=True):
        given = {**arguments, "input": host_emulation.Array(input)}
        results.append([cvops.deform_conv2d(**given), *cvops.deform_conv2d_backward(grad, **given, wanted=["weight"])])
        assert (shape in made) == copied
        made.clear()
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert one is other is None or to_numpy(one).tobytes() == to_numpy(other).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_float64_offsets_convert_what_they_meet(emulated, launches, dtype):
    """Input, weight and bias, and then the result."""
    arguments, _ = on_device(Case(dtype=dtype, offset_dtype="float64", mask_dtype="float32"), emulated)
    cvops.deform_conv2d(**arguments)
    assert launches == ["converted"] * 3 + FORWARD + ["converted"]


def test_launches_of_conv2d(emulated, launches):
    map, weight, bias = np.ones((2, 3, 6, 7), "f"), np.ones((4, 3, 3, 3), "f"), np.ones(4, "f")
    device.load().conv2d(map, weight, bias, (1, 1), (1, 1), False)
    assert launches == ["conv_bias", "conv_columns", "matmul"]
    launches.clear()
    device.load().conv2d(map, weight[:, :, :1, :1], bias, (1, 1), (0, 0), False)
    assert launches == ["conv_bias", "matmul"]  # the map itself is the columns


# ----------------------------------------------------------------------------------------------------------- tiles

# 20 output pixels in each image; the columns of a pixel have 6 * 9 numbers.
TILES = [
    (1, 60),  # columns; tiles for 3 images
    (7 * 54, 9),
    (20 * 54, 3),
    (45 * 54, 2),
    (10**6, 1),
]


@pytest.mark.parametrize("offset_groups", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("columns", "count"), TILES)
def test_tiles(emulated, launches, most_columns, columns, count, dtype, offset_groups):
    """Of parts of an image, of one, of some, and across images."""
    case = Case(batch=3, size=(4, 5), dtype=dtype, offset_groups=offset_groups)
    most_columns(columns)
    check(case, emulated)
    for kernel in ("deform_columns", "deform_slopes", "deform_collect"):
        assert launches.count(kernel) == count


@pytest.mark.parametrize("groups", [2, 6])
def test_tiles_of_groups(emulated, most_columns, groups):
    most_columns(25 * 54)
    check(Case(batch=3, size=(4, 5), groups=groups, dtype="float32", offsets="NaN and infinite"), emulated)


@pytest.mark.parametrize(("columns", "count"), [(1, 40), (9 * 27, 6), (20 * 27, 2), (10**6, 1)])
def test_tiles_of_conv2d(emulated, launches, most_columns, columns, count):
    random = np.random.default_rng(0)
    shapes = (2, 3, 4, 5), (4, 3, 3, 3), (4,)
    map, weight, bias = (random.normal(size=shape).astype("f") for shape in shapes)
    most_columns(columns)
    got = np.asarray(device.load().conv2d(map, weight, bias, (1, 1), (1, 1), False))
    compare.close(got, reference.conv2d(map, weight, bias, padding=1), map)
    assert launches.count("conv_columns") == count


def test_keys_of_8_bytes(emulated, monkeypatch):
    """Of maps of so many pixels that 4 bytes do not suffice."""
    device.load()
    monkeypatch.setattr(importlib.import_module(f"{device.PACKAGE}._deform_conv"), "_CELLS_OF_32_BITS", 0)
    check(Case(dtype="float32"), emulated)


# ------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [
        Case(channels=40, outputs=9, size=(5, 7), offset_groups=2, dtype="float32"),
        Case((2, 5), stride=2, channels=12, groups=2, offset_groups=3, batch=1, dtype="float32", mask=False),
    ],
    ids=str,
)
def test_no_schedule_changes_a_bit(emulated, seeds, case, dtype):
    arrays = {**case.arrays(), "grad": case.grad()}
    if dtype == "bfloat16":
        arrays = in_bfloat16(arrays)
    arrays = {name: None if array is None else emulated(array) for name, array in arrays.items()}
    grad = arrays.pop("grad")
    for _ in range(2):
        cvops.deform_conv2d(**arrays, **case.options)
        cvops.deform_conv2d_backward(grad, **arrays, **case.options)


# -------------------------------------------------------------------------------------------------------- bfloat16


def exact(case):
    """The arrays of a case, of numbers so short that columns and their sums are exact, and a gradient."""
    random, shapes = np.random.default_rng(0), {name: array.shape for name, array in case.arrays().items()}
    arrays = {
        "input": random.integers(-3, 4, shapes["input"]),
        "offset": random.integers(-8, 9, shapes["offset"]) / 2,
        "weight": random.integers(-1, 2, shapes["weight"]),
        "bias": random.integers(-3, 4, shapes["bias"]),
        "mask": random.integers(0, 3, shapes["mask"]),
    }
    return in_bfloat16({**arrays, "grad": random.integers(-1, 2, case.output_shape)})


@pytest.mark.parametrize("case", [Case(), Case((1, 2), groups=2, offset_groups=3, padding=0)], ids=str)
def test_bfloat16_of_short_numbers_is_rounded_once(emulated, case):
    arrays = exact(case)
    given = {name: emulated(array) for name, array in arrays.items()}
    grad, given_grad = arrays.pop("grad"), given.pop("grad")
    want = reference.deform_conv2d(**arrays, **case.options)
    compare.same(cvops.deform_conv2d(**given, **case.options), want, given["input"])
    want = reference.deform_conv2d_backward(grad, **arrays, **case.options)
    for one, expected in zip(cvops.deform_conv2d_backward(given_grad, **given, **case.options), want, strict=True):
        compare.same(one, expected, given["input"])


@pytest.mark.parametrize("wide", [(), ("offset",), ("offset", "mask"), ("grad",)])
def test_bfloat16_beside_float32(emulated, wide):
    case = Case(channels=16, outputs=20, size=(7, 8), dtype="float32")
    arrays = {**case.arrays(), "grad": case.grad()}
    arrays |= in_bfloat16({name: array for name, array in arrays.items() if name not in wide})
    given = {name: emulated(array) for name, array in arrays.items()}
    grad, given_grad = arrays.pop("grad"), given.pop("grad")
    got = cvops.deform_conv2d(**given, **case.options)
    want = [reference.deform_conv2d(**arrays, **case.options)]
    want += reference.deform_conv2d_backward(grad, **arrays, **case.options)
    for one, expected in zip(
        [got, *cvops.deform_conv2d_backward(given_grad, **given, **case.options)], want, strict=True
    ):
        values = to_numpy(one)
        assert values.dtype == expected.dtype
        # Twice what a result may be off by in other 16-bit types: columns have 8 bits, too.
        difference = np.abs(values.astype(float) - expected.astype(float)).max()
        assert difference <= 8e-3 * np.abs(expected.astype(float)).max()


def test_bfloat16_conv2d(emulated):
    ml_dtypes, random = require("ml_dtypes"), np.random.default_rng(0)
    shapes = (2, 3, 6, 7), (4, 3, 3, 3), (4,)
    arrays = [random.integers(-2, 3, shape).astype(ml_dtypes.bfloat16) for shape in shapes]
    got = np.asarray(device.load().conv2d(*arrays, (2, 1), (1, 0), False))
    compare.same(got, reference.conv2d(*arrays, (2, 1), (1, 0)), got)
