"""What the CUDA backend promises beyond the answers: its interface, its launches, its kernels on every architecture."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import struct
import subprocess
import sys
import types
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

import cvops
from cvops import _arrays, _warmup
from tests import (
    compare,
    data,
    host_emulation,
    libraries,
    reference,
    reference_multiclass,
    reference_roi,
    strategies_roi,
)
from tests.host_emulation import device, mutant
from tests.operators import OPERATORS, converted

FILES = sorted(path.stem for path in (device.ROOT / "cvops_cuda" / "kernels").glob("*.cu"))
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
# Files whose kernels decide something by comparing floats: nothing in them may be flushed to zero. All but a few.
DECIDING = {*FILES} - {"boxes", "conv"}

# Modules that exist: (file, type code of its elements).
_OF_TWO_TYPES = "nms", "multiclass_nms", "boxes"
MODULES = [(file, dtype) for file in FILES for dtype in ("fd" if file in _OF_TWO_TYPES else "fdeE")]


# ------------------------------------------------------------------------------------------------------- interface


def parameters(function):
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def test_both_backends_have_functions_of_the_same_signatures(emulated):
    from cvops import _cpu  # imports Numba

    backend = device.load()
    names = set(backend.__all__) - {"upload", "use_backend_of"}  # a CPU is in use already, and has what the host has
    assert names == set(_cpu.__all__)
    for name in names - {"xp", "ignore_fp_errors"}:
        assert parameters(getattr(backend, name)) == parameters(getattr(_cpu, name)), name


def test_the_host_twin_offers_what_the_device_does():
    tree = ast.parse((device.ROOT / "cvops_cuda" / "_device.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            names = [each.arg for each in [*arguments.args, arguments.vararg, *arguments.kwonlyargs] if each]
            assert list(inspect.signature(getattr(device, node.name)).parameters) == names, node.name


@pytest.fixture
def on_gpu(emulated, monkeypatch):
    """Tensors pose as emulated arrays on GPU 3; [(device, address of the lent stream, whether it waits)] of calls."""
    torch, used = libraries.require("torch"), []
    monkeypatch.setattr(_arrays, "_device_of", lambda name, array: (12, 3))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda number: 70 + number, raising=False)

    def use_backend_of(backend, device, lender, foreign):
        used.append((device, lender and lender.stream, foreign))
        return contextlib.nullcontext(backend)

    monkeypatch.setattr(device.load(), "use_backend_of", use_backend_of)
    return used


def test_a_call_runs_on_the_device_and_the_stream_of_its_arrays(emulated, on_gpu):
    """On torch's current stream and in its memory if all arguments are tensors.

    Arrays of a library that has neither CuPy's stream nor lends its own are waited for.
    """
    torch = libraries.require("torch")
    boxes, scores, _ = data.clustered(9)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    want = reference.nms_of_many(boxes, scores, 0.5).tolist()
    assert cvops.nms(*tensors, 0.5).tolist() == want
    assert cvops.nms(tensors[0], emulated(scores), 0.5).tolist() == want
    assert cvops.nms(emulated(boxes), emulated(scores), 0.5).tolist() == want
    assert on_gpu == [(3, 73, False), (3, None, True), (3, None, False)]


def test_the_stream_of_a_torch_that_tells_it_by_its_public_name_alone(on_gpu, monkeypatch):
    torch = libraries.require("torch")
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    streams = types.SimpleNamespace(current_stream=lambda number: types.SimpleNamespace(cuda_stream=90 + number))
    monkeypatch.setattr(torch, "cuda", streams)
    cvops.nms(torch.rand(3, 4), torch.rand(3), 0.5)
    assert on_gpu == [(3, 93, False)]


def test_tensors_that_hide_nothing_take_one_look(on_gpu, monkeypatch):
    """The long one, which tells why something is refused, is left for all others."""
    torch = libraries.require("torch")
    keys = max(_arrays.keys_of_plain_tensors("CUDA"))
    keys_of, looked = torch._C._dispatch_keys, []

    def posing(tensor):
        plain = keys_of(tensor).raw_repr() in _arrays.keys_of_plain_tensors("CPU")
        return types.SimpleNamespace(raw_repr=lambda: keys) if plain else keys_of(tensor)

    monkeypatch.setattr(torch._C, "_dispatch_keys", posing)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda tensor: len(tensor) % 2)
    monkeypatch.setitem(_arrays._BACKENDS, 2, _arrays._BACKENDS[12])
    monkeypatch.setattr(_arrays, "_device_of", lambda name, array: looked.append(name) or (12, 3))
    boxes, scores = torch.rand(5, 4), torch.rand(5)
    cvops.nms(boxes, scores, 0.5)
    assert (on_gpu, looked) == ([(1, 71, False)], [])
    with torch.inference_mode():
        cvops.nms(boxes, scores, 0.5)
    assert (on_gpu[1:], looked) == ([(1, 71, False)], [])
    freed = scores.clone()
    freed.untyped_storage().resize_(0)
    others = {
        "requires grad": scores.clone().requires_grad_(),
        "of a subclass": torch.nn.Parameter(scores, requires_grad=False),
        "of another device": torch.rand(4),
        "a sign put off": torch._neg_view(scores),
        "without values": scores.to("meta"),
        "without memory": freed,
        "an array": scores.numpy(),
    }
    for kind, other in others.items():
        looked.clear()
        with contextlib.suppress(ValueError, TypeError, RuntimeError):
            cvops.nms(boxes, other, 0.5)
        assert looked == ["boxes", "scores"], kind
    with torch.autograd.forward_ad.dual_level():
        looked.clear()
        cvops.nms(boxes, scores, 0.5)
        assert looked == ["boxes", "scores"]


class Foreign(host_emulation.Array):
    """An emulated array of a library that does not know the stream on which the backend works."""

    __module__ = "jaxlib"


def test_arrays_of_other_libraries_are_waited_for(emulated, launches):
    """They may give the memory to somebody else as soon as the caller drops them."""
    boxes, scores, _ = data.clustered(9)
    cvops.nms(Foreign(boxes), Foreign(scores), 0.5, padded=True)
    assert launches == ["nms_block", "synchronize"]
    launches.clear()
    cvops.nms(emulated(boxes), Foreign(scores), 0.5, padded=True)
    assert launches == ["nms_block", "synchronize"]


def padded_calls(emulated):
    """Calls of every operator that can be captured in a CUDA graph, on arrays that are there."""
    boxes, scores, idxs = (emulated(array) for array in data.clustered(1700))
    few = emulated(boxes.values[:30])
    for name, row in OPERATORS.items():
        if not row.ragged:
            args = [converted(value, emulated) for value in row.args]
            yield partial(getattr(cvops, name), *args, **row.options)
    for limit in (None, 10):
        yield partial(cvops.nms, boxes, scores, 0.5, score_threshold=0.1, max_output=limit, padded=True)
        for labels in (idxs, emulated(idxs.values.astype(np.float32))):
            yield partial(cvops.batched_nms, boxes, scores, labels, 0.5, max_output=limit, padded=True)
    head, wide = emulated(np.stack([boxes.values[:60]] * 2)), scores.values[:1680].reshape(2, 60, 14)
    of_head, rows, floors = emulated(wide[:, ::-1, 2::3]), emulated(wide[:, :, 0]), emulated(wide[0, 0, ::4])
    for options in (
        {},
        {"score_threshold": 0.3, "max_candidates": 30, "max_per_class": 5},
        {"score_threshold": floors, "objectness": rows, "multi_label": False},
        {"class_agnostic": True, "max_per_class": 4},
    ):
        yield partial(cvops.multiclass_nms, head, of_head, 0.5, max_output=9, padded=True, **options)
    yield partial(cvops.multiclass_nms, head, of_head, 0.5, max_per_class=0, max_output=3, padded=True)
    yield partial(cvops.make_points, [(2, 3)], [8], like=few)
    yield partial(cvops.make_anchors, [(2, 3)], [8], scales=(32,), ratios=(1,), like=few)
    maps, rois = emulated(MAPS), emulated(strategies_roi.rois("all", 9, MAPS.shape))
    yield partial(cvops.roi_pool, maps, rois, (2, 3), return_argmax=True)
    pool = cvops.MultiScaleRoIAlign(["a", "b"], 2, 2, scales=[1, 0.5])
    features = {"a": maps, "b": emulated(strategies_roi.normal((2, 5, 10, 15)))}
    images = [emulated(boxes.values[:4]), emulated(boxes.values[4:9])]
    of_pyramid = emulated(strategies_roi.normal((9, 5, 2, 2)))
    yield partial(pool, features, images, [])
    yield partial(pool.backward, of_pyramid, features, images, [])
    deformed = {name: emulated(array) for name, array in data.deformed(1, 4, 6, 7, 4).items()}
    layer = cvops.DeformConv2d(4, 4, 3, padding=1)
    yield partial(layer, deformed["input"], deformed["offset"], deformed["mask"])
    network = cvops.FeaturePyramidNetwork([5, 5], 4)
    yield partial(network, {"a": features["a"], "b": features["b"]})


def test_operators_can_be_captured(emulated, small_batches):
    """After one call nothing waits for the device or is uploaded to it."""
    for call in padded_calls(emulated):
        call()
        with device.capture():
            call()


def test_what_cannot_be_captured(emulated):
    """The length of a result is read; parameters are uploaded at the first call."""
    boxes, scores, _ = (emulated(array) for array in data.clustered(20))
    maps = emulated(np.ones((1, 2, 3, 3), "f"))
    for call in (
        lambda: cvops.nms(boxes, scores, 0.5),
        lambda: cvops.multiclass_nms(emulated(boxes.values[None]), emulated(scores.values[None, :, None]), 0.5),
        lambda: cvops.FeaturePyramidNetwork([2], 2)({"a": maps}),
        lambda: cvops.remove_small_boxes(boxes, 9),
        lambda: device.load().xp.asarray([1.0, 2.0]),
        lambda: cvops.nms(Foreign(boxes.values), Foreign(scores.values), 0.5, padded=True),
    ):
        with device.capture(), pytest.raises(AssertionError, match="while a graph is captured"):
            call()


def test_the_stand_in_knows_what_looks_at_values(emulated, launches):
    """As CuPy's arrays do it: to look waits, and so does what is assigned from the host."""
    native = device.load().asarray(emulated(np.ones(3, "f")), "array")
    xp, some = device.load().xp, native > 0
    total, target = native.sum(), xp.zeros(3, "f")
    for look in (
        lambda: bool(xp.all(some)),
        lambda: bool(some.any()),
        lambda: int(total),
        lambda: float(total),
        lambda: range(total.astype("q")),
        lambda: native.tolist(),
        lambda: xp.stack([native, target]).max().item(),
        lambda: target.__setitem__(slice(None), np.ones(3, "f")),
    ):
        launches.clear()
        look()
        assert len(launches) == 1
        with device.capture(), pytest.raises(AssertionError, match="while a graph is captured"):
            look()
    with pytest.raises(TypeError, match="add of arrays of the host and of the GPU"):
        native + np.ones(3, "f")
    launches.clear()
    with device.capture():
        target[...] = xp.minimum(native * 2 + np.float32(3), 4)[::-1]
        xp.maximum(native, 0, out=target)
    assert launches == []


