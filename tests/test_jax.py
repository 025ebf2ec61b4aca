"""cvops.jax: the operators traced, differentiated and vectorised, against the references."""

from __future__ import annotations

import gc
import inspect
import math
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cvops
from tests import data, reference, reference_deform, reference_roi, strategies_roi
from tests.libraries import require

jax = None  # set by the fixture, because it may be missing
ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(7)
MAP = RANDOM.standard_normal((2, 8, 9, 11))
ROIS = np.array([[0, 1.1, 0.7, 7.3, 6.1], [1, 0, 0, 10, 8], [0, -3, 2, 4, 20]])
# operator -> the arguments after input and boxes, as two calls of it.
POOLED = {
    "roi_align": [(2, 0.5), ((3, 2), 1.0, 2, True)],
    "roi_pool": [(2,), ((1, 3), 0.7)],
    "ps_roi_align": [(2,), (2, 0.5, 3)],
    "ps_roi_pool": [(2,), ((2, 1), 0.5)],
}
CALLS = [(operator, arguments) for operator, calls in POOLED.items() for arguments in calls]
MEASURES = ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"]

every_call = pytest.mark.parametrize(("operator", "arguments"), CALLS)
every_transform = pytest.mark.parametrize("transform", ["none", "jit"])


pytestmark = pytest.mark.usefixtures("jax")


@pytest.fixture(autouse=True)
def ops():
    """The module under test, in JAX with 64-bit types."""
    global jax
    jax = require("jax")
    import cvops.jax

    RANDOM.bit_generator.state = np.random.default_rng(7).bit_generator.state  # whatever tests ran before
    with jax.enable_x64(True):
        yield cvops.jax


def test_the_device_is_the_cpu():
    """Whatever this machine has: there alone `cvops.jax` is registered."""
    assert jax.config.jax_platforms == "cpu"


def transformed(transform, function):
    return jax.jit(function) if transform == "jit" else function


def close(got, want, tolerance=1e-10):
    got, want = np.asarray(got), np.asarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    error = np.nanmax(np.abs(got - want), initial=0) / max(1, np.nanmax(np.abs(want), initial=0))
    assert error <= tolerance, error


def check_gradients(function, *arguments):
    from jax.test_util import check_grads

    check_grads(function, arguments, 1, modes=["rev"])


# ---------------------------------------------------------------------------------------------------------- pooling


@every_call
@every_transform
def test_pooling(ops, operator, arguments, transform):
    function = transformed(transform, lambda maps, rois: getattr(ops, operator)(maps, rois, *arguments))
    want = getattr(reference_roi, operator)(MAP, ROIS, *arguments)
    close(function(MAP, ROIS), want[0] if operator == "roi_pool" else want)


@every_call
@every_transform
def test_gradients_of_pooling(ops, operator, arguments, transform):
    def function(maps):
        return getattr(ops, operator)(maps, ROIS, *arguments)

    check_gradients(transformed(transform, function), MAP)
    pooled, backward = jax.vjp(transformed(transform, function), MAP)
    grad = RANDOM.standard_normal(pooled.shape)
    argmax = (reference_roi.roi_pool(MAP, ROIS, *arguments)[1],) if operator == "roi_pool" else ()
    want = getattr(reference_roi, operator + "_backward")(grad, ROIS, *argmax, MAP.shape, *arguments[1:])
    close(backward(grad)[0], want, 1e-9)


