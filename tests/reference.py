"""What the operators compute: slow loops written from the definitions, importing nothing from cvops.

Everything is computed in the operator's working precision and in the order in which the definition writes it, because
the last bit of an IoU may decide which boxes are kept. `test_reference.py` checks this file against values computed by
hand.
"""

from __future__ import annotations

import math

import numpy as np

_quiet = np.errstate(all="ignore")


def working(*arrays):
    """`arrays` in working precision: float64 if one is float64 or a 32- or 64-bit integer, else float32."""
    wide = any(array.dtype.itemsize >= (4 if array.dtype.kind in "iu" else 8) for array in arrays)
    return [array.astype(np.float64 if wide else np.float32) for array in arrays]


# ------------------------------------------------------------------------------------------------------------- nms


def rank(scores):
    """Indices by decreasing score, ties by lower index, NaN last."""
    keys = [(1, 0.0) if math.isnan(score) else (0, -float(score)) for score in scores]
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


@_quiet
def iou(a, b):
    """IoU of two boxes x1, y1, x2, y2."""
    zero = type(a[0])(0)
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    inter = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((area_a + area_b) - inter)


def nms(boxes, scores, iou_threshold, *, score_threshold=None, max_output=None):
    """Indices of the boxes that greedy suppression keeps, best first."""
    return batched_nms(
        boxes, scores, np.zeros(len(boxes)), iou_threshold, score_threshold=score_threshold, max_output=max_output
    )


def batched_nms(boxes, scores, idxs, iou_threshold, *, score_threshold=None, max_output=None):
    """As `nms`, but only boxes of one class suppress each other."""
    with np.errstate(all="ignore"):  # as NumPy compares: in the dtype of the scores
        passes = np.full(len(scores), True) if score_threshold is None else scores > scores.dtype.type(score_threshold)
    boxes, scores = working(boxes, scores)
    keep = []
    for i in rank(scores):
        if not passes[i]:
            continue
        # A working-precision IoU against the double: float() keeps NumPy from rounding the threshold to float32.
        if not any(float(iou(boxes[j], boxes[i])) > iou_threshold for j in keep if idxs[j] == idxs[i]):
            keep.append(i)
    return np.array(keep[:max_output], np.int64)


@_quiet
def nms_of_many(boxes, scores, iou_threshold):
    """`nms` for thousands of boxes: the same arithmetic, on one kept box and all that rank behind it at a time."""
    boxes, scores = working(boxes, scores)
    order = np.array(rank(scores), np.int64)
    x1, y1, x2, y2 = boxes[order].T
    columns = np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])
    keep = []
    while len(order):
        keep.append(order[0])
        (x1, y1, x2, y2, area), columns, order = columns[:, 0], columns[:, 1:], order[1:]
        width = np.maximum(np.minimum(x2, columns[2]) - np.maximum(x1, columns[0]), 0)
        height = np.maximum(np.minimum(y2, columns[3]) - np.maximum(y1, columns[1]), 0)
        inter = width * height
        stay = ~(inter / ((area + columns[4]) - inter) > np.float64(iou_threshold))
        if not stay.all():
            columns, order = columns[:, stay], order[stay]
    return np.array(keep, np.int64)


def batched_nms_of_many(boxes, scores, idxs, iou_threshold):
    """`batched_nms` for thousands of boxes."""
    kept = np.zeros(len(boxes), bool)
    for value in set(idxs.tolist()):
        members = np.flatnonzero(idxs == value)
        kept[members[nms_of_many(boxes[members], scores[members], iou_threshold)]] = True
    return np.array([i for i in rank(scores) if kept[i]], np.int64)


# ----------------------------------------------------------------------------------------------------------- boxes


def corners(box, fmt):
    """x1, y1, x2, y2 of one box."""
    a, b, c, d = box
    if fmt == "xywh":
        return a, b, a + c, b + d
    if fmt == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def area(box, fmt):
    """Area of one box."""
    a, b, c, d = box
    return (c - a) * (d - b) if fmt == "xyxy" else c * d


@_quiet
def box_area(boxes, fmt="xyxy"):
    """Area of each box of (..., 4)."""
    (boxes,) = working(boxes)
    result = np.empty(boxes.shape[:-1], boxes.dtype)
    for i in np.ndindex(result.shape):
        result[i] = area(boxes[i], fmt)
    return result