def test_classes_that_are_no_integers(emulated):
    """They are refused where something is read; with padded=True equal numbers are one class."""
    boxes, scores = np.array([[0, 0, 9, 9]] * 5, "f"), np.arange(5, 0, -1).astype("f")
    for values, want in (([0.5, 0.5, 0.25, 1, 1], [0, 2, 3]), ([np.nan, np.nan, -0.0, 0, np.inf], [0, 2, 4])):
        labels = emulated(np.array(values, "f"))
        with pytest.raises(ValueError, match="`idxs` must hold integers"):
            cvops.batched_nms(emulated(boxes), emulated(scores), labels, 0.5)
        keep, count = cvops.batched_nms(emulated(boxes), emulated(scores), labels, 0.5, padded=True)
        assert keep.tolist()[: int(count.tolist())] == want


def test_what_is_compiled_names_its_files():
    text = device.sources().source("nms")
    assert re.findall(r'^#line 1 "(.*)"$', text, re.MULTILINE) == ["nms.cu", "nms.cuh", "block.cuh", "numeric.cuh"]
    assert "#include" not in text
    # Behind each header, lines of the file that includes it have their own numbers again.
    for name in ("nms.cuh", "nms.cu"):
        lines = (device.sources().KERNELS / name).read_text().splitlines()
        following = re.findall(rf'^#line (\d+) "{name}"\n(.*)$', text, re.MULTILINE)
        assert [line for _, line in following] == [lines[int(number) - 1] for number, _ in following]


