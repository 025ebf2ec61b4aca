"""Memory that a call takes beyond its inputs and results: bounded for any number of RoIs or pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
MEGABYTE = 1 << 20

# Prints the name of each call and the bytes that it took beyond what it got and gave.
SCRIPT = """
import json
import sys

import numpy as np

import cvops

cvops.set_num_threads(2)
random = np.random.default_rng(0)


def kilobytes(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def own(function, *args, **options):
    before = kilobytes("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    results = function(*args, **options)
    if isinstance(results, dict):
        results = tuple(results.values())
    results = results if isinstance(results, tuple) else (results,)
    return kilobytes("VmHWM") * 1024 - before * 1024 - sum(result.nbytes for result in results)


def measure(name, few, function, *args, **options):
    function(*few, **options)  # compiles the kernels
    print(json.dumps([name, own(function, *args, **options)]))


def many_rois(count):
    boxes = np.tile(np.array([[0, 0, 0, 64, 64]], np.float32), (count, 1))
    boxes[:, 1:3] = random.uniform(0, 8, (count, 2))
    one, shape, deep = boxes[:1], (1, 1, 64, 64), (1, 64, 64, 64)
    maps, deep_maps = np.ones(shape, np.float32), np.ones(deep, np.float32)
    grad, deep_grad = np.ones((count, 1, 1, 1), np.float32), np.ones((count, 16, 2, 2), np.float32)
    expanded = np.broadcast_to(np.ones((1, 1, 1, 1), np.float32), (count, 16, 3, 3))
    pooled, argmax = cvops.roi_pool(maps, boxes, 1, return_argmax=True)
    twice = np.repeat(argmax, 2, 3)[..., ::2]
    measure("roi_align", (maps, one, 1), cvops.roi_align, maps, boxes, 1)
    measure("16-bit roi_align", (maps.astype("e"), one, 3), cvops.roi_align, maps.astype("e"), boxes, 3)
    measure("roi_align_backward", (grad[:1], one, shape), cvops.roi_align_backward, grad, boxes, shape)
    measure(
        "roi_align_backward, expanded", (expanded[:1], one, (1, 16, 64, 64)),
        cvops.roi_align_backward, expanded, boxes, (1, 16, 64, 64), 1, 1,
    )
    measure("roi_pool", (maps, one, 1), cvops.roi_pool, maps, boxes, 1)
    few = grad[:1], one, argmax[:1], shape
    measure("roi_pool_backward", few, cvops.roi_pool_backward, grad, boxes, argmax, shape)
    measure("roi_pool_backward, strided", few, cvops.roi_pool_backward, grad, boxes, twice, shape)
    for name in ("ps_roi_align", "ps_roi_pool"):
        forward, backward = getattr(cvops, name), getattr(cvops, name + "_backward")
        measure(name, (deep_maps, one, 2), forward, deep_maps, boxes, 2)
        measure(name + "_backward", (deep_grad[:1], one, deep), backward, deep_grad, boxes, deep)
    pool = cvops.MultiScaleRoIAlign(["fine", "coarse"], 1, -1, canonical_scale=64, canonical_level=1, scales=[1, 0.5])
    pyramid = {"fine": maps, "coarse": maps[:, :, ::2, ::2].copy()}
    measure("pyramid", (pyramid, one, []), pool, pyramid, boxes, [])
    measure("pyramid backward", (grad[:1], pyramid, one, []), pool.backward, grad, pyramid, boxes, [])


def other_rois(count):
    # In forms that kernels do not read: they would take 40 bytes each as a whole.
    corner, images = random.uniform(0, 60, (count, 2)), random.integers(0, 3, count)
    boxes = np.concatenate([images[:, None], corner, corner + 2], 1).astype("f")
    images.sort()
    each = [boxes[images == image, 1:] for image in range(3)]
    shape, deep = (3, 1, 64, 64), (3, 4, 64, 64)
    grad, deep_grad = np.ones((count, 1, 1, 1)), np.ones((count, 1, 2, 2), "f")
    argmax = np.zeros((count, 1, 1, 1), "i")
    few = [np.zeros((1, 4), "f") for _ in range(3)]
    pool = cvops.MultiScaleRoIAlign(["fine", "coarse"], 1, 1, canonical_scale=64, canonical_level=1, scales=[1, 0.5])
    pyramid = {"fine": np.ones(shape), "coarse": np.ones((3, 1, 32, 32))}
    short, halves = boxes[:3], boxes.astype("e")
    for form, one, many in (("list", few, each), ("float32", short, boxes), ("16-bit", short.astype("e"), halves)):
        maps, deep_maps = np.ones(shape), np.ones(deep)

        def compare(name, few, *args):
            measure(f"{name} {form}", few, getattr(cvops, name), *args)

        compare("roi_align", (maps, one, 1, 1, 1), maps, many, 1, 1, 1)
        compare("roi_pool", (maps, one, 1), maps, many, 1)
        compare("roi_align_backward", (grad[:3], one, shape, 1, 1), grad, many, shape, 1, 1)
        compare("roi_pool_backward", (grad[:3], one, argmax[:3], shape), grad, many, argmax, shape)
        compare("ps_roi_pool", (deep_maps, one, 2), deep_maps, many, 2)
        compare("ps_roi_align_backward", (deep_grad[:3], one, deep, 1, 1), deep_grad, many, deep, 1, 1)
        measure(f"pyramid {form}", (pyramid, one, []), pool, pyramid, many, [])


def sixteen_bits(count):
    shape, small = (1, 256, 250, 300), (1, 256, 8, 8)
    corner = random.uniform(0, 200, (count, 2))
    boxes = np.concatenate([np.zeros((count, 1)), corner, corner + random.uniform(1, 60, (count, 2))], 1).astype("f")
    one, maps, tiny = np.zeros((1, 5), np.float32), np.zeros(shape, np.float16), np.zeros(small, np.float16)
    grad = np.ones((count, 256, 2, 2), np.float16)
    argmax = cvops.roi_pool(maps, boxes, 2, return_argmax=True)[1]
    pool = cvops.MultiScaleRoIAlign(["map"], 2, 2, scales=[1])
    measure("roi_align", (tiny, one, 2), cvops.roi_align, maps, boxes, 2)
    measure("roi_pool", (tiny, one, 2), cvops.roi_pool, maps, boxes, 2)
    measure("roi_align_backward", (grad[:1], one, small), cvops.roi_align_backward, grad, boxes, shape)
    measure(
        "roi_pool_backward", (grad[:1], one, argmax[:1], small), cvops.roi_pool_backward, grad, boxes, argmax, shape
    )
    for name in ("ps_roi_align", "ps_roi_pool"):
        forward, backward = getattr(cvops, name), getattr(cvops, name + "_backward")
        measure(name, (tiny, one, 2), forward, maps, boxes, 2)
        measure(name + "_backward", (grad[:1, :64], one, small), backward, grad[:, :64].copy(), boxes, shape)
    measure("pyramid", ({"map": tiny}, one, []), pool, {"map": maps}, boxes, [])
    measure("strided float32", (tiny.astype("f"), one, 2), cvops.roi_align, maps.view("f")[..., ::2], boxes, 2)


def convolutions(size):
    from cvops._cpu import conv2d

    def convolution(name, channels, height, width, kernel, stride, exact, dtype="f", outputs=16, layout=np.array):
        maps, few = (np.ones((1, channels, *shape), dtype) for shape in ((height, width), (16, 16)))
        weight, bias = np.ones((outputs, channels, kernel, kernel), dtype), np.zeros(outputs, dtype)
        options = weight, bias, (stride, stride), (kernel // 2, kernel // 2), exact
        measure(name, (layout(few), *options), conv2d, layout(maps), *options)

    convolution("3x3", 64, size, size, 3, 1, False)
    convolution("3x3, wide", 64, 16, size * size // 16, 3, 1, False)
    convolution("3x3, many channels", 1024, 32, 40, 3, 1, False, outputs=1024)
    convolution("3x3, exact", 64, size, size, 3, 1, True)
    convolution("3x3, stride 2", 64, size, size, 3, 2, False)
    convolution("3x3, float64", 64, size, size, 3, 1, False, "d")
    convolution("1x1", 64, size, size, 1, 1, False)
    convolution("1x1, strided", 64, size, size, 1, 1, False, layout=lambda map: map[..., ::-1])


def many_masks(count):
    for shape in ((1, 1), (2, 2), (1, 5)):
        masks = np.zeros((count, *shape), bool)
        masks[::3] = True
        measure(f"masks_to_boxes {shape}", (masks[:1],), cvops.masks_to_boxes, masks)


def many_boxes(count):
    for dtype in ("f4", "f2", "i4"):
        boxes = np.tile(np.array([[-4, 0, 64, 64], [1, 2, 3, 4]], dtype), (count // 2, 1))
        measure(f"clip_boxes_to_image {dtype}", (boxes[:1], (32, 32)), cvops.clip_boxes_to_image, boxes, (32, 32))
        measure(f"remove_small_boxes {dtype}", (boxes[:1], 3), cvops.remove_small_boxes, boxes, 3)
        measure(f"box_convert {dtype}", (boxes[:1], "xyxy", "xywh"), cvops.box_convert, boxes, "xyxy", "xywh")


def many_pairs(count):
    base = np.tile(np.array([[-4, 0, 64, 64], [1, 2, 3, 4]], np.float32), (count // 2, 1))
    for form in ("f8", "f2", "i8", "strided f4"):
        boxes = base.astype(form[-2:])
        if form.startswith("strided"):
            boxes = np.repeat(boxes, 2, 1)[:, ::2]
        one, few = boxes[:1], boxes[:2]

        def compare(name, few, function, *args, form=form, **options):
            measure(f"{name} {form}", few, function, *args, **options)

        compare("box_area", (few,), cvops.box_area, boxes)
        for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
            measured = getattr(cvops, name)
            compare(name + " with one", (few, one), measured, boxes, one, fmt="cxcywh")
            compare(name + " of one", (one, few), measured, one, boxes, fmt="cxcywh")
            compare(name + " of pairs", (few[:, None], few[:, None]), measured, boxes[:, None], boxes[:, None])
        for name in ("decode_boxes", "encode_boxes"):
            compare(name, (few, few), getattr(cvops, name), boxes, boxes)
            compare(name + " with one", (few, one), getattr(cvops, name), boxes, one)
            compare(name + " of one", (one, few), getattr(cvops, name), one, boxes)
        compare("distance_to_boxes", (few[:, :2], few), cvops.distance_to_boxes, boxes[:, :2], boxes)
        compare("scale_boxes", (few, (8, 8), (9, 9)), cvops.scale_boxes, boxes, (8, 8), (9, 9))
    boxes = np.tile(base.astype("f2"), (3, 1))
    measure("remove_small_boxes, none", (boxes[:1], 1), cvops.remove_small_boxes, boxes, 1)
    scores = np.zeros((40, 200, count // 1000), np.float16)  # of 40 images
    few = np.zeros((1, 2, 4), np.float32), scores[:1, :2], 0.5
    all_boxes = np.zeros((40, 200, 4), np.float32)
    measure("multiclass_nms", few, cvops.multiclass_nms, all_boxes, scores, 0.5, score_threshold=0.5)


def many_detections(count):
    from tests.data import clustered, hostile, uniform_scores

    for dtype in ("f", "d"):
        for name, (boxes, scores, labels) in {
            "clustered": clustered(count),
            **{name: (hostile(count)[name], uniform_scores(count), None) for name in ("disjoint", "six decades")},
        }.items():
            boxes, scores = boxes.astype(dtype), scores.astype(dtype)
            few = boxes[:9000], scores[:9000]
            for threshold in (0.2, 0.5):
                measure(f"nms {name} {threshold} {dtype}", (*few, threshold), cvops.nms, boxes, scores, threshold)
            if labels is not None:
                labelled = cvops.batched_nms, boxes, scores, labels, 0.5
                measure(f"batched_nms {name} {dtype}", (*few, labels[:9000], 0.5), *labelled)


cases = {
    "convolutions": convolutions, "many_boxes": many_boxes, "many_masks": many_masks, "many_pairs": many_pairs,
    "many_detections": many_detections,
    "many_rois": many_rois, "other_rois": other_rois, "sixteen_bits": sixteen_bits,
}
cases[sys.argv[1]](int(sys.argv[2]))
"""


def peaks(case, count):
    """Bytes of each call of a case, by its name, in a process where memory that is given back leaves no trace."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", SCRIPT, case, str(count)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600).stdout
    return dict(map(json.loads, output.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("count", [20_000, 100_000])
def test_very_many_rois(count):
    own = peaks("many_rois", count)
    assert len(own) == 13
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_very_many_rois_of_other_forms():
    own = peaks("other_rois", 2_000_000)
    assert len(own) == 21
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_very_many_boxes():
    own = peaks("many_boxes", 5_000_000)
    assert len(own) == 9
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_very_many_pairs():
    own = peaks("many_pairs", 3_000_000)
    assert len(own) == 4 * 21 + 2
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_very_many_detections():
    """As docs/performance.md says: at most 200 bytes for each box, 300 in float64."""
    own, count = peaks("many_detections", 1_000_000), 1_000_000
    assert len(own) == 2 * 7
    most = {"f": 200, "d": 300}
    assert {name: size / count for name, size in own.items() if size > most[name[-1]] * count} == {}


@pytest.mark.slow
def test_very_many_masks():
    own = peaks("many_masks", 2_000_000)
    assert len(own) == 3
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_convolutions():
    own = peaks("convolutions", 640)
    assert len(own) == 8
    assert {name: size for name, size in own.items() if size > 64 * MEGABYTE} == {}


@pytest.mark.slow
def test_maps_of_16_bits():
    """And of other layouts than kernels read: no map is copied as a whole."""
    own, size = peaks("sixteen_bits", 600), 2 * 256 * 250 * 300
    assert len(own) == 10
    assert {name: taken / size for name, taken in own.items() if taken > min(1.2 * size, 64 * MEGABYTE)} == {}
