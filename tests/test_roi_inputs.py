"""What the RoI operators take and give: array libraries, layouts and dtypes; and what they refuse."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_roi as reference
from tests import strategies_roi as strategies
from tests.libraries import CONVERTERS, CUDA, Operators, to_numpy

ROOT = Path(__file__).parent.parent
OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
NAN, INF = math.nan, math.inf

# 18 channels are 3 of the result for the position-sensitive operators, in 2 x 3 bins.
MAP = strategies.normal((2, 18, 7, 8))
ROIS = strategies.rois("all", 12, MAP.shape)


@pytest.fixture(scope="module", params=OPERATORS)
def operator(request):
    return request.param


def pooled(operator, maps, boxes, output_size=(2, 3), *args, module=cvops):
    """The result of an operator of cvops or of the reference, without the argmax."""
    result = getattr(module, operator)(maps, boxes, output_size, *args)
    return result[0] if isinstance(result, tuple) else result


def grad_of(operator, dtype=np.float32, output_size=(2, 3), count=12):
    channels = 3 if operator.startswith("ps") else 18
    return strategies.normal((count, channels, *output_size), dtype, seed=1)


def argmax_of(operator, output_size=(2, 3)):
    """The arguments between the boxes and the shape: one for roi_pool, none for the others."""
    return (reference.roi_pool(MAP, ROIS, output_size)[1],) if operator == "roi_pool" else ()


def gradient(operator, grad, boxes, *argmax, shape=MAP.shape, module=cvops):
    return getattr(module, operator + "_backward")(grad, boxes, *argmax, shape)


# -------------------------------------------------------------------------------------------------- array libraries


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_are_arrays_of_the_callers_library(array, operator, dtype):
    if dtype == "float16" and array is CONVERTERS["array_api_strict"]:
        dtype = "float32"  # the standard has no float16
    maps, boxes, grad = array(MAP.astype(dtype)), array(ROIS), array(grad_of(operator, dtype))
    want = pooled(operator, to_numpy(maps), ROIS, module=reference)
    compare.close(pooled(operator, maps, boxes), want, maps)
    argmax = argmax_of(operator)
    want = gradient(operator, to_numpy(grad), ROIS, *argmax, module=reference)
    compare.close(gradient(operator, grad, boxes, *map_all(array, argmax)), want, grad)


def map_all(array, values):
    return [array(value) for value in values]


def test_lists_and_tuples_of_boxes_of_any_library(array, operator):
    lists, order = strategies.by_image(ROIS, 2)
    maps, grad = array(MAP), array(grad_of(operator)[order])
    argmax = map_all(array, [places[order] for places in argmax_of(operator)])
    want = pooled(operator, MAP, ROIS[order], module=reference)
    want_gradient = gradient(operator, to_numpy(grad), ROIS[order], *map(to_numpy, argmax), module=reference)
    for boxes in (map_all(array, lists), tuple(map_all(array, lists))):
        compare.close(pooled(operator, maps, boxes), want, maps)
        compare.close(gradient(operator, grad, boxes, *argmax), want_gradient, grad)


def test_the_argmax_is_an_array_of_the_callers_library(array):
    maps = array(MAP)
    values, argmax = cvops.roi_pool(maps, array(ROIS), (2, 3), return_argmax=True)
    want = reference.roi_pool(MAP, ROIS, (2, 3))
    compare.same(values, want[0], maps)
    compare.same(argmax, want[1], maps)
    grad = array(grad_of("roi_pool"))
    want = reference.roi_pool_backward(to_numpy(grad), ROIS, want[1], MAP.shape)
    compare.close(cvops.roi_pool_backward(grad, array(ROIS), argmax, MAP.shape), want, grad)


@pytest.mark.parametrize(("of_map", "of_boxes"), [("torch", "numpy"), ("numpy", "torch"), ("torch", "jax")])
def test_arrays_of_two_libraries(operator, of_map, of_boxes):
    """The result follows the first array."""
    maps, grad, argmax = CONVERTERS[of_map](MAP), CONVERTERS[of_map](grad_of(operator)), argmax_of(operator)
    lists, _ = strategies.by_image(ROIS[np.argsort(ROIS[:, 0], kind="stable")], 2)
    boxes = CONVERTERS[of_boxes](ROIS)
    compare.close(pooled(operator, maps, boxes), pooled(operator, MAP, ROIS, module=reference), maps)
    want = gradient(operator, to_numpy(grad), ROIS, *argmax, module=reference)
    compare.close(gradient(operator, grad, boxes, *argmax), want, grad)
    boxes = map_all(CONVERTERS[of_boxes], lists)
    compare.close(pooled(operator, maps, boxes), pooled(operator, MAP, lists, module=reference), maps)


def test_lists_may_mix_dtypes(ops, operator):
    """One float64 among them makes the working precision float64: 0.4 and 3.4 of float32 then lie more than 3 apart."""
    one = np.array([[0.4, 0.4, 3.4, 3.4]], np.float32)
    for other in (np.zeros((0, 4), np.float64), np.ones((1, 4)), np.zeros((1, 4), np.float16)):
        want = pooled(operator, MAP, [one, other], 1, module=reference)
        compare.close(pooled(operator, MAP, [one, other], 1, module=ops), want, MAP)


def test_lists_may_mix_libraries(operator):
    one, other = np.array([[0.4, 0.4, 3.4, 3.4]], np.float32), np.ones((1, 4))
    want = pooled(operator, MAP, [one, other], 1, module=reference)
    compare.close(pooled(operator, MAP, [one, CONVERTERS["torch"](other)], 1), want, MAP)


# -------------------------------------------------------------------------------------------------- layouts, dtypes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", strategies.LAYOUTS)
def test_layouts_of_maps_and_gradients(ops, operator, layout, dtype):
    layout, maps, grad = strategies.LAYOUTS[layout], MAP.astype(dtype), grad_of(operator, dtype)
    want = pooled(operator, maps, ROIS, module=reference)
    compare.close(pooled(operator, layout(maps), ROIS, module=ops), want, maps)
    argmax = argmax_of(operator)
    want = gradient(operator, grad, ROIS, *argmax, module=reference)
    compare.close(gradient(operator, layout(grad), ROIS, *map_all(layout, argmax), module=ops), want, grad)


ROI_LAYOUTS = {
    "fortran": np.asfortranarray,
    "every other row": lambda array: np.repeat(array, 2, 0)[::2],
    "reversed": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "columns of a wider array": lambda array: np.pad(array, ((0, 0), (1, 2)), constant_values=NAN)[:, 1:-2],
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "unaligned": lambda array: np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ROI_LAYOUTS)
def test_layouts_of_boxes(ops, operator, layout, dtype):
    layout, rois, grad, argmax = ROI_LAYOUTS[layout], ROIS.astype(dtype), grad_of(operator), argmax_of(operator)
    want = pooled(operator, MAP, rois, module=reference)
    compare.close(pooled(operator, MAP, layout(rois), module=ops), want, MAP)
    want = gradient(operator, grad, rois, *argmax, module=reference)
    compare.close(gradient(operator, grad, layout(rois), *argmax, module=ops), want, grad)
    lists, _ = strategies.by_image(rois, 2)
    want = pooled(operator, MAP, lists, module=reference)
    compare.close(pooled(operator, MAP, [layout(lists[0]), lists[1]], module=ops), want, MAP)


def test_a_gradient_without_strides(ops, operator):
    """As automatic differentiation makes it for a sum."""
    shape, argmax = grad_of(operator).shape, argmax_of(operator)
    want = gradient(operator, np.full(shape, np.float32(1.5)), ROIS, *argmax, module=reference)
    grad = np.broadcast_to(np.float32(1.5), shape)
    compare.close(gradient(operator, grad, ROIS, *argmax, module=ops), want, grad)
    grad = CONVERTERS["torch"](np.float32([1.5])).expand(shape)
    compare.close(gradient(operator, grad, ROIS, *argmax), want, grad)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_layouts_of_other_libraries(operator, library):
    array = CONVERTERS[library]
    swapped = np.ascontiguousarray(MAP.swapaxes(2, 3))
    maps = array(swapped).mT
    compare.close(pooled(operator, maps, ROIS), pooled(operator, MAP, ROIS, module=reference), maps)


def test_other_kinds_of_numpy_arrays(operator, tmp_path):
    class Subclass(np.ndarray):
        pass

    np.save(tmp_path / "map.npy", MAP)
    want = pooled(operator, MAP, ROIS, module=reference)
    for maps in (np.load(tmp_path / "map.npy", mmap_mode="r"), MAP.view(Subclass)):
        compare.close(pooled(operator, maps, ROIS.view(Subclass)), want, MAP)


def test_nothing_is_written_into_inputs_and_nothing_of_them_is_given_back(ops, operator):
    maps, rois, grad = MAP.copy(), ROIS.copy(), grad_of(operator)
    rois[3, 1], rois[4, 2] = NAN, 1e30
    argmax = argmax_of(operator)
    lists, _ = strategies.by_image(rois, 2)
    inputs = [maps, rois, grad, *argmax, *lists]
    before = [array.copy() for array in inputs]
    results = [pooled(operator, maps, boxes, module=ops) for boxes in (rois, lists)]
    results.append(gradient(operator, grad, rois, *argmax, module=ops))
    for array, copy in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert not any(np.shares_memory(array, result) for result in results)


def test_sizes_and_scales_of_numpys_types(ops, operator):
    def pool(*args):
        return pooled(operator, MAP, ROIS, *args, module=ops)

    want = pool((2, 3), 0.5)
    for size in ([2, 3], (np.int64(2), np.uint8(3))):
        compare.same(pool(size, np.float64(0.5)), want, MAP)
        compare.same(pool(size, np.float16(0.5)), want, MAP)
    compare.same(pool((2, 3), 1), pool((2, 3), 1.0), MAP)
    compare.same(pool(np.int16(3)), pool((3, 3)), MAP)
    argmax, grad = argmax_of(operator), grad_of(operator)
    want = gradient(operator, grad, ROIS, *argmax, module=ops)
    for shape in (list(MAP.shape), tuple(map(np.int32, MAP.shape))):
        compare.same(gradient(operator, grad, ROIS, *argmax, shape=shape, module=ops), want, grad)


# ------------------------------------------------------------------------------------------------------ batch index


WRONG_INDICES = (-1, 2, 0.5, 1e30, -1e-30, NAN, INF, -INF)


@pytest.mark.parametrize("library", [library for library in CONVERTERS if library not in CUDA])
def test_batch_indices_that_name_no_image(operator, library):
    array = CONVERTERS[library]
    maps, grad, argmax = array(MAP), array(grad_of(operator)), map_all(array, argmax_of(operator))
    for value in WRONG_INDICES:
        rois = ROIS.copy()
        rois[7, 0] = value
        message = r"`boxes` must .* 0 to 1 .*, " + re.escape(f"got {float(rois[7, 0])} in row 7")
        with pytest.raises(ValueError, match=message):
            pooled(operator, maps, array(rois))
        with pytest.raises(ValueError, match=message):
            gradient(operator, grad, array(rois), *argmax)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_indices_that_name_no_image_make_nan_on_cuda(emulated, operator, dtype):
    """Where the host reads no values. Such a RoI has no gradient; the others are as ever."""
    array, argmax = emulated, argmax_of(operator)
    maps, grad, silent = array(MAP), array(grad_of(operator)), grad_of(operator)
    silent[[3, 7]] = 0
    want = pooled(operator, MAP, ROIS.astype(dtype), module=reference)
    want[[3, 7]] = NAN
    want_gradient = gradient(operator, silent, ROIS.astype(dtype), *argmax, module=reference)
    for value in WRONG_INDICES:
        rois = ROIS.astype(dtype)
        rois[[3, 7], 0] = value
        compare.close(pooled(operator, maps, array(rois)), want, maps)
        compare.close(gradient(operator, grad, array(rois), *map_all(array, argmax)), want_gradient, grad)
        if operator == "roi_pool":
            places = to_numpy(cvops.roi_pool(maps, array(rois), (2, 3), return_argmax=True)[1])
            assert (places[[3, 7]] == -1).all()
            assert (places[[0, 1]] >= 0).all()
    nothing = np.full((12, *want.shape[1:]), NAN, np.float32)
    compare.same(pooled(operator, array(MAP[:0]), array(ROIS)), nothing, maps)
    assert gradient(operator, grad, array(ROIS), *map_all(array, argmax), shape=(0, *MAP.shape[1:])).values.size == 0


def test_the_first_bad_batch_index_is_named(operator):
    rois = ROIS.copy()
    rois[[5, 9], 0] = 8, -3
    with pytest.raises(ValueError, match=r"`boxes` must .*, got 8\.0 in row 5"):
        pooled(operator, MAP, rois)


def test_a_bad_batch_index_is_refused_whatever_the_coordinates(operator):
    rois = np.full((1, 5), NAN, np.float32)
    with pytest.raises(ValueError, match="`boxes`"):
        pooled(operator, MAP, rois)
    with pytest.raises(ValueError, match="`boxes`"):
        pooled(operator, MAP[:0], np.zeros((1, 5), np.float32))


def test_minus_zero_is_the_first_image(ops, operator):
    rois = ROIS * np.float32([0, 1, 1, 1, 1])
    want = pooled(operator, MAP, rois, module=ops)
    rois[:, 0] = -0.0
    compare.same(pooled(operator, MAP, rois, module=ops), want, MAP)


# -------------------------------------------------------------------------------------------------- refused: shapes


def test_maps_of_another_shape(array, operator):
    for shape in [(3, 4), (18, 7, 8), (1, 2, 18, 7, 8), ()]:
        with pytest.raises(ValueError, match=r"`input` must have shape \(N, C, H, W\).*, got " + re.escape(str(shape))):
            pooled(operator, array(np.ones(shape, np.float32)), array(ROIS))


def test_maps_without_pixels(operator):
    for shape in [(2, 18, 0, 8), (2, 18, 7, 0)]:
        for boxes in (ROIS, ROIS[:0]):
            with pytest.raises(ValueError, match=r"`input` must.*, got " + re.escape(str(shape))):
                pooled(operator, np.ones(shape, np.float32), boxes)
        with pytest.raises(ValueError, match=r"`input_shape` must.*, got "):
            gradient(operator, grad_of(operator), ROIS, *argmax_of(operator), shape=shape)


def test_boxes_of_another_shape(array, operator):
    maps, grad, argmax = array(MAP), array(grad_of(operator)), map_all(array, argmax_of(operator))
    for shape in [(3, 4), (5,), (1, 3, 5), (3, 6), (5, 3), (0,), ()]:
        boxes = array(np.zeros(shape, np.float32))
        message = re.escape(f"`boxes` must have shape (K, 5), got {shape}")
        with pytest.raises(ValueError, match=message):
            pooled(operator, maps, boxes)
        with pytest.raises(ValueError, match=message):
            gradient(operator, grad, boxes, *argmax)


def test_boxes_of_another_shape_in_a_list(array, operator):
    maps, grad, argmax = array(MAP), array(grad_of(operator)), map_all(array, argmax_of(operator))
    for shape in [(3, 5), (4,), (1, 3, 4), (0,), ()]:
        boxes = [array(np.zeros((1, 4), np.float32)), array(np.zeros(shape, np.float32))]
        message = re.escape(f"`boxes[1]` must have shape (L, 4), got {shape}")
        with pytest.raises(ValueError, match=message):
            pooled(operator, maps, boxes)
        with pytest.raises(ValueError, match=message):
            gradient(operator, grad, tuple(boxes), *argmax)


def test_a_list_with_another_number_of_images(array, operator):
    maps, argmax = array(MAP), map_all(array, argmax_of(operator))
    for count in (0, 1, 3):
        boxes = [array(np.zeros((2, 4), np.float32))] * count
        message = f"`boxes` must be a list of one array for each image, 2, got {count}"
        with pytest.raises(ValueError, match=message):
            pooled(operator, maps, boxes)
        with pytest.raises(ValueError, match=message):
            gradient(operator, array(grad_of(operator, count=2 * count)), boxes, *argmax)


@pytest.mark.parametrize("operator", ["ps_roi_align", "ps_roi_pool"], indirect=True)
def test_channels_that_are_no_multiple_of_the_bins(array, operator):
    for channels in (1, 5, 17, 19):
        maps = array(np.ones((2, channels, 7, 8), np.float32))
        with pytest.raises(ValueError, match=rf"`input` must.* 2 \* 3 .*, got \(2, {channels}, 7, 8\)"):
            pooled(operator, maps, array(ROIS))


def test_gradients_of_another_number_of_axes(array, operator):
    boxes, argmax = array(ROIS), map_all(array, argmax_of(operator))
    for shape in [(12, 18, 2), (12, 18, 2, 3, 1), ()]:
        message = r"`grad` must have shape \(K, C, PH, PW\).*, got " + re.escape(str(shape))
        with pytest.raises(ValueError, match=message):
            gradient(operator, array(np.ones(shape, np.float32)), boxes, *argmax)


def test_gradients_of_another_number_of_rois_or_channels(array, operator):
    boxes, argmax = array(ROIS), map_all(array, argmax_of(operator))
    grad = grad_of(operator)
    for wrong in (grad[:11], grad[:0], np.concatenate([grad, grad]), grad[:, :2], grad[:, :0], grad[:, :, :0]):
        with pytest.raises(ValueError, match=r"`grad` must.*, got " + re.escape(str(wrong.shape))):
            gradient(operator, array(wrong), boxes, *argmax)


def test_an_argmax_of_another_shape_or_dtype(array):
    grad, boxes, argmax = array(grad_of("roi_pool")), array(ROIS), argmax_of("roi_pool")[0]
    for wrong in (argmax[:1], argmax[..., :1], argmax[0], argmax.ravel()):
        with pytest.raises(ValueError, match=r"`argmax` must.*, got " + re.escape(str(wrong.shape))):
            cvops.roi_pool_backward(grad, boxes, array(wrong), MAP.shape)
    for dtype in ("float32", "bool", "int8", "uint32"):
        with pytest.raises(TypeError, match=rf"`argmax` must be .*, got {dtype}"):
            cvops.roi_pool_backward(grad, boxes, array(argmax.astype(dtype)), MAP.shape)


def test_wrong_input_shapes(operator):
    for shape in [(2, 18, 7), (2, 18, 7, 8, 1), (), (-2, 18, 7, 8), (2, 18, -7, 8), (2, 18, 7, -8)]:
        with pytest.raises(ValueError, match=r"`input_shape` must"):
            gradient(operator, grad_of(operator), ROIS, *argmax_of(operator), shape=shape)
    for shape in [None, 18, "2345", (2, 18, 7, 8.0), (2, 18, 7, "8"), (2, 18, 7, None)]:
        with pytest.raises(TypeError, match=r"`input_shape` must"):
            gradient(operator, grad_of(operator), ROIS, *argmax_of(operator), shape=shape)


# ------------------------------------------------------------------------------------------------- refused: numbers


def test_wrong_output_sizes(operator):
    for size in [0, -1, (2, 0), (-3, 2), (), (2,), (2, 3, 4), [0, 1]]:
        with pytest.raises(ValueError, match="`output_size` must"):
            pooled(operator, MAP, ROIS, size)
    for size in [None, "7", 2.0, (2, 3.0), (2, None), ((2, 3), 4), {2, 3}, True, (2, True), np.array([2, 3])]:
        with pytest.raises(TypeError, match="`output_size` must"):
            pooled(operator, MAP, ROIS, size)


def test_wrong_scales(operator):
    grad, argmax = grad_of(operator), argmax_of(operator)
    wrong = [(scale, ValueError, f"{scale:g}") for scale in (0, 0.0, -1, -1e-300, NAN, INF, -INF, np.float32(-2))]
    kinds = [None, "0.5", (0.5, 0.5), [1.0], 1j, True, np.array([0.5]), np.array([0.5, 0.5])]
    wrong += [(scale, TypeError, type(scale).__name__) for scale in kinds]
    for scale, error, text in wrong:
        with pytest.raises(error, match=f"`spatial_scale` must.*, got {re.escape(text)}"):
            pooled(operator, MAP, ROIS, (2, 3), scale)
        with pytest.raises(error, match=f"`spatial_scale` must.*, got {re.escape(text)}"):
            getattr(cvops, operator + "_backward")(grad, ROIS, *argmax, MAP.shape, scale)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
def test_wrong_sampling_ratios(operator):
    for ratio in [None, "2", 2.0, NAN, (2, 2), np.array([2]), True]:
        message = f"`sampling_ratio` must.*, got {type(ratio).__name__}"
        with pytest.raises(TypeError, match=message):
            pooled(operator, MAP, ROIS, (2, 3), 1.0, ratio)
        with pytest.raises(TypeError, match=message):
            getattr(cvops, operator + "_backward")(grad_of(operator), ROIS, MAP.shape, 1.0, ratio)


# -------------------------------------------------------------------------------------------------- refused: dtypes


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_integers(operator, dtype):
    grad, argmax = grad_of(operator), argmax_of(operator)
    with pytest.raises(TypeError, match=rf"`input` must be .*, got {dtype}.*\.astype"):
        pooled(operator, MAP.astype(dtype), ROIS)
    with pytest.raises(TypeError, match=rf"`boxes` must be .*, got {dtype}.*\.astype"):
        pooled(operator, MAP, abs(ROIS).astype(dtype))
    with pytest.raises(TypeError, match=rf"`boxes\[0\]` must be .*, got {dtype}.*\.astype"):
        pooled(operator, MAP, [abs(ROIS[:, 1:]).astype(dtype), ROIS[:, 1:]])
    with pytest.raises(TypeError, match=rf"`grad` must be .*, got {dtype}.*\.astype"):
        gradient(operator, grad.astype(dtype), ROIS, *argmax)
    with pytest.raises(TypeError, match=rf"`boxes` must be .*, got {dtype}.*\.astype"):
        gradient(operator, grad, abs(ROIS).astype(dtype), *argmax)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "longdouble", "U3", "datetime64[s]"])
def test_other_dtypes(operator, dtype):
    maps, rois = np.zeros(MAP.shape, dtype), np.zeros(ROIS.shape, dtype)
    with pytest.raises(TypeError, match=r"`input` must be .*, got "):
        pooled(operator, maps, ROIS)
    with pytest.raises(TypeError, match=r"`boxes` must be .*, got "):
        pooled(operator, MAP, rois)
    with pytest.raises(TypeError, match=r"`boxes\[1\]` must be .*, got "):
        pooled(operator, MAP, [ROIS[:, 1:], rois[:, 1:]])
    with pytest.raises(TypeError, match=r"`grad` must be .*, got "):
        gradient(operator, np.zeros(grad_of(operator).shape, dtype), ROIS, *argmax_of(operator))


def test_bfloat16(operator, torch):
    with pytest.raises(TypeError, match=r"`input` must be .*, got bfloat16"):
        pooled(operator, torch.from_numpy(MAP).bfloat16(), ROIS)


# ----------------------------------------------------------------------------------------------- refused: no arrays


def test_maps_that_are_no_arrays(operator):
    for wrong in [None, "map", 3, 3.5, MAP.tolist(), np.ma.masked_array(MAP), MAP.astype(object)]:
        with pytest.raises(TypeError, match="`input` must be an array, got "):
            pooled(operator, wrong, ROIS)


def test_boxes_that_are_no_arrays(operator):
    for wrong in [None, "boxes", 3, {"a": ROIS}, np.ma.masked_array(ROIS), ROIS.astype(object)]:
        with pytest.raises(TypeError, match="`boxes` must be an array"):
            pooled(operator, MAP, wrong)
        with pytest.raises(TypeError, match="`boxes` must be an array"):
            gradient(operator, grad_of(operator), wrong, *argmax_of(operator))
    for wrong in [None, [[0.0, 0, 1, 1]], ((0.0, 0, 1, 1),), 3, np.ma.masked_array(ROIS[:, 1:])]:
        with pytest.raises(TypeError, match=r"`boxes\[1\]` must be an array, got "):
            pooled(operator, MAP, [ROIS[:, 1:], wrong])


def test_tensors_that_require_grad(operator, torch):
    maps, rois, grad = torch.from_numpy(MAP), torch.from_numpy(ROIS), torch.from_numpy(grad_of(operator))
    with pytest.raises(TypeError, match=r"`input` requires grad: use cvops\.torch, or pass input\.detach\(\)"):
        pooled(operator, maps.clone().requires_grad_(), rois)
    with pytest.raises(TypeError, match=r"`boxes` requires grad: use cvops\.torch"):
        pooled(operator, maps, rois.clone().requires_grad_())
    with pytest.raises(TypeError, match=r"`boxes\[1\]` requires grad: use cvops\.torch"):
        pooled(operator, maps, [rois[:, 1:], rois[:, 1:].clone().requires_grad_()])
    with pytest.raises(TypeError, match=r"`grad` requires grad: use cvops\.torch"), torch.no_grad():
        gradient(operator, grad.clone().requires_grad_(), rois, *argmax_of(operator))


def test_traced_arrays(operator, jax):
    with pytest.raises(TypeError, match=r"`input`.*cvops\.jax"):
        jax.jit(lambda maps: pooled(operator, maps, ROIS))(MAP)
    with pytest.raises(TypeError, match=r"`boxes`.*cvops\.jax"):
        jax.jit(lambda rois: pooled(operator, MAP, rois))(ROIS)


# ------------------------------------------------------------------------------------------------- dangerous values


def dangerous_rois():
    """RoIs (K, 5) for two images, by name."""
    random = np.random.default_rng(0)
    most = float(np.finfo(np.float32).max)
    extremes = [0, -0.0, 1, 4.5, NAN, INF, -INF, 1e-45, -1e-45, 1e5, -1e5, 2.0**31, -(2.0**31), 1e19, most, -most]
    boxes = {
        "nan": np.full((100, 4), NAN, np.float32),
        "everything": np.full((100, 4), [-INF, -INF, INF, INF], np.float32),
        "largest": np.full((3, 4), [-most, -most, most, most], np.float32),
        "largest inverted": np.full((3, 4), [most, most, -most, -most], np.float32),
        "extremes": random.choice(extremes, (300, 4)).astype(np.float32),
        "extremes of float64": random.choice([*extremes, 1e308, -1e308, 5e-324, 2.0**63, -(2.0**63)], (300, 4)),
        "large": random.normal(0, 1e5, (100, 4)).astype(np.float32),
    }
    return {
        name: np.concatenate([np.arange(len(corners), dtype=corners.dtype)[:, None] % 2, corners], 1)
        for name, corners in boxes.items()
    }


CALLS = [
    ("roi_align", -1, True),
    ("roi_align", -1, False),
    ("roi_align", 3, True),
    ("roi_align", 10**30, False),
    ("ps_roi_align", -1),
    ("ps_roi_align", 3),
    ("roi_pool",),
    ("ps_roi_pool",),
]


def dangerous_calls(backend):
    """Run in a process of its own, so that a crash is one failure and not the end of all tests."""
    ops = Operators(backend)
    for name, rois in dangerous_rois().items():
        rois = rois[: ops.rois // 10]
        for shape, scale in (((2, 8, 5, 6), 1), ((2, 4, 1, 1), 0.25), ((2, 4, 5, 6), 1e300), ((2, 4, 5, 6), 5e-324)):
            maps = strategies.normal(shape, rois.dtype)
            for operator, *options in CALLS:
                print(name, shape, scale, operator, *options, flush=True)
                want = pooled(operator, maps, rois, 2, scale, *options, module=reference)
                compare.close(pooled(operator, maps, rois, 2, scale, *options, module=ops), want, maps)
                grad, argmax = np.ones_like(want), ()
                if operator == "roi_pool":
                    _, places = ops.roi_pool(maps, rois, 2, scale, return_argmax=True)
                    compare.same(places, reference.roi_pool(maps, rois, 2, scale)[1], maps)
                    argmax = (places,)
                    for wrong in (2**31 - 1, -(2**31), 30, 1000, -2):
                        ops.roi_pool_backward(grad, rois, np.full_like(places, wrong), shape, scale)
                inputs = grad, rois, *argmax, shape, scale, *options
                want = getattr(reference, operator + "_backward")(*inputs)
                compare.close(getattr(ops, operator + "_backward")(*inputs), want, grad)


@pytest.mark.slow
def test_dangerous_values_do_not_crash(ops):
    run = f"from {__name__} import dangerous_calls; dangerous_calls({ops.backend!r})"
    warnings = ["-W", "error", "-W", "ignore:`boxes` looks like xywh"]
    command = [sys.executable, *warnings, "-X", "faulthandler", "-c", run]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, ""), f"after {done.stdout.splitlines()[-1:]}"