# -------------------------------------------------------------------------------------------------------- launches

ONE_BLOCK = ["nms_block"]
ONE_BATCH = ["zeros", "nms_rank", "nms_order", "nms_mask", "nms_chain", "nms_compact"]
RANKS, RANKS_OF_CLASSES = ["nms_keys", "order_of_keys"], ["nms_keys", "order_of_keys", "nms_labels", "order_of_keys"]
SEARCH = ["nms_gather", "nms_mask", "nms_chain"]
TWO_BATCHES = ["zeros", *SEARCH, "nms_near", *SEARCH, "nms_compact"]


@pytest.mark.parametrize(
    ("size", "nms", "batched_nms"),
    [
        (1, ONE_BLOCK, ONE_BLOCK),
        (1024, ONE_BLOCK, ONE_BLOCK),
        (1025, ONE_BATCH, ONE_BATCH),
        (1536, ONE_BATCH, ONE_BATCH),
        (1537, RANKS + TWO_BATCHES, RANKS_OF_CLASSES + TWO_BATCHES),
    ],
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_launches_of_nms(emulated, launches, small_batches, size, nms, batched_nms, dtype):
    """And one wait for the device, to read the number of kept boxes: none with padded=True."""
    boxes, scores, idxs = (emulated(array) for array in data.clustered(size))
    boxes = emulated(boxes.values.astype(dtype))
    for padded in (False, True):
        read = [] if padded or size == 0 else ["read"]
        cvops.nms(boxes, scores, 0.5, padded=padded)
        assert launches == nms + read
        launches.clear()
        cvops.batched_nms(boxes, scores, idxs, 0.5, padded=padded)
        assert launches == batched_nms + read
        launches.clear()


def calls_of_the_table(emulated, labels):
    """(first column of docs/performance.md, call): of each operator, in the first row that names it, and of others."""
    for name, row in OPERATORS.items():
        label = next((label for label in labels if name in re.findall(r"`(\w+)`", label)), f"`{name}`")
        function, args = getattr(cvops, name), [converted(value, emulated) for value in row.args]
        padded = "padded" in inspect.signature(function).parameters
        call = partial(function, *args, **row.options, **({"padded": True, "max_output": 9} if padded else {}))
        yield label, call
        if name == "multiclass_nms":
            yield "`multiclass_nms`, `multi_label=False`", partial(call, multi_label=False)
    for size, label in ((1025, "up to 16 384"), (16385, "two batches of 16 384")):
        boxes, scores, idxs = (emulated(array) for array in data.clustered(size))
        yield f"`nms`, {label} boxes", partial(cvops.nms, boxes, scores, 0.5, padded=True)
        yield f"`batched_nms`, {label} boxes", partial(cvops.batched_nms, boxes, scores, idxs, 0.5, padded=True)


def test_launches_are_stated(emulated, launches):
    """docs/performance.md lists what each operator has a GPU do."""
    page = (device.ROOT / "docs" / "performance.md").read_text()
    text = page.partition("## Launches on a GPU\n")[2].partition("\n## ")[0]
    stated, seen = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE)), set()
    kernels = {kernel for file in FILES for kernel in device.kernels(device.sources().source(file))}
    for label, call in calls_of_the_table(emulated, list(stated)):
        launches.clear()
        call()
        if label in stated or kernels & {*launches}:  # others are arithmetic of CuPy alone
            assert (label, ", ".join(launches)) == (label, stated.get(label))
            seen.add(label)
    assert seen == set(stated)


