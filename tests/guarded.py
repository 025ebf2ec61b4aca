"""Calls of every operator on inputs between pages that nobody may read: to run as a process of its own, which may die.

python -m tests.guarded float32 prints the name of each public operator before it is called. The inputs themselves
lie in pages that nobody may write.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import sys

import numpy as np

import cvops
from tests import strategies_roi as strategies
from tests.operators import OPERATORS, converted

SIDES = ("before the input", "behind the input")
_NONE = 0  # PROT_NONE, everywhere
_LIBC = ctypes.CDLL(None, use_errno=True)
_maps = []  # kept for ever: a page that is given back while a view is around would be used for something else


def guarded(array, side):
    """A read-only copy of `array` with a page on this side of it that faults when it is touched."""
    array = np.ascontiguousarray(array)
    pages = -(-max(array.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    _maps.append(memory)
    begin = mmap.PAGESIZE if side == SIDES[0] else (pages + 1) * mmap.PAGESIZE - array.nbytes
    copy = np.frombuffer(memory, array.dtype, array.size, begin).reshape(array.shape)
    copy[...] = array
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for first, count, access in ((0, 1, _NONE), (1, pages, mmap.PROT_READ), (pages + 1, 1, _NONE)):
        if _LIBC.mprotect(ctypes.c_void_p(address + first * mmap.PAGESIZE), count * mmap.PAGESIZE, access):
            raise OSError(ctypes.get_errno(), "mprotect")
    copy.flags.writeable = False
    return copy


def calls(dtype, guard):
    """(name, call) of every operator, on arrays that `guard` copied."""
    for name, row in OPERATORS.items():
        yield (
            name,
            functools.partial(getattr(cvops, name), *(converted(value, guard) for value in row.args), **row.options),
        )
    random = np.random.default_rng(0)
    for length in (1, 15, 257, 1500, 9000):
        corner = random.uniform(0, 40 * length**0.5, (length, 2))
        boxes = guard(np.concatenate([corner, corner + random.uniform(1, 30, (length, 2))], 1).astype(dtype))
        scores, idxs = guard(random.random(length).astype(dtype)), guard(random.integers(0, 5, length))
        for threshold in (0.05, 0.5, 0.9):
            yield "nms", functools.partial(cvops.nms, boxes, scores, threshold, score_threshold=0.1)
            yield "batched_nms", functools.partial(cvops.batched_nms, boxes, scores, idxs, threshold)
        for whole in ("int8", "uint16", "int32"):
            integers = guard(np.clip(boxes, 0, 100).astype(whole))
            yield "nms", functools.partial(cvops.nms, integers, scores, 0.5)
            yield "batched_nms", functools.partial(cvops.batched_nms, boxes, scores, guard(idxs.astype(whole)), 0.5)
            yield "clip_boxes_to_image", functools.partial(cvops.clip_boxes_to_image, integers, (30, 50))
        heads = guard(random.random((2, 3, length // 2 + 1)).astype(dtype)).transpose(0, 2, 1)
        of_head = guard(np.stack([boxes[: length // 2 + 1]] * 2))
        for many in (True, False):
            head = functools.partial(cvops.multiclass_nms, of_head, heads, 0.5, score_threshold=0.5, multi_label=many)
            yield "multiclass_nms", head
        few = guard(boxes[: min(length, 33)])
        for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
            yield name, functools.partial(getattr(cvops, name), few, boxes)
        for one, other in itertools.product(("xyxy", "xywh", "cxcywh"), repeat=2):
            yield "box_convert", functools.partial(cvops.box_convert, boxes, one, other)
            yield "box_area", functools.partial(cvops.box_area, boxes, one)
        yield "clip_boxes_to_image", functools.partial(cvops.clip_boxes_to_image, boxes, (30, 50))
        yield "remove_small_boxes", functools.partial(cvops.remove_small_boxes, boxes, 3)
        deltas = guard(random.normal(size=(2, length, 4)).astype(dtype))
        yield "decode_boxes", functools.partial(cvops.decode_boxes, deltas, boxes)
        yield "decode_boxes", functools.partial(cvops.decode_boxes, guard(deltas[0, :, None]), few)
        yield "encode_boxes", functools.partial(cvops.encode_boxes, deltas, boxes)
        yield "distance_to_boxes", functools.partial(cvops.distance_to_boxes, guard(boxes[:, :2]), deltas)
        yield "scale_boxes", functools.partial(cvops.scale_boxes, boxes, (30, 50), (60, 80), letterbox=True)
        yield "make_points", functools.partial(cvops.make_points, [(3, length)], [8], like=boxes)
        anchors = functools.partial(cvops.make_anchors, [(3, length)], [8], scales=(32,), ratios=(1, 2), like=boxes)
        yield "make_anchors", anchors
        masks = guard(random.random((length % 7, 9, 13)).astype(dtype) > 0.8)
        yield "masks_to_boxes", functools.partial(cvops.masks_to_boxes, masks)
        yield "masks_to_boxes", functools.partial(cvops.masks_to_boxes, guard(masks.astype(dtype)))
    shapes = (1, 1, 1, 1), (2, 3, 7, 5), (1, 16, 5, 9), (2, 21, 13, 11)
    for shape, bins in itertools.product(shapes, ((1, 1), (2, 3))):
        yield from pooling(shape, bins, dtype, guard)
    for channels, groups, kernel, size in itertools.product((1, 6, 32), (1, 2), (1, 3), ((4, 5), (13, 17))):
        if channels % groups == 0:
            yield from deformed(channels, groups, kernel, size, dtype, guard)
    for channels, size in itertools.product((1, 5, 16), ((1, 1), (8, 12), (9, 13))):
        pyramid = cvops.FeaturePyramidNetwork([channels], 7, cvops.LastLevelP6P7(7, 7))
        parameters = {name: guard(value) for name, value in pyramid.state_dict().items()}
        yield "FeaturePyramidNetwork", functools.partial(pyramid.load_state_dict, parameters)
        images = guard(random.normal(size=(2, channels, *size)).astype(dtype))
        yield "FeaturePyramidNetwork", functools.partial(pyramid, {"map": images})


def pooling(shape, bins, dtype, guard):
    """Calls of the RoI operators, on boxes of every kind, also far outside."""
    images, channels, *sides = shape
    deep = images, channels * bins[0] * bins[1], *sides
    for kind, dtype_of_boxes in itertools.product(("all", "whole", "larger"), ("f2", "f4", "f8")):
        boxes = guard(strategies.rois(kind, 19, shape, 0.5, dtype_of_boxes))
        for last in (False, True):  # channels
            maps, deep_maps = ordered(shape, last, dtype, guard), ordered(deep, last, dtype, guard)
            grad = ordered((19, channels, *bins), last, dtype, guard)
            for options in ((0.5,), (0.5, 2)):
                yield "roi_align", functools.partial(cvops.roi_align, maps, boxes, bins, *options)
                yield "roi_align_backward", functools.partial(cvops.roi_align_backward, grad, boxes, shape, *options)
                yield "ps_roi_align", functools.partial(cvops.ps_roi_align, deep_maps, boxes, bins, *options)
                backward = functools.partial(cvops.ps_roi_align_backward, grad, boxes, deep, *options)
                yield "ps_roi_align_backward", backward
            yield "roi_pool", functools.partial(cvops.roi_pool, maps, boxes, bins, 0.5)
            yield "ps_roi_pool", functools.partial(cvops.ps_roi_pool, deep_maps, boxes, bins, 0.5)
            yield "ps_roi_pool_backward", functools.partial(cvops.ps_roi_pool_backward, grad, boxes, deep, 0.5)
            argmax = guard(cvops.roi_pool(maps, boxes, bins, 0.5, return_argmax=True)[1])
            for where in (argmax, guard(argmax * 1000), guard(-argmax)):
                backward = functools.partial(cvops.roi_pool_backward, grad, boxes, where, shape, 0.5)
                yield "roi_pool_backward", backward
            pool = cvops.MultiScaleRoIAlign(["map", "half"], bins, 2, scales=[0.5, 0.25], canonical_scale=8)
            pyramid = {"map": maps, "half": ordered((images, channels, *sides[::-1]), last, dtype, guard)}
            yield "MultiScaleRoIAlign", functools.partial(pool, pyramid, boxes, [])
            yield "MultiScaleRoIAlign", functools.partial(pool.backward, grad, pyramid, boxes, [])
            options = {"scales": [0.5, 0.25], "sampling_ratio": 2, "canonical_scale": 8}
            levels = list(pyramid.values())
            yield "multiscale_roi_align", functools.partial(cvops.multiscale_roi_align, levels, boxes, bins, **options)
            shapes = [level.shape for level in levels]
            backward = functools.partial(cvops.multiscale_roi_align_backward, grad, boxes, shapes, **options)
            yield "multiscale_roi_align_backward", backward
            listed = [guard(boxes[boxes[:, 0] == image][:, 1:]) for image in range(images)]
            yield "roi_align", functools.partial(cvops.roi_align, maps, listed, bins, 0.5)


def ordered(shape, channels_last, dtype, guard):
    """Values of this shape, in one of two orders in memory."""
    values = strategies.normal(shape, dtype)
    return guard(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if channels_last else guard(values)


def deformed(channels, groups, kernel, size, dtype, guard):
    """Calls of deformable convolution, with offsets that stay near, lead far outside or are not finite."""
    random = np.random.default_rng(1)
    image = random.normal(size=(2, channels, *size)).astype(dtype)
    weight = guard(random.normal(size=(4, channels // groups, kernel, kernel)).astype(dtype))
    bias, padding = guard(random.normal(size=4).astype(dtype)), kernel // 2
    for far in (1, 1e4, np.inf):
        taps = kernel * kernel * groups
        offset = guard((random.choice([-1, 0, 0.5, 1], (2, 2 * taps, *size)) * np.array(far)).astype(dtype))
        mask, grad = (guard(random.normal(size=(2, n, *size)).astype(dtype)) for n in (taps, 4))
        arguments = guard(image), offset, weight, bias, 1, padding, 1, mask
        yield "deform_conv2d", functools.partial(cvops.deform_conv2d, *arguments)
        yield "deform_conv2d_backward", functools.partial(cvops.deform_conv2d_backward, grad, *arguments)
    layer = cvops.DeformConv2d(channels, 4, kernel, padding=padding, groups=groups)
    yield "DeformConv2d", functools.partial(layer, guard(image), offset, mask)


def main(dtype):
    cvops.set_num_threads(2)
    for side in SIDES:
        for name, call in calls(np.dtype(dtype), functools.partial(guarded, side=side)):
            print(name, side, flush=True)
            with np.errstate(all="ignore"):
                call()


if __name__ == "__main__":
    main(sys.argv[1])