@_quiet
def _of_pairs(measure, boxes1, boxes2, fmt):
    """measure(box1, box2, corners1, corners2, inter, union) for all pairs of (..., N, 4) and (..., M, 4)."""
    boxes1, boxes2 = working(boxes1, boxes2)
    batch = np.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    boxes1 = np.broadcast_to(boxes1, batch + boxes1.shape[-2:])
    boxes2 = np.broadcast_to(boxes2, batch + boxes2.shape[-2:])
    result = np.empty((*batch, boxes1.shape[-2], boxes2.shape[-2]), boxes1.dtype)
    zero = boxes1.dtype.type(0)
    for *i, n, m in np.ndindex(result.shape):
        one, two = boxes1[(*i, n)], boxes2[(*i, m)]
        a, b = corners(one, fmt), corners(two, fmt)
        inter = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
        union = (area(one, fmt) + area(two, fmt)) - inter
        result[(*i, n, m)] = measure(a, b, inter, union)
    return result


def box_iou(boxes1, boxes2, fmt="xyxy"):
    """Intersection over union."""
    return _of_pairs(lambda a, b, inter, union: inter / union, boxes1, boxes2, fmt)


def generalized_box_iou(boxes1, boxes2, fmt="xyxy"):
    """IoU less the share of the hull that the union leaves empty."""

    def measure(a, b, inter, union):
        width, height = _hull(a, b)
        return inter / union - (width * height - union) / (width * height)

    return _of_pairs(measure, boxes1, boxes2, fmt)


def distance_box_iou(boxes1, boxes2, eps=1e-7, fmt="xyxy"):
    """IoU less the squared distance of the centres over the squared diagonal of the hull."""
    return _of_pairs(lambda a, b, inter, union: _distance_iou(a, b, inter, union, eps), boxes1, boxes2, fmt)


def complete_box_iou(boxes1, boxes2, eps=1e-7, fmt="xyxy"):
    """Distance IoU less a penalty for unequal aspect ratios."""

    def measure(a, b, inter, union):
        angle_a, angle_b = np.arctan2(a[2] - a[0], a[3] - a[1]), np.arctan2(b[2] - b[0], b[3] - b[1])
        v = 4 / math.pi**2 * (angle_a - angle_b) ** 2
        alpha = v / (1 - inter / union + v + eps)
        return _distance_iou(a, b, inter, union, eps) - alpha * v

    return _of_pairs(measure, boxes1, boxes2, fmt)


def _hull(a, b):
    """Width and height of the smallest box around two."""
    zero = type(a[0])(0)
    return max(max(a[2], b[2]) - min(a[0], b[0]), zero), max(max(a[3], b[3]) - min(a[1], b[1]), zero)


def _distance_iou(a, b, inter, union, eps):
    width, height = _hull(a, b)
    x, y = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2, (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    return inter / union - (x**2 + y**2) / (width**2 + height**2 + eps)


@_quiet
def box_convert(boxes, in_fmt, out_fmt):
    """Boxes (..., 4) in another format, of the same dtype; floats where centres bring halves into integers."""
    if boxes.dtype.kind in "iu" and "cxcywh" not in (in_fmt, out_fmt):
        values, result = boxes, np.empty_like(boxes)
    else:
        (values,) = working(boxes)
        keeps = boxes.dtype.kind == "f" or in_fmt == out_fmt
        result = np.empty(boxes.shape, boxes.dtype if keeps else values.dtype)
    for i in np.ndindex(boxes.shape[:-1]):
        x1, y1, x2, y2 = corners(values[i], in_fmt)
        if in_fmt == out_fmt:
            result[i] = boxes[i]
        elif out_fmt == "xyxy":
            result[i] = x1, y1, x2, y2
        elif out_fmt == "xywh":
            result[i] = x1, y1, x2 - x1, y2 - y1
        else:
            result[i] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return result


def clip_boxes_to_image(boxes, size):
    """Boxes (..., 4) with every coordinate moved into [0, width] or [0, height]; NaN stays NaN."""
    result = np.array(boxes)
    for *i, k in np.ndindex(boxes.shape):
        limit = size[1] if k in (0, 2) else size[0]
        value = boxes[(*i, k)].item()
        result[(*i, k)] = 0 if value < 0 else limit if value > limit else value
    return result


@_quiet
def remove_small_boxes(boxes, min_size):
    """Indices of the boxes (L, 4) with both sides at least `min_size`."""
    (boxes,) = working(boxes)
    least = boxes.dtype.type(min_size)
    return np.array([i for i, (a, b, c, d) in enumerate(boxes) if c - a >= least and d - b >= least], np.int64)


def masks_to_boxes(masks):
    """x1, y1, x2, y2 of the first and last nonzero column and row of each mask of (N, H, W); zeros for an empty one."""
    result = np.zeros((len(masks), 4), np.float32)
    for n, mask in enumerate(masks):
        pixels = [(y, x) for y, x in np.ndindex(mask.shape) if mask[y, x] != 0]
        if pixels:
            rows, columns = [y for y, x in pixels], [x for y, x in pixels]
            result[n] = min(columns), min(rows), max(columns), max(rows)
    return result