def test_launches_of_nms_whatever_the_threshold(emulated, launches, small_batches):
    """Below 0.1 kept boxes are not looked for near each box, and from 1 on not at all."""
    boxes, scores, _ = (emulated(array) for array in data.clustered(1700))
    for threshold, near in ((0.05, []), (0.1, ["nms_near"]), (0.999, ["nms_near"]), (1, [])):
        cvops.nms(boxes, scores, threshold, padded=True)
        assert launches == [*RANKS, "zeros", *SEARCH, *near, *SEARCH, "nms_compact"]
        launches.clear()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_launches_of_multiclass_nms(emulated, launches, dtype):
    """Five, whatever the scores; and one wait for the device where the number of detections is the length."""
    boxes = emulated(np.stack([data.clustered(50)[0]] * 2).astype(dtype))
    for share in (0, 0.1, 1):
        for scan, options in (
            ("multiclass_scan", {}),
            ("multiclass_scan", {"class_agnostic": True, "max_per_class": 2, "max_candidates": 70}),
            ("multiclass_best", {"multi_label": False}),
        ):
            scores = np.random.default_rng(0).random((2, 7, 50)).astype(dtype)
            call = partial(cvops.multiclass_nms, boxes, emulated(scores.transpose(0, 2, 1)), 0.5, max_output=20)
            kernels = ["zeros", scan, "multiclass_rank", "multiclass_suppress", "multiclass_write"]
            call(score_threshold=1 - share, padded=True, **options)
            assert launches == kernels
            launches.clear()
            call(score_threshold=1 - share, **options)
            assert launches == [*kernels[:-1], "to_host", kernels[-1]]
            launches.clear()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_launches_of_multiclass_nms_of_nothing(emulated, launches, shape):
    """No kernel, and no wait."""
    boxes, scores = emulated(np.zeros((*shape[:2], 4), "f")), emulated(np.zeros(shape, "f"))
    cvops.multiclass_nms(boxes, scores, 0.5)
    assert launches == []
    cvops.multiclass_nms(boxes, scores, 0.5, max_output=4, padded=True)
    assert launches == ["zeros"]


def test_more_scores_than_kernels_count(emulated, launches):
    """They are refused before anything runs, unless nothing is asked for."""
    boxes, scores = np.zeros((1, 1 << 16, 4), "f"), np.broadcast_to(np.float32(0), (1, 1 << 16, 1 << 15))
    for options in ({}, {"multi_label": False}, {"max_candidates": 5}, {"max_output": 5, "padded": True}):
        with pytest.raises(ValueError, match=r"^`scores` must have at most 2147483647 scores of an image on CUDA"):
            cvops.multiclass_nms(emulated(boxes), emulated(scores), 0.5, **options)
    assert launches == []
    assert cvops.multiclass_nms(emulated(boxes), emulated(scores), 0.5, max_output=0).box.tolist() == []
    assert cvops.multiclass_nms(emulated(boxes[:0]), emulated(scores[:0]), 0.5).box.tolist() == []


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_launches_of_box_measures(emulated, launches, name):
    boxes = emulated(data.clustered(300)[0])
    getattr(cvops, name)(boxes, boxes)
    getattr(cvops, name)(emulated(np.zeros((0, 4), "f4")), boxes)
    assert launches == ["box_pairs"]