@every_call
def test_vectorised_pooling(ops, operator, arguments):
    maps, rois = np.stack([MAP, -MAP, MAP + 1]), np.stack([ROIS, ROIS[::-1], ROIS])
    function = getattr(ops, operator)

    def one(map, rois):
        want = getattr(reference_roi, operator)(map, rois, *arguments)
        return want[0] if operator == "roi_pool" else want

    both = jax.jit(jax.vmap(lambda map, rois: function(map, rois, *arguments)))
    close(both(maps, rois), np.stack([one(*pair) for pair in zip(maps, rois, strict=True)]))
    of_maps = jax.vmap(lambda map: function(map, ROIS, *arguments))
    close(of_maps(maps), np.stack([one(map, ROIS) for map in maps]))
    of_rois = jax.vmap(jax.vmap(lambda rois: function(MAP, rois, *arguments)))
    close(of_rois(rois[None]), np.stack([one(MAP, row) for row in rois])[None])
    check_gradients(jax.jit(of_maps), maps)
    slope = jax.grad(lambda map: function(map, ROIS, *arguments).sum())
    close(jax.vmap(slope)(maps), np.stack([slope(map) for map in maps]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_storage_of_pooling(ops, dtype):
    maps, rois = jax.numpy.asarray(MAP, dtype), ROIS.astype("f")
    got, backward = jax.vjp(lambda maps: ops.roi_align(maps, rois, 2), maps)
    assert got.dtype == maps.dtype
    want = reference_roi.roi_align(np.asarray(maps, "f"), rois, 2)
    close(np.asarray(got, "f"), want, 1e-5 if dtype == "float32" else 4e-3)
    assert backward(got)[0].dtype == maps.dtype


def test_lists_of_boxes(ops):
    boxes = [ROIS[:2, 1:], ROIS[2:, 1:]]
    want = reference_roi.roi_align(MAP, boxes, 2)
    close(jax.jit(lambda maps, boxes: ops.roi_align(maps, boxes, 2))(MAP, boxes), want)
    assert ops.roi_align(MAP, [np.zeros((0, 4))] * 2, 2).shape == (0, 8, 2, 2)
    assert ops.roi_align(MAP[:0], [], 2).shape == (0, 8, 2, 2)
    many = [np.array([[0, 0, 1, 1]], "f2")] * 2050  # float16 does not hold the last indices
    maps = np.arange(2050.0)[:, None, None, None] * np.ones((1, 2, 2))
    close(ops.roi_align(maps, many, 1)[:, 0, 0, 0], np.arange(2050.0))


@pytest.mark.parametrize("names", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("scales", [None, (0.25, 0.125)])
def test_pyramids(ops, names, scales):
    maps = {"a": RANDOM.standard_normal((2, 4, 16, 16)), "b": RANDOM.standard_normal((2, 4, 8, 8)), "c": np.zeros(3)}
    boxes, shapes = [np.array([[0, 0, 20, 30], [3, 3, 60, 60.0]]), np.array([[5, 6, 64, 60.0]])], [(64, 60), (60, 64)]
    options = {"canonical_scale": 32, "canonical_level": 2}
    if scales:
        options["scales"] = [dict(zip("ab", scales, strict=True))[name] for name in names]
    pool = ops.MultiScaleRoIAlign(names, 2, 2, **options)
    used = {name: maps[name] for name in names}
    want = reference_roi.multiscale_roi_align(used, boxes, shapes, names, 2, 2, **options)
    close(jax.jit(lambda maps, boxes: pool(maps, boxes, shapes))(maps, boxes), want)
    check_gradients(jax.jit(lambda maps: pool(maps, boxes, shapes)), used)
    stacked = {name: np.stack([map, 2 * map]) for name, map in used.items()}
    close(jax.vmap(lambda maps: pool(maps, boxes, shapes))(stacked), np.stack([want, 2 * want]))


def test_pyramid_pooling_by_the_function(ops):
    maps = [RANDOM.standard_normal((2, 3, 9 * size, 8 * size)) for size in (1, 2)]
    rois = np.array([[0, 1.0, 2.0, 9.0, 8.0], [1, 0.0, 0.0, 60.0, 50.0]])
    options = {"scales": [1 / 8, 1 / 4], "canonical_scale": 32, "canonical_level": 2}
    want = cvops.multiscale_roi_align(maps, rois, 2, **options)
    assert np.unique(want).size > 10

    def function(maps):
        return ops.multiscale_roi_align(maps, rois, 2, **options)

    close(jax.jit(function)(maps), want)
    check_gradients(jax.jit(function), maps)
    with pytest.raises(ValueError, match="`scales` must have one number for each of 2 maps, got 1"):
        ops.multiscale_roi_align(maps, rois, 2, scales=[1])


@every_transform
def test_maps_of_one_scale(ops, transform):
    """The first of them takes the boxes, also one whose area is infinite."""
    maps = [RANDOM.standard_normal((2, 3, 9 * size, 8 * size), "f4") for size in (2, 1, 2, 1)]
    rois = np.array([[0, 1, 2, 9, 8], [1, 0, 0, 60, 70], [1, 0, 0, 3e38, 3e38]], "f4")
    options = {"scales": [1 / 4, 1 / 8, 1 / 4, 1 / 8], "canonical_scale": 32, "canonical_level": 2, "sampling_ratio": 2}
    function = transformed(transform, lambda maps: ops.multiscale_roi_align(maps, rois, 2, **options))
    want = cvops.multiscale_roi_align(maps, rois, 2, **options)
    close(function(maps), want, 1e-6)
    slopes = jax.grad(lambda maps: (function(maps) * want).sum())(maps)
    close_all(slopes, cvops.multiscale_roi_align_backward(want, rois, [map.shape for map in maps], **options))
    assert [bool(slope.any()) for slope in slopes] == [True, True, False, False]


# ----------------------------------------------------------------------------------------------------- deform_conv2d


@pytest.mark.parametrize("given", [(), ("bias",), ("mask",), ("bias", "mask")])
@every_transform
def test_deformable_convolution(ops, given, transform):
    arrays = {
        "input": RANDOM.standard_normal((2, 4, 6, 7)),
        # Off the borders of cells, where differences would be of two of them.
        "offset": RANDOM.integers(-2, 2, (2, 18, 6, 7)) + RANDOM.uniform(0.1, 0.9, (2, 18, 6, 7)),
        "weight": RANDOM.standard_normal((4, 2, 3, 3)),
        "bias": RANDOM.standard_normal(4),
        "mask": RANDOM.uniform(0, 1, (2, 9, 6, 7)),
    }
    arrays = {name: array for name, array in arrays.items() if name in ("input", "offset", "weight", *given)}
    function = transformed(transform, lambda arrays: ops.deform_conv2d(**arrays, padding=1))
    close(function(arrays), reference_deform.deform_conv2d(**arrays, padding=1))
    check_gradients(function, arrays)
    grad = RANDOM.standard_normal((2, 4, 6, 7))
    want = reference_deform.deform_conv2d_backward(grad, **arrays, padding=1)
    want = dict(zip(("input", "offset", "weight", "bias", "mask"), want, strict=True))
    got = jax.vjp(function, arrays)[1](grad)[0]
    assert set(got) == set(arrays)
    for name, gradient in got.items():
        close(gradient, want[name], 1e-9)
    vectorised = jax.vmap(function)({name: np.stack([array, array]) for name, array in arrays.items()})
    close(vectorised, np.stack([function(arrays)] * 2))


# --------------------------------------------------------------------------------------------------------------- nms


@every_transform
@pytest.mark.parametrize("length", [0, 1, 7, 300])
def test_nms(ops, transform, length):
    boxes, scores, idxs = data.clustered(length)
    for size in (0, 5, length):
        function = transformed(transform, lambda *arrays, size=size: ops.nms(*arrays, 0.5, max_output=size))
        check_kept(function(boxes, scores), reference.nms(boxes, scores, 0.5, max_output=size), size)
        function = transformed(transform, lambda *arrays, size=size: ops.batched_nms(*arrays, 0.5, max_output=size))
        check_kept(function(boxes, scores, idxs), reference.batched_nms(boxes, scores, idxs, 0.5)[:size], size)
    function = transformed(transform, lambda *arrays: ops.nms(*arrays, 0.5, max_output=9, score_threshold=0.5))
    check_kept(function(boxes, scores), reference.nms(boxes, scores, 0.5, score_threshold=0.5)[:9], 9)


def check_kept(got, want, size):
    keep, count = got
    assert (keep.shape, keep.dtype, count.shape, count.dtype) == ((size,), np.int64, (), np.int64)
    assert int(count) == len(want)
    assert keep.tolist() == [*want, *[-1] * (size - len(want))]


def test_vectorised_nms(ops):
    boxes, scores, _ = data.clustered(120)
    boxes, scores = boxes.reshape(3, 40, 4), scores.reshape(3, 40)
    keep, count = jax.jit(jax.vmap(lambda *arrays: ops.nms(*arrays, 0.5, max_output=40)))(boxes, scores)
    for i in range(3):
        check_kept((keep[i], count[i]), reference.nms(boxes[i], scores[i], 0.5), 40)
    keep, count = jax.vmap(lambda scores: ops.nms(boxes[0], scores, 0.5, max_output=40))(scores)
    for i in range(3):
        check_kept((keep[i], count[i]), reference.nms(boxes[0], scores[i], 0.5), 40)


def test_what_nms_selects_has_gradients(ops):
    boxes, scores, _ = data.clustered(50)

    def loss(boxes, scores):
        keep, _ = ops.nms(boxes, scores, 0.5, max_output=50)
        return (boxes[keep].sum(1) * scores[keep] * (keep >= 0)).sum()

    got = jax.jit(jax.grad(loss))(boxes.astype("f8"), scores.astype("f8"))
    want, keep = np.zeros((50, 4)), reference.nms(boxes, scores, 0.5)
    want[keep] = scores[keep, None]
    close(got, want)


def test_without_64_bit_types(ops):
    boxes, scores, idxs = data.clustered(50)
    with jax.enable_x64(False):
        keep, count = jax.jit(lambda *arrays: ops.batched_nms(*arrays, 0.5, max_output=50))(boxes, scores, idxs)
        assert (keep.dtype, count.dtype) == (np.int32, np.int32)
        assert keep[: int(count)].tolist() == reference.batched_nms(boxes, scores, idxs, 0.5).tolist()
        assert ops.roi_align(MAP, ROIS, 2).dtype == np.float32
        assert ops.box_area(np.array([[0, 0, 2, 3]])).dtype == np.float32
        assert ops.clip_boxes_to_image(np.array([[0, 0, 2**32 - 1, 3]], "u4"), (2, 2**40)).tolist() == [
            [0, 0, 2**32 - 1, 2]
        ]
        check_gradients(lambda maps: ops.roi_align(maps, ROIS, 2), MAP.astype("f"))


# ------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("fmt", ["xyxy", "cxcywh"])
def test_measures(ops, name, fmt):
    boxes = RANDOM.uniform(2, 10, (2, 6, 4))  # none so small that differences are coarse
    boxes[..., 2:] += boxes[..., :2] * (fmt == "xyxy")
    want = getattr(reference, name)(boxes, boxes[:, :4] + 0.1, fmt=fmt)
    close(jax.jit(lambda one, two: getattr(ops, name)(one, two, fmt=fmt))(boxes, boxes[:, :4] + 0.1), want)
    ints = np.array([[0, 0, 5, 4], [3, 1, 9, 8]])
    close(getattr(ops, name)(ints, ints), getattr(reference, name)(ints, ints))
    if name != "complete_box_iou":  # whose weight of the aspect ratio counts as a constant
        from jax.test_util import check_grads

        check_grads(lambda one, two: getattr(ops, name)(one, two, fmt=fmt), (boxes, boxes[:, :4] + 0.1), 2)


def test_gradient_of_complete_iou(ops, torchvision, torch):
    one, two = RANDOM.uniform(0, 5, (2, 4, 4))
    one[:, 2:] += one[:, :2] + 1
    two[:, 2:] += two[:, :2] + 1
    tensors = [torch.tensor(array, requires_grad=True) for array in (one, two)]
    torchvision.ops.complete_box_iou_loss(*tensors, reduction="sum").backward()
    got = jax.grad(lambda one, two: (1 - jax.numpy.diagonal(ops.complete_box_iou(one, two))).sum(), (0, 1))(one, two)
    for gradient, tensor in zip(got, tensors, strict=True):
        close(gradient, tensor.grad.numpy(), 1e-6)


@every_transform
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i4", "u1"])
def test_other_box_functions(ops, transform, dtype):
    boxes = np.array([[3, 2, 9, 7], [0, 1, 4, 4]], dtype)
    for name, arguments in (("box_area", ()), ("box_convert", ("xyxy", "cxcywh")), ("clip_boxes_to_image", ((5, 6),))):
        function = transformed(
            transform, lambda boxes, name=name, arguments=arguments: getattr(ops, name)(boxes, *arguments)
        )
        close(function(boxes), getattr(reference, name)(boxes, *arguments))
    masks = (np.arange(60).reshape(3, 4, 5) % 13 == 6).astype(dtype)
    close(transformed(transform, ops.masks_to_boxes)(masks), reference.masks_to_boxes(masks))


# ------------------------------------------------------------------------------------------------------------ errors


@every_transform
def test_errors_while_tracing(ops, transform):
    boxes, scores = np.zeros((3, 4)), np.zeros(3)
    for text, function, *arguments in (
        (r"`boxes` must have shape \(L, 4\), got \(4, 3\)", lambda b: ops.nms(b, scores, 0.5, max_output=1), boxes.T),
        (r"`scores` must have shape \(3,\)", lambda s: ops.nms(boxes, s, 0.5, max_output=1), scores[:2]),
        ("`iou_threshold` must be from 0 to 1, got -1", lambda b: ops.nms(b, scores, -1, max_output=1), boxes),
        ("`max_output` must be >= 0, got -1", lambda b: ops.nms(b, scores, 0.5, max_output=-1), boxes),
        ("`output_size` must be >= 1", lambda m: ops.roi_align(m, ROIS, 0), MAP),
        (r"`boxes` must have shape \(K, 5\)", lambda m: ops.roi_align(m, boxes, 1), MAP),
        ("a list of one array for each image, 2, got 1", lambda m: ops.roi_align(m, [boxes], 1), MAP),
        ("multiple of 3", lambda m: ops.ps_roi_align(m, ROIS, 3), MAP),
        ("`weight` must have shape", lambda m: ops.deform_conv2d(m, MAP, np.zeros((1, 3, 1, 1))), MAP),
        ("leading dimensions", lambda b: ops.box_iou(b, np.zeros((2, 3, 4))), np.zeros((3, 3, 4))),
        ("must be one of xyxy", lambda b: ops.box_convert(b, "xyxy", "x"), boxes),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            transformed(transform, function)(*arguments)
    for text, function in (
        ("`boxes` must be an array, got str", lambda: ops.nms("boxes", scores, 0.5, max_output=1)),
        ("`input` must be an array, got list", lambda: ops.roi_align([1], ROIS, 1)),
        ("`input` must be float64", lambda: ops.roi_align(np.zeros((1, 1, 2, 2), int), ROIS, 1)),
        ("`idxs`", lambda: ops.batched_nms(boxes, scores, scores > 1, 0.5, max_output=1)),
        ("`iou_threshold` must be a Python", lambda: jax.jit(lambda t: ops.nms(boxes, scores, t, max_output=1))(0.5)),
        ("max_output", lambda: ops.nms(boxes, scores, 0.5)),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=text):
            function()
    with pytest.raises(KeyError, match="must have"):
        ops.MultiScaleRoIAlign(["a"], 2, 2)({}, [boxes], [(1, 1)])


@every_transform
def test_errors_of_values(ops, transform):
    """They show when the program runs, and do no harm."""
    rois = ROIS.copy()
    rois[1, 0] = 7
    with pytest.raises(Exception, match=r"`boxes` must have image indices from 0 to 1 in column 0, got 7\.0 in row 1"):
        jax.block_until_ready(transformed(transform, lambda maps, rois: ops.roi_align(maps, rois, 2))(MAP, rois))
    close(ops.roi_align(MAP, ROIS, 2), reference_roi.roi_align(MAP, ROIS, 2))


def test_what_has_no_derivative_says_so(ops):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda maps: ops.roi_align(maps, ROIS, 2), (MAP,), (MAP,))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda maps: jax.grad(lambda maps: (ops.roi_align(maps, ROIS, 2) ** 2).sum())(maps).sum())(MAP)


# ------------------------------------------------------------------------------------------------------- the way there


def test_arguments_are_not_copied(ops, monkeypatch):
    from cvops.jax import _ffi

    seen = []
    arrays_of = _ffi._arrays
    monkeypatch.setattr(
        _ffi, "_arrays", lambda *given, **options: seen.append(arrays_of(*given, **options)) or seen[-1]
    )
    maps, rois = jax.numpy.asarray(MAP), jax.numpy.asarray(ROIS)
    got = jax.block_until_ready(jax.jit(lambda maps, rois: ops.roi_align(maps, rois, 2))(maps, rois))
    (given, results) = seen
    assert [array.ctypes.data for array in given] == [maps.unsafe_buffer_pointer(), rois.unsafe_buffer_pointer()]
    assert [array.ctypes.data for array in results] == [got.unsafe_buffer_pointer()]
    assert not any(array.flags.writeable for array in given)


def test_programs_of_many_calls_end(ops):
    """In a process of its own: large arrays, calls that depend on each other and calls at once, several threads."""
    code = """
import concurrent.futures
import jax, jax.numpy as jnp
import numpy as np
import cvops.jax

rois = np.array([[0, 0.0, 0.0, 600.0, 600.0]] * 8, "f")

@jax.jit
def program(maps):
    for _ in range(5):
        pooled = [cvops.jax.roi_align(maps * i, rois, 7) for i in range(3)]
        maps = maps + sum(pooled).mean()
    return maps

maps = jnp.ones((1, 16, 600, 600))
want = program(maps)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for got in pool.map(program, [maps] * 12):
        assert (got == want).all()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "done\n", done.stderr


def test_the_names_are_those_of_cvops(ops):
    assert set(ops.__all__) == set(ops.__all__) & set(cvops.__all__)
    left = {name for name in cvops.__all__ if not name.endswith("_backward") and not name[0].isupper()} - set(
        ops.__all__
    )
    assert left == {"remove_small_boxes", "make_anchors", "make_points", "get_num_threads", "set_num_threads", "warmup"}


def test_strategies_agree(ops):
    """Any RoIs, as the plain functions get them."""
    for kind in ("inside", "across", "outside", "inverted", "tiny"):
        rois = strategies_roi.rois(kind, 6, MAP.shape, dtype=np.float64)
        close(
            jax.jit(lambda rois: ops.roi_align(MAP, rois, 3, 1.0, 2))(rois),
            reference_roi.roi_align(MAP, rois, 3, 1.0, 2),
        )


def example(folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / "jax_grad.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_example_learns(ops, tmp_path):
    done = example(tmp_path, "--steps", "60", "--out", "learned.png")
    assert (done.returncode, done.stderr) == (0, "")
    before, after = map(float, re.search(r"loss: (\S+) before, (\S+) after 60 steps", done.stdout).groups())
    assert after < before / 4
    with Image.open(tmp_path / "learned.png") as picture:
        photograph, twisted, straightened, _ = np.split(np.asarray(picture, float), 4, 1)
    assert np.square(straightened - photograph).mean() < np.square(twisted - photograph).mean() / 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--steps", "0"), "must be an integer >= 1, got '0'"),
        (("--out", "a.txt"), "must end in .png or .jpg"),
        (("--steps", "1", "--out", "missing/a.png"), "missing/a.png: No such file"),
    ],
)
def test_the_example_reports_wrong_arguments_in_one_line(ops, tmp_path, arguments, text):
    done = example(tmp_path, *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------------- numbers of boxes


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_integer_boxes_become_floats_where_a_conversion_halves(ops, dtype, x64):
    values = np.array([[3, 3, 20, 21], [50, 51, 21, 31], [10, 10, 31, 41]], dtype)
    with jax.enable_x64(x64):
        boxes = jax.numpy.asarray(values)
        for in_fmt in ("xyxy", "xywh", "cxcywh"):
            for out_fmt in ("xyxy", "xywh", "cxcywh"):
                want = reference.box_convert(np.asarray(boxes), in_fmt, out_fmt)
                got = jax.jit(lambda boxes, a=in_fmt, b=out_fmt: ops.box_convert(boxes, a, b))(boxes)
                assert got.dtype == jax.dtypes.canonicalize_dtype(want.dtype)
                np.testing.assert_array_equal(np.asarray(got), want)


def test_float16_boxes_are_converted_in_float32(ops):
    values = np.array([[60000, 2047, 60032, 2048], [-3, 0.1, 8, 0.3]], np.float16)
    for in_fmt in ("xyxy", "xywh", "cxcywh"):
        for out_fmt in ("xyxy", "xywh", "cxcywh"):
            got = ops.box_convert(jax.numpy.asarray(values), in_fmt, out_fmt)
            want = reference.box_convert(values.astype("f4"), in_fmt, out_fmt)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(np.asarray(got), want.astype(np.float16))


@pytest.mark.parametrize("name", ["generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_gradients_of_collapsed_boxes_are_finite(ops, name):
    boxes = jax.numpy.asarray(
        [[12, 20, 28, 20], [12, 20, 12, 40], [12, 20, 12, 20], [0, 0, 1e-30, 0], [28, 40, 12, 20], [0, 0, 0, 0.0]]
    )
    target = jax.numpy.asarray([[10.0, 10, 30, 50]])
    value, gradient = jax.value_and_grad(lambda boxes: getattr(ops, name)(boxes, target).sum())(boxes)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    want = getattr(reference, name)(np.asarray(boxes), np.asarray(target))
    np.testing.assert_allclose(np.asarray(getattr(ops, name)(boxes, target)), want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- drop-in


def test_signatures_are_those_of_cvops(ops):
    """Names, kinds and defaults. Left out is what changes the number of results; lengths must be told."""
    for name in ops.__all__:
        plain, traced = (dict(inspect.signature(getattr(module, name)).parameters) for module in (cvops, ops))
        for left in ("padded", "return_argmax"):
            plain.pop(left, None)
        assert set(plain) == set(traced), name
        for option, parameter in traced.items():
            assert parameter.kind == plain[option].kind, (name, option)
            assert parameter.default == plain[option].default or option == "max_output", (name, option)
        positional = [
            [key for key, value in each.items() if value.kind != value.KEYWORD_ONLY] for each in (plain, traced)
        ]
        assert positional[0] == positional[1], name


def test_arguments_are_those_of_the_signature(ops):
    """What the function of cvops has besides is refused, as Python does, and the first array may be named."""
    boxes, scores = np.ones((2, 4), "f"), np.ones(2, "f")
    assert ops.nms(scores=scores, iou_threshold=0.5, boxes=boxes, max_output=1)[1] == 2 - 1
    assert ops.multiscale_roi_align(boxes=ROIS, output_size=2, scales=[1], features=[MAP]).shape[2:] == (2, 2)
    for call, text in (
        (lambda: ops.nms(boxes, scores, 0.5, max_output=1, padded=True), r"nms\(\) got an unexpected .*'padded'"),
        (lambda: ops.nms(boxes, scores, 0.5), r"nms\(\) missing 1 required keyword-only argument: 'max_output'"),
        (lambda: ops.roi_pool(MAP, ROIS, 2, return_argmax=True), r"roi_pool\(\) got an unexpected .*'return_argmax'"),
        (lambda: ops.roi_pool(MAP, ROIS, 2, 1.0, True), r"roi_pool\(\) takes .* 4 positional arguments"),
        (lambda: ops.box_iou(), r"box_iou\(\) missing 2 required positional arguments"),
        (lambda: ops.box_iou(boxes, boxes, boxes1=boxes), r"box_iou\(\) got multiple values for argument 'boxes1'"),
    ):
        with pytest.raises(TypeError, match=text):
            call()


@pytest.mark.parametrize("real", [np.float64, np.float32, np.asarray])
@pytest.mark.parametrize("whole", [np.int64, np.uint8, np.asarray])
@pytest.mark.parametrize("x64", [True, False])
def test_options_are_numbers_of_numpy_too(ops, x64, real, whole):
    boxes, scores, idxs = data.clustered(9)
    arrays = {"input": np.ones((1, 2, 5, 5), "f4"), "offset": np.zeros((1, 18, 3, 3), "f4")}
    arrays["weight"] = np.ones((2, 2, 3, 3), "f4")
    maps, rois, maps_by_name = (
        MAP.astype("f4"),
        ROIS.astype("f4"),
        {"a": MAP.astype("f4"), "b": MAP[..., ::2, ::2].astype("f4")},
    )
    images = [(whole(9), whole(11))] * 2

    def calls(real, whole, flag):
        size = (whole(2), whole(4))
        yield ops.nms(boxes, scores, real(0.5), max_output=whole(4), score_threshold=real(0.25))
        yield ops.batched_nms(boxes, scores, idxs, real(0.5), max_output=whole(4), score_threshold=whole(0))
        yield ops.roi_align(maps, rois, size, real(0.5), whole(2), flag(True))
        yield ops.roi_pool(maps, rois, whole(2), real(0.5))
        yield ops.ps_roi_align(maps, rois, [whole(2), whole(2)], real(0.5), whole(2))
        yield ops.ps_roi_pool(maps, rois, whole(2), real(0.5))
        yield ops.deform_conv2d(**arrays, stride=whole(1), padding=(whole(0), whole(0)), dilation=whole(1))
        yield ops.distance_box_iou(boxes, boxes, real(0.25))
        yield ops.complete_box_iou(boxes, boxes, eps=real(0.25))
        yield ops.clip_boxes_to_image(boxes, (whole(4), real(5.5)))
        for scales in (None, (real(0.5), real(0.25))):
            pool = ops.MultiScaleRoIAlign(
                ("a", "b"), size, whole(2), canonical_scale=whole(16), canonical_level=whole(2), aligned=flag(True),
                scales=scales,
            )  # fmt: skip
            yield pool(maps_by_name, rois, images)

    with jax.enable_x64(x64):
        close_all(list(calls(real, whole, np.bool_)), list(calls(float, int, bool)))


def close_all(got, want):
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        close(one, two)


@pytest.mark.parametrize("big", [10**400, -(10**400), 10**40])
def test_numbers_that_nothing_holds_are_refused(ops, big):
    boxes, scores, _ = data.clustered(3)
    for call in (
        lambda: ops.nms(boxes, scores, big, max_output=1),
        lambda: ops.nms(boxes, scores, 0.5, max_output=big),
        lambda: ops.roi_pool(MAP, ROIS, big),
        lambda: ops.roi_align(MAP, ROIS, (1, big)),
        lambda: ops.deform_conv2d(MAP, MAP, MAP, stride=big),
        lambda: ops.MultiScaleRoIAlign(["a"], 2, 2, canonical_level=big)({"a": MAP}, ROIS, [(9, 9)]),
    ):
        with pytest.raises(ValueError, match=r"`[a-z_]+` must be"):
            call()
    if abs(big) == 10**400:
        for call in (
            lambda: ops.nms(boxes, scores, 0.5, max_output=1, score_threshold=big),
            lambda: ops.roi_align(MAP, ROIS, 2, spatial_scale=big),
            lambda: ops.complete_box_iou(boxes, boxes, big),
            lambda: ops.clip_boxes_to_image(boxes, (big, 1)),
            lambda: ops.MultiScaleRoIAlign(["a"], 2, 2, canonical_scale=big)({"a": MAP}, ROIS, [(9, 9)]),
            lambda: ops.MultiScaleRoIAlign(["a"], 2, 2, scales=[big])({"a": MAP}, ROIS, []),
        ):
            with pytest.raises(ValueError, match=r"`[a-z_]+` must be"):
                call()


@pytest.mark.parametrize("threshold", [0.3, 0.1, 1 / 3, 1e39, -1e39])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scores_are_compared_in_their_dtype(ops, dtype, threshold):
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10.0]])
    with np.errstate(over="ignore"):
        at = jax.numpy.asarray(np.float64(threshold)).astype(dtype)
    scores = jax.numpy.stack([at, jax.numpy.nextafter(at, jax.numpy.asarray(9, dtype)), at])
    got = jax.jit(lambda scores: ops.nms(boxes, scores, 0.5, max_output=3, score_threshold=threshold))(scores)
    assert int(got[1]) == int((scores > at).sum())


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "bfloat16", "f4", "f8"])
@pytest.mark.parametrize("x64", [True, False])
def test_dtypes_of_results_are_those_of_cvops(ops, dtype, x64):
    with jax.enable_x64(x64):
        boxes = jax.numpy.asarray(np.array([[1, 2, 5, 9], [2, 2, 4, 5]]).astype(jax.numpy.dtype(dtype)))
        masks = jax.numpy.ones((2, 3, 3), boxes.dtype)
        host = np.asarray(boxes, "f2") if dtype == "bfloat16" else np.asarray(boxes).astype(boxes.dtype)
        for name, arguments in (
            ("box_area", ()), ("box_iou", (boxes,)), ("generalized_box_iou", (boxes,)), ("distance_box_iou", (boxes,)),
            ("complete_box_iou", (boxes,)), ("box_convert", ("xyxy", "xywh")), ("box_convert", ("xywh", "cxcywh")),
            ("box_convert", ("xyxy", "xyxy")), ("clip_boxes_to_image", ((4, 4),)),
        ):  # fmt: skip
            got = getattr(ops, name)(boxes, *arguments)
            want = getattr(cvops, name)(host, *[host if argument is boxes else argument for argument in arguments])
            keeps = dtype == "bfloat16" and want.dtype == np.float16
            assert got.dtype == (boxes.dtype if keeps else jax.dtypes.canonicalize_dtype(want.dtype)), name
        assert ops.masks_to_boxes(masks).dtype == np.float32
        keep, count = ops.nms(boxes, jax.numpy.ones(2), 0.5, max_output=2)
        assert keep.dtype == count.dtype == jax.dtypes.canonicalize_dtype(np.int64)


def test_arrays_of_every_layout_and_what_is_none(ops):
    boxes, scores, _ = data.clustered(20)
    want = reference.nms(boxes, scores, 0.5)
    strided = np.zeros((40, 8), boxes.dtype)[::2, ::2]
    strided[...] = boxes
    for array in (boxes.astype(boxes.dtype.newbyteorder()), strided, boxes[::-1][::-1], jax.numpy.asarray(boxes)):
        check_kept(ops.nms(array, scores, 0.5, max_output=20), want, 20)
    for array in (
        None, [[0, 0, 1, 1]], "boxes", 3, np.ma.array(boxes), boxes.astype(object), boxes.astype(str),
        boxes.astype(np.longdouble), boxes.astype(complex), boxes > 1, jax.random.key(0), boxes.astype("M8[s]"),
        np.zeros(20, [("x", "f4")]), np.zeros((20, 4), jax.dtypes.float0), jax.numpy.zeros((20, 4), "float8_e4m3fn"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="`boxes` must be"):
            ops.nms(array, scores, 0.5, max_output=20)
    for name in ("input", "offset", "weight"):
        arrays = {"input": MAP, "offset": MAP, "weight": MAP, name: None}
        with pytest.raises(TypeError, match=f"`{name}` must be an array, got None"):
            ops.deform_conv2d(**arrays)


@pytest.mark.parametrize("operator", [*POOLED, "MultiScaleRoIAlign"])
@every_transform
def test_gradients_do_not_keep_the_maps(ops, operator, transform):
    def function(maps):
        if operator == "MultiScaleRoIAlign":
            pool = ops.MultiScaleRoIAlign(["a", "b"], 2, 2, scales=[0.5, 0.25])
            return pool({"a": maps, "b": maps[..., ::2, ::2]}, ROIS, [])
        return getattr(ops, operator)(maps, ROIS, 2)

    maps = jax.numpy.asarray(np.tile(MAP, (1, 1, 9, 9)))
    alive = weakref.ref(maps)
    pooled, backward = jax.vjp(transformed(transform, function), maps)
    largest = maps.nbytes // 20
    del maps
    gc.collect()
    assert alive() is None
    assert sum(math.prod(kept.shape) * kept.dtype.itemsize for kept in jax.tree.leaves(backward)) < largest
    assert backward(pooled)[0].shape == (2, 8, 81, 99)


def test_boxes_have_a_gradient_of_zero(ops):
    for operator in POOLED:
        slope = jax.grad(lambda rois, operator=operator: getattr(ops, operator)(MAP, rois, 2).sum())(ROIS)
        close(slope, np.zeros_like(ROIS))
    pool = ops.MultiScaleRoIAlign(["a"], 2, 2)
    slope = jax.grad(lambda boxes: pool({"a": MAP}, boxes, [(9, 9)]).sum())([ROIS[:2, 1:], ROIS[2:, 1:]])
    close_all(slope, [np.zeros((2, 4)), np.zeros((1, 4))])


def test_help_is_that_of_cvops_and_what_differs(ops):
    for name in ops.__all__:
        plain, traced = getattr(cvops, name), getattr(ops, name)
        text = inspect.getdoc(traced)
        assert text.startswith(inspect.getdoc(plain).partition("\n")[0]), name
        assert f">>> cvops.jax.{name}(" in text or f"cvops.jax.{name}(" in text.partition("Examples\n")[2], name
        assert ">>> cvops." + name not in text, name
        documented = re.findall(r"^\w+(?:, \w+)*(?= : |\n    As )", text.partition("Returns\n")[0], re.MULTILINE)
        documented = {option for line in documented for option in line.split(", ")}
        assert documented == set(inspect.signature(traced).parameters), name


BAD = {
    "boxes of three columns": lambda ops, a: ops.nms(a["boxes"][:, :3], a["scores"], 0.5, max_output=1),
    "boxes of numbers that are none": lambda ops, a: ops.nms(a["boxes"] > 1, a["scores"], 0.5, max_output=1),
    "scores of classes": lambda ops, a: ops.nms(a["boxes"], a["boxes"], 0.5, max_output=1),
    "a threshold of 2": lambda ops, a: ops.nms(a["boxes"], a["scores"], 2, max_output=1),
    "a score threshold that is a list": lambda ops, a: ops.nms(
        a["boxes"], a["scores"], 0.5, max_output=1, score_threshold=[1]
    ),
    "a length of half": lambda ops, a: ops.nms(a["boxes"], a["scores"], 0.5, max_output=0.5),
    "no scores": lambda ops, a: ops.nms(a["boxes"], None, 0.5, max_output=1),
    "idxs of another length": lambda ops, a: ops.batched_nms(
        a["boxes"], a["scores"], a["scores"][:1], 0.5, max_output=1
    ),
    "idxs that are bool": lambda ops, a: ops.batched_nms(a["boxes"], a["scores"], a["scores"] > 1, 0.5, max_output=1),
    "scores of one image": lambda ops, a: ops.multiclass_nms(a["boxes"][None], a["scores"], 0.5, max_output=1),
    "another metric": lambda ops, a: ops.multiclass_nms(
        a["boxes"][None], a["boxes"][None], 0.5, max_output=1, metric="giou"
    ),
    "floors of another length": lambda ops, a: ops.multiclass_nms(
        a["boxes"][None], a["boxes"][None], 0.5, max_output=1, score_threshold=a["scores"][:1]
    ),
    "input of integers": lambda ops, a: ops.roi_align(a["maps"].astype(int), a["rois"], 2),
    "input that is a list": lambda ops, a: ops.roi_align([a["maps"]], a["rois"], 2),
    "rois without an index": lambda ops, a: ops.roi_align(a["maps"], a["boxes"], 2),
    "boxes of too few images": lambda ops, a: ops.roi_align(a["maps"], [a["boxes"]], 2),
    "boxes of five columns in a list": lambda ops, a: ops.roi_align(a["maps"], [a["boxes"], a["rois"]], 2),
    "something else in a list": lambda ops, a: ops.roi_align(a["maps"], [a["boxes"], "boxes"], 2),
    "an output without size": lambda ops, a: ops.roi_pool(a["maps"], a["rois"], 0),
    "a scale of 0": lambda ops, a: ops.roi_pool(a["maps"], a["rois"], 1, 0),
    "channels that do not divide": lambda ops, a: ops.ps_roi_align(a["maps"], a["rois"], 3),
    "a ratio of half": lambda ops, a: ops.ps_roi_align(a["maps"], a["rois"], 2, 1.0, 0.5),
    "aligned as a list": lambda ops, a: ops.roi_align(a["maps"], a["rois"], 2, 1.0, 1, [True]),
    "maps that are an array": lambda ops, a: ops.multiscale_roi_align(a["maps"], a["rois"], 2, scales=[1]),
    "no maps": lambda ops, a: ops.multiscale_roi_align([], a["rois"], 2, scales=[]),
    "maps of several dtypes": lambda ops, a: ops.multiscale_roi_align(
        [a["maps"], a["maps"].astype("f4")], a["rois"], 2, scales=[1, 0.5]
    ),
    "one scale for two maps": lambda ops, a: ops.multiscale_roi_align([a["maps"]] * 2, a["rois"], 2, scales=[1]),
    "a map that is missing": lambda ops, a: ops.MultiScaleRoIAlign(["a"], 2, 2)({"b": a["maps"]}, a["rois"], [(9, 9)]),
    "maps without names": lambda ops, a: ops.MultiScaleRoIAlign(["a"], 2, 2)([a["maps"]], a["rois"], [(9, 9)]),
    "no image shapes": lambda ops, a: ops.MultiScaleRoIAlign(["a"], 2, 2)({"a": a["maps"]}, a["rois"], []),
    "a weight of other channels": lambda ops, a: ops.deform_conv2d(a["maps"], a["maps"], a["maps"][:, :3]),
    "no offset": lambda ops, a: ops.deform_conv2d(a["maps"], None, a["maps"]),
    "a bias of another dtype": lambda ops, a: ops.deform_conv2d(a["maps"], a["maps"], a["maps"], a["scores"] > 1),
    "a stride of 0": lambda ops, a: ops.deform_conv2d(a["maps"], a["maps"], a["maps"], stride=0),
    "batches that do not broadcast": lambda ops, a: ops.box_iou(a["maps"][:, :, :4, :4], a["maps"][:, :3, :4, :4]),
    "a format that is rotated": lambda ops, a: ops.box_iou(a["boxes"], a["boxes"], "xywhr"),
    "one box": lambda ops, a: ops.generalized_box_iou(a["boxes"][0], a["boxes"]),
    "an epsilon below 0": lambda ops, a: ops.complete_box_iou(a["boxes"], a["boxes"], -1),
    "an unknown format": lambda ops, a: ops.box_area(a["boxes"], "x"),
    "a format that is None": lambda ops, a: ops.box_convert(a["boxes"], "xyxy", None),
    "a size of three": lambda ops, a: ops.clip_boxes_to_image(a["boxes"], (1, 2, 3)),
    "masks of two dimensions": lambda ops, a: ops.masks_to_boxes(a["boxes"]),
    "anchors that do not broadcast": lambda ops, a: ops.decode_boxes(a["boxes"], a["boxes"][:2]),
    "three weights": lambda ops, a: ops.encode_boxes(a["boxes"], a["boxes"], (1, 1, 1)),
    "points of four columns": lambda ops, a: ops.distance_to_boxes(a["boxes"], a["boxes"]),
    "a letterbox that is none": lambda ops, a: ops.scale_boxes(a["boxes"], (1, 1), (1, 1), letterbox="left"),
    "boxes that are None": lambda ops, a: ops.scale_boxes(None, (1, 1), (1, 1)),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
@every_transform
def test_errors_are_those_of_cvops(ops, call, transform):
    """The same type and text, but for the names of the conversion and of the array's type."""
    boxes, scores, _ = data.clustered(5)
    arrays = {"boxes": boxes, "scores": scores, "maps": MAP, "rois": ROIS}
    with pytest.raises((TypeError, ValueError, KeyError)) as plain:
        call(cvops, arrays)
    with pytest.raises(type(plain.value)) as traced:
        transformed(transform, lambda arrays: call(ops, arrays))(arrays)
    text = str(traced.value).partition("\n")[0].replace("jnp.asarray", "np.asarray")
    assert text.replace("DynamicJaxprTracer", "ndarray") == str(plain.value)