MAPS = strategies_roi.normal((2, 5, 20, 30))
CHANNELS_LAST = np.ascontiguousarray(MAPS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
GRADIENT = ["roi_align_footprints", "roi_align_gradients"]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_launches_of_roi_align(emulated, launches, dtype):
    """One, whatever the RoIs, wherever the maps lie; two for the gradient. Nothing is zeroed."""
    for rois in (strategies_roi.rois("all", 12, MAPS.shape), np.full((3, 5), np.nan, np.float32)):
        for maps, kernel in ((MAPS, "roi_align"), (CHANNELS_LAST, "roi_align_last")):
            cvops.roi_align(emulated(maps.astype(dtype)), emulated(rois), 2)
            assert launches == [kernel]
            launches.clear()
        grad = emulated(np.broadcast_to(np.ones(1, dtype), (len(rois), 5, 2, 3)))
        cvops.roi_align_backward(grad, emulated(rois), MAPS.shape)
        assert launches == GRADIENT
        launches.clear()


@pytest.mark.parametrize(("levels", "groups"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_launches_of_a_pyramid(emulated, launches, levels, groups):
    """One for four maps, two for their gradients."""
    features = {f"{i}": emulated(strategies_roi.normal((1, 3, 5, 6))) for i in range(levels)}
    boxes = [emulated(np.array([[0, 0, 30, 40], [0, 0, 1, 1]], np.float32))]
    pool = cvops.MultiScaleRoIAlign(list(features), 2, 2, scales=[2.0**-i for i in range(levels)])
    grad = pool(features, boxes, [])
    assert launches == ["roi_align"] * groups
    launches.clear()
    pool.backward(grad, features, boxes, [])
    assert launches == GRADIENT * groups


def test_launches_of_roi_align_without_rois_or_pixels(emulated, launches):
    """The gradient without RoIs has to be zeros."""
    none = emulated(np.zeros((0, 5), np.float32))
    cvops.roi_align(emulated(MAPS), none, 2)
    cvops.roi_align(emulated(MAPS[:, :0]), emulated(strategies_roi.rois("all", 3, MAPS.shape)), 2)
    cvops.roi_align_backward(emulated(np.zeros((0, 0, 2, 2), np.float32)), none, (2, 0, 4, 4))
    assert launches == []
    cvops.roi_align_backward(emulated(np.zeros((0, 5, 2, 2), np.float32)), none, MAPS.shape)
    assert launches == ["roi_align_gradients"]


pooling = pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_align", "ps_roi_pool"])


def pool_both_ways(emulated, operator, maps, rois, output_size, scale=1.0):
    """(pooled, its gradient) on CUDA, each with what it should be; bfloat16 is float32 to the reference."""
    single = maps if maps.dtype.kind == "f" else maps.astype(np.float32)
    want = getattr(reference_roi, operator)(single, rois, output_size, scale)
    options, argmax = ({"return_argmax": True}, [want[1]]) if operator == "roi_pool" else ({}, [])
    want = want[0] if operator == "roi_pool" else want
    boxes = emulated(rois)
    pooled = getattr(cvops, operator)(emulated(maps), boxes, output_size, scale, **options)
    if operator == "roi_pool":
        pooled, places = pooled
        compare.same(places, argmax[0], boxes)
    grad = strategies_roi.normal(want.shape, maps.dtype, seed=1)
    backward = f"{operator}_backward"
    want_gradient = getattr(reference_roi, backward)(grad.astype(single.dtype), rois, *argmax, maps.shape, scale)
    gradient = getattr(cvops, backward)(emulated(grad), boxes, *map(emulated, argmax), maps.shape, scale)
    return (pooled, want.astype(maps.dtype)), (gradient, want_gradient.astype(maps.dtype))


@pooling
def test_launches_of_pooling(emulated, launches, operator):
    """One for the result and one for the gradient, whatever the number and place of RoIs; without RoIs one memset.

    One more for the gradient of roi_pool if the map is large.
    """
    for sides in ((42, 70), (43, 70)):
        maps = strategies_roi.normal((2, 12, *sides))
        extents = ["roi_pool_extents"] * (operator == "roi_pool" and sides == (43, 70))
        for count in (1, 40):
            pool_both_ways(emulated, operator, maps, strategies_roi.rois("all", count, maps.shape), (2, 3))
            assert launches == [operator, *extents, f"{operator}_gradients"]
            launches.clear()
    pool_both_ways(emulated, operator, maps, np.zeros((0, 5), np.float32), (2, 3))
    assert launches == ["zeros"]
    launches.clear()
    pool_both_ways(emulated, operator, maps[:, :0], np.ones((3, 5), np.float32), (2, 3))
    assert launches == []


@pooling
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_of_pooling(emulated, operator, dtype):
    dtype = libraries.require("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    maps = strategies_roi.normal((2, 30, 9, 11)).astype(dtype)
    for of_boxes in ("float16", "float32", "float64"):
        rois = strategies_roi.rois("all", 20, maps.shape, dtype=of_boxes)
        for got, want in pool_both_ways(emulated, operator, maps, rois, (2, 3)):
            compare.close(got, want, emulated(rois))


# Shape of the maps, kind and number of RoIs, and output size.
SHAPES_OF_POOLING = {
    "several tiles": ((1, 5, 60, 71), "all", 30, 1),
    "rows longer than a tile": ((1, 4, 3, 4000), "inside", 20, 1),
    "columns longer than a tile": ((1, 2, 6000, 1), "across", 10, (2, 1)),
    "many RoIs": ((2, 3, 6, 7), "all", 1100, 1),
    "many bins": ((1, 17 * 31, 9, 8), "all", 3, (17, 31)),
    "wide bins": ((2, 9, 20, 90), "all", 20, (1, 3)),
}


@pooling
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES_OF_POOLING)
def test_shapes_of_pooling(emulated, operator, shape, dtype):
    shape, kind, count, output_size = SHAPES_OF_POOLING[shape]
    maps = strategies_roi.normal(shape, dtype)
    rois = strategies_roi.rois(kind, count, shape)
    for got, want in pool_both_ways(emulated, operator, maps, rois, output_size):
        compare.close(got, want, emulated(rois))


def test_warmup_reaches_every_file(emulated, launches, small_batches):
    """The kernels of a file are compiled together."""
    for call in _warmup.CALLS.values():
        call("float32", emulated)
    for file in FILES:
        assert {*launches} & {*device.kernels(device.sources().source(file))}, file


def test_calls_do_not_import_numba(emulated):
    code = """
import sys
import numpy as np, cvops
from tests.host_emulation import Array
cvops.nms(Array(np.ones((9, 4), np.float32)), Array(np.ones(9, np.float32)), 0.5)
print("numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=device.ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "False\n", done.stderr


def test_nms_in_batches_of_their_real_size(emulated, launches):
    boxes, scores, idxs = data.clustered(16385)
    got = cvops.nms(emulated(boxes[1:]), emulated(scores[1:]), 0.5)
    assert launches == [*ONE_BATCH, "read"]
    assert got.tolist() == reference.nms_of_many(boxes[1:], scores[1:], 0.5).tolist()
    launches.clear()
    got = cvops.batched_nms(emulated(boxes), emulated(scores), emulated(idxs % 2), 0.5)
    assert launches == [*RANKS_OF_CLASSES, *TWO_BATCHES, "read"]
    assert got.tolist() == reference.batched_nms_of_many(boxes, scores, idxs % 2, 0.5).tolist()


# ------------------------------------------------------------------------------------------------- the emulation

FAULTS = {
    "barrier_for_some": "no progress|deadlock",
    "barrier_never_reached": "deadlock",
    "missing_barrier": "the schedule decides the result",
    "write_before_the_start": "array 0 is written before its start",
    "write_after_the_end": "array 0 is written after its end",
    "order_of_blocks": "the schedule decides the result",
    "exchange_with_the_wrong_lanes": "mask",
}


class Fault(NamedTuple):
    out: Any


@pytest.fixture(scope="module")
def faults(emulated):
    text = (device.ROOT / "tests" / "host_emulation" / "faults.cu").read_text()
    return device.build(text, [], types.SimpleNamespace(Fault=Fault))


@pytest.mark.parametrize("kernel", FAULTS)
def test_the_emulation_notices(monkeypatch, seeds, faults, kernel):
    monkeypatch.setattr(device, "library", lambda file, dtype: faults)
    with pytest.raises(AssertionError, match=f"^{kernel}: .*({FAULTS[kernel]})"):
        device.launch("faults", kernel, "f", 8, 64, Fault(np.zeros(64, np.int32)))


def test_the_emulation_notices_writes_to_inputs(monkeypatch, faults):
    monkeypatch.setattr(device, "library", lambda file, dtype: faults)
    values = np.zeros(64, np.int32)
    values.flags.writeable = False
    with pytest.raises(AssertionError, match="array 0 is an input and is written"):
        device.launch("faults", "order_of_blocks", "f", 2, 64, Fault(values))


class Pair(NamedTuple):
    first: int
    second: float


class Layout(NamedTuple):
    array: Any
    pairs: Pair
    counts: tuple[int, int]
    last: float


LAYOUT = """
struct Pair { long long first; double second; };
struct Layout { const int* array; Pair pairs; long long counts[2]; double last; };
extern "C" __global__ void __launch_bounds__(32)
kernel(const Layout args) {}
"""
WRONG_LAYOUTS = {
    "another order": (" double last;", "", "const int* array;", "double last; const int* array;"),
    "another kind": ("double last", "long long last"),
    "another kind within": ("double second", "long long second"),
    "another length": ("counts[2]", "counts[3]"),
    "another name": ("last; }", "end; }"),
    "a field more": ("last; }", "last; double more; }"),
    "a field less": (" double last;", ""),
    "smaller numbers": ("long long counts[2]", "long long counts[1]"),
}


@pytest.mark.parametrize("fault", WRONG_LAYOUTS)
def test_structs_are_compared_with_records(emulated, fault):
    records, edits, text = types.SimpleNamespace(Layout=Layout), WRONG_LAYOUTS[fault], LAYOUT
    device.build(text, [], records)
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(AssertionError, match=r"is not as the struct of the kernels|has no member named"):
        device.build(text, [], records)


def test_records_are_packed_as_compilers_lay_structs_out():
    records = importlib.import_module(f"{device.PACKAGE}._records")
    record = Layout(np.zeros(3), Pair(-1, 2.5), (3, 4), 5.0)
    want = struct.pack("@Pqdqqd", 99, -1, 2.5, 3, 4, 5.0)
    assert records.pack(record, lambda array: 99) == want
    assert records.pack(record._replace(pairs=records.pack(record.pairs)), lambda array: 99) == want
    assert records.pack(record._replace(array=None))[:8] == bytes(8)
    with pytest.raises(TypeError, match="a ndarray where a record has no arrays"):
        records.pack(record)


@pytest.mark.parametrize(
    "wrong", [{"last": "5"}, {"counts": (3, 4, 5)}, {"pairs": Pair(0.5, 2.5)}, {"array": 7}], ids=str
)
def test_records_of_wrong_values(emulated, wrong):
    """A pointer needs an array; integers are no fractions."""
    records = importlib.import_module(f"{device.PACKAGE}._records")
    record = Layout(np.zeros(3), Pair(-1, 2.5), (3, 4), 5.0)._replace(**wrong)
    with pytest.raises((struct.error, AttributeError)):
        records.pack(record, lambda array: array.ctypes.data)


def test_constants_have_one_owner(emulated):
    """Kernels name every constant of their file, and no other; none is a plain number there."""
    for file in FILES:
        text = device.sources().source(file)
        defined = [option.partition("=")[0][2:] for option in device.sources().options(file, "f")]
        assert {*defined} - {"ELEMENT"} == {*re.findall(r"\bCVOPS_\w+", re.sub("//.*", "", text))}, file
        names = {name.removeprefix("CVOPS_") for name in defined}
        for name, value in re.findall(r"\b([A-Z_]+) = (\w+)", text):
            assert name not in names or value == f"CVOPS_{name}", (file, name)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["chain", "identical", "dense", "disjoint"])
def test_no_schedule_changes_nms(emulated, seeds, small_batches, name, dtype):
    for size in (300, 1100, 2600):
        boxes, scores = data.hostile(size)[name].astype(dtype), data.uniform_scores(size)
        idxs = np.arange(size) // 700
        got = cvops.nms(emulated(boxes), emulated(scores), 0.3)
        assert got.tolist() == reference.nms_of_many(boxes, scores, 0.3).tolist()
        got = cvops.batched_nms(emulated(boxes), emulated(scores), emulated(idxs), 0.3)
        assert got.tolist() == reference.batched_nms_of_many(boxes, scores, idxs, 0.3).tolist()


@pytest.mark.parametrize("options", [{"max_per_class": 7}, {"score_threshold": 0.6}, {"max_candidates": 900}])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_schedule_changes_multiclass_nms(emulated, seeds, options, class_agnostic):
    """Several parts and chunks of an image; boxes and classes that take two digits; ties."""
    options = {"class_agnostic": class_agnostic, "max_output": 1100, **options}
    for images, length, classes in ((2, 300, 9), (1, 9, 260)):
        boxes = data.clustered(images * length)[0].reshape(images, length, 4)
        scores = np.random.default_rng(0).integers(0, 99, (images, classes, length)).astype("f4") / 99
        scores = scores.transpose(0, 2, 1)
        got = cvops.multiclass_nms(emulated(boxes), emulated(scores), 0.9, **options)
        want = reference_multiclass.multiclass_nms_of_many(boxes, scores, 0.9, **options)
        assert np.stack([array.values for array in got], 1).tolist() == want.tolist()


@pytest.mark.parametrize("layout", [MAPS, CHANNELS_LAST], ids=["contiguous", "channels-last"])
def test_no_schedule_changes_roi_align(emulated, seeds, layout):
    rois = strategies_roi.rois("all", 24, MAPS.shape)
    for output_size, ratio in (((3, 2), 2), ((2, 20), -1)):
        got = cvops.roi_align(emulated(layout), emulated(rois), output_size, 1.0, ratio, True)
        compare.close(got, reference_roi.roi_align(MAPS, rois, output_size, 1.0, ratio, True), got)
        got = cvops.roi_align_backward(got, emulated(rois), MAPS.shape, 1.0, ratio, True)
        assert np.isfinite(got.values).all()


def test_the_share_of_a_block_changes_no_bit(emulated, monkeypatch):
    """Blocks of many channels of a RoI, as for many RoIs, and of few; one bin takes its taps in windows."""
    maps, rois = emulated(strategies_roi.normal((2, 70, 4, 300))), strategies_roi.rois("all", 12, (2, 70, 4, 300))
    rois[0] = 1, 0, 0, 299, 4
    for output_size in (1, (2, 5), 7):
        few = cvops.roi_align(maps, emulated(rois), output_size)
        compare.close(few, reference_roi.roi_align(maps.values, rois, output_size), few)
        monkeypatch.setattr(sys.modules[f"{device.PACKAGE}._roi_align"], "_MANY_BLOCKS", 0)
        compare.same(cvops.roi_align(maps, emulated(rois), output_size), few.values, few)
        monkeypatch.undo()


@pytest.mark.parametrize("order", ["by image", "mixed"])
def test_gradients_of_more_rois_than_a_block_lists(emulated, seeds, order):
    rois = strategies_roi.rois("tiny", 900, MAPS.shape)
    if order == "by image":
        rois = rois[np.argsort(rois[:, 0], kind="stable")]
    grad = emulated(strategies_roi.normal((900, 3, 1, 2)))
    want = reference_roi.roi_align_backward(grad.values, rois, (2, 3, 20, 30))
    compare.close(cvops.roi_align_backward(grad, emulated(rois), (2, 3, 20, 30)), want, grad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_maps_are_pooled_in_float32(emulated, dtype):
    """Their results are those of float32 in the same values, rounded once."""
    narrow = np.dtype(getattr(libraries.require("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype)
    maps, rois = MAPS.astype(narrow), emulated(strategies_roi.rois("all", 24, MAPS.shape))
    want = cvops.roi_align(emulated(maps.astype(np.float32)), rois, (2, 3), 0.5)
    got = cvops.roi_align(emulated(maps), rois, (2, 3), 0.5)
    assert got.values.dtype == narrow
    np.testing.assert_array_equal(got.values.astype(np.float32), want.values.astype(narrow).astype(np.float32))
    want = cvops.roi_align_backward(emulated(got.values.astype(np.float32)), rois, MAPS.shape, 0.5)
    got = cvops.roi_align_backward(got, rois, MAPS.shape, 0.5)
    assert got.values.dtype == narrow
    np.testing.assert_array_equal(got.values.astype(np.float32), want.values.astype(narrow).astype(np.float32))


@pooling
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_no_schedule_changes_pooling(emulated, seeds, operator, dtype):
    maps = strategies_roi.normal((2, 30, 7, 8), dtype)
    for kind in ("all", "whole"):
        rois = strategies_roi.rois(kind, 300, maps.shape)
        for got, want in pool_both_ways(emulated, operator, maps, rois, (2, 3)):
            compare.close(got, want, emulated(rois))


# Barriers without which no test fails, and why they are there.
UNNOTICED: dict[str, str] = {}


def barriers():
    for file in FILES:
        text = device.sources().source(file)
        for number, match in enumerate(mutant.BARRIER.finditer(text)):
            line = text[match.start() :].partition("\n")[0]
            yield pytest.param(file, number, line, id=f"{file}-{number}")


@pytest.mark.parametrize(("file", "number", "line"), list(barriers()))
def test_every_barrier_is_needed(emulated, file, number, line):
    command = [sys.executable, "-m", "tests.host_emulation.mutant", file, str(number)]
    done = subprocess.run(command, cwd=device.ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == (line in UNNOTICED), done.stdout + done.stderr


# ----------------------------------------------------------------------------------------------- models in comments


def test_the_model_of_the_chain_keeps_what_the_kernel_does(emulated, launches):
    """The Python in the comment at nms_chain, on classes of one box, of some, and of more than a chunk."""
    text = (device.sources().KERNELS / "nms.cu").read_text()
    comment = re.search(r"^//     def chain\(.*\n(//.*\n)*?//         return kept\n", text, re.MULTILINE)
    model: dict[str, Any] = {}
    exec(re.sub(r"^//(     )?", "", comment[0], flags=re.MULTILINE), model)
    boxes, scores, _ = data.clustered(1300)
    idxs = np.searchsorted([1, 40, 300, 1100, 1299], np.random.default_rng(0).permutation(1300), side="right")
    want = reference.batched_nms_of_many(boxes, scores, idxs, 0.5)
    by_rank = np.argsort(-scores, kind="stable")
    order = by_rank[np.argsort(idxs[by_rank], kind="stable")]
    for chunk in (512, 7):
        kept = model["chain"](idxs[order].tolist(), suppressors_of(boxes[order], idxs[order], 0.5), chunk)
        assert {int(order[i]) for i in kept} == set(want.tolist())
    assert cvops.batched_nms(*map(emulated, (boxes, scores, idxs)), 0.5).values.tolist() == want.tolist()
    assert "nms_chain" in launches


def suppressors_of(boxes, idxs, threshold):
    """For each box those before it, of its class, that overlap it by more than the threshold."""
    (x1, y1, x2, y2), suppressors = boxes.T, []
    area = (x2 - x1) * (y2 - y1)
    for i in range(len(boxes)):
        width = np.maximum(np.minimum(x2[:i], x2[i]) - np.maximum(x1[:i], x1[i]), 0)
        height = np.maximum(np.minimum(y2[:i], y2[i]) - np.maximum(y1[:i], y1[i]), 0)
        iou = width * height / (area[:i] + area[i] - width * height)
        suppressors.append(set(np.flatnonzero((iou > threshold) & (idxs[:i] == idxs[i])).tolist()))
    return suppressors


# ------------------------------------------------------------------------------------- NVIDIA's compiler, no GPU


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("file", "dtype"), MODULES)
def test_kernels_compile_for_every_architecture(nvrtc, file, dtype, architecture):
    """Without a stack or spilled registers, and in shared memory that every GPU has."""
    source = device.sources().source(file)
    # The options of _device.py, and what CuPy adds to them.
    options = ["-std=c++17", *device.sources().options(file, dtype), "-ftz=true"]
    ptx, log = nvrtc(source, architecture, options)
    assert sorted(re.findall(r"Compiling entry function '(\w+)'", log)) == sorted(device.kernels(source))
    assert set(re.findall(r"(\d+) bytes (?:stack frame|spill)", log)) == {"0"}, log
    assert all(int(size) <= 48 * 1024 for size in re.findall(r"(\d+) bytes smem", log)), log
    if file in DECIDING:
        assert ".ftz" not in ptx
