"""What autograd, torch.compile, TorchScript and XLA have to trace: measures of pairs of boxes, and the decoders.

Backends have kernels besides. TorchScript compiles no namespace in a variable. But it reads functions that stand within
another, together with the modules and functions that these know from there: so `measures` and `decoders` hold the
formulas for every array library. There an argument without an annotation is an array, and so is the result where an
argument has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Measures(NamedTuple):
    """The formulas in the functions of one array library. Boxes are corners, whose shapes broadcast."""

    box_iou: Callable[..., Any]
    generalized_box_iou: Callable[..., Any]
    distance_box_iou: Callable[..., Any]
    complete_box_iou: Callable[..., Any]
    intersection: Callable[..., Any]
    hull: Callable[..., Any]
    aspect_penalty: Callable[..., Any]
    angle: Callable[..., Any]


def measures(xp: Any, constant: Callable[[Any], Any]) -> Measures:
    """The formulas in `xp`; what `constant` returns has no gradient."""

    def intersection(one, two):
        """Area of the intersection."""
        low, high = xp.maximum(one[..., :2], two[..., :2]), xp.minimum(one[..., 2:], two[..., 2:])
        sides = xp.clip(high - low, 0)
        return sides[..., 0] * sides[..., 1]

    def hull(one, two):
        """Width and height of the smallest box around both."""
        low, high = xp.minimum(one[..., :2], two[..., :2]), xp.maximum(one[..., 2:], two[..., 2:])
        sides = xp.clip(high - low, 0)
        return sides[..., 0], sides[..., 1]

    def angle(boxes):
        """atan2(width, height), with a derivative of 0 for a box without either."""
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        # The derivative divides by width^2 + height^2, which may underflow; the angle is the same at any scale.
        larger = constant(xp.maximum(xp.abs(width), xp.abs(height)))
        point = larger == 0
        larger = xp.where(point | xp.isinf(larger), 1.0, larger)
        return xp.arctan2(xp.where(point, 0.0, width / larger), xp.where(point, 1.0, height / larger))

    def aspect_penalty(one, two, iou, eps: float):
        """What complete IoU takes off for aspect ratios; its weight counts as a constant, as in the paper."""
        difference = 4 / math.pi**2 * (angle(one) - angle(two)) ** 2
        return constant(difference / (1 - iou + difference + eps)) * difference

    def box_iou(one, two, area1, area2):
        inter = intersection(one, two)
        return inter / (area1 + area2 - inter)

    def generalized_box_iou(one, two, area1, area2):
        inter = intersection(one, two)
        union = area1 + area2 - inter
        width, height = hull(one, two)
        around = width * height
        return inter / union - (around - union) / around

    def distance_box_iou(one, two, area1, area2, eps: float):
        width, height = hull(one, two)
        return box_iou(one, two, area1, area2) - squared_distance(one, two) / (width**2 + height**2 + eps)

    def complete_box_iou(one, two, area1, area2, eps: float):
        iou = box_iou(one, two, area1, area2)
        width, height = hull(one, two)
        distance = squared_distance(one, two) / (width**2 + height**2 + eps)
        return iou - distance - aspect_penalty(one, two, iou, eps)

    return Measures(
        box_iou, generalized_box_iou, distance_box_iou, complete_box_iou, intersection, hull, aspect_penalty, angle
    )


class Decoders(NamedTuple):
    """The formulas of the public functions in the functions of one array library. Arrays are in working precision."""

    decoded: Callable[..., Any]
    encoded: Callable[..., Any]
    around: Callable[..., Any]
    moved: Callable[..., Any]


def decoders(xp: Any) -> Decoders:
    """The formulas in `xp`."""

    def decoded(deltas, anchors, weights: list[float], clip: float | None):
        """`decode_boxes`."""
        low, high = [], []
        for axis in (0, 1):
            first = anchors[..., axis]
            size = anchors[..., axis + 2] - first
            growth = deltas[..., axis + 2] / weights[axis + 2]
            if clip is not None:
                # Not xp.clip, whose derivative at the bound is 1 or 1/2, as the library has it.
                growth = xp.where(growth > clip, clip, growth)
            centre = deltas[..., axis] / weights[axis] * size + (first + 0.5 * size)
            half = 0.5 * (xp.exp(growth) * size)
            low.append(centre - half)
            high.append(centre + half)
        return xp.stack(low + high, -1)

    def encoded(boxes, anchors, weights: list[float]):
        """`encode_boxes`."""
        shifts, growths = [], []
        for axis in (0, 1):
            size, of_anchor = boxes[..., axis + 2] - boxes[..., axis], anchors[..., axis + 2] - anchors[..., axis]
            centre, of_anchors = boxes[..., axis] + 0.5 * size, anchors[..., axis] + 0.5 * of_anchor
            shifts.append(weights[axis] * (centre - of_anchors) / of_anchor)
            growths.append(weights[axis + 2] * xp.log(size / of_anchor))
        return xp.stack(shifts + growths, -1)

    def around(points, distances):
        """`distance_to_boxes`."""
        x, y = points[..., 0], points[..., 1]
        sides = [x - distances[..., 0], y - distances[..., 1], x + distances[..., 2], y + distances[..., 3]]
        return xp.stack(sides, -1)

    def moved(boxes, fit: Fit):
        """`scale_boxes`."""
        (gain_y, gain_x), (padding_y, padding_x) = fit.gain, fit.padding
        x1, x2 = (boxes[..., 0] - padding_x) / gain_x, (boxes[..., 2] - padding_x) / gain_x
        y1, y2 = (boxes[..., 1] - padding_y) / gain_y, (boxes[..., 3] - padding_y) / gain_y
        return xp.stack([x1, y1, x2, y2], -1)

    return Decoders(decoded, encoded, around, moved)


class Fit(NamedTuple):
    """How an image lies in the input of a network."""

    gain: tuple[float, float]  # of y and x
    padding: tuple[float, float]


def fitted(from_size: list[float], to_size: list[float], gain_y: float, gain_x: float, centred: bool) -> Fit:
    """How an image of `to_size` lies in an input of `from_size`: padded at the end if it is not centred."""
    padding_y, padding_x = 0.0, 0.0
    if centred:
        padding_y, padding_x = (from_size[0] - to_size[0] * gain_y) / 2, (from_size[1] - to_size[1] * gain_x) / 2
    return Fit((gain_y, gain_x), (padding_y, padding_x))


def squared_distance(one, two):
    """Squared distance of the centres."""
    apart = (one[..., :2] + one[..., 2:]) / 2 - (two[..., :2] + two[..., 2:]) / 2
    return apart[..., 0] ** 2 + apart[..., 1] ** 2


def area_of(boxes, fmt: str):
    """Area of each box in this format."""
    if fmt == "xyxy":
        return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return boxes[..., 2] * boxes[..., 3]


def columns(boxes, in_fmt: str, out_fmt: str):
    """The columns of boxes in another format."""
    low, high = [], []
    for axis in (0, 1):
        first, second = boxes[..., axis], boxes[..., axis + 2]
        if in_fmt == "cxcywh":
            half = second / 2
            first, second = first - half, first + half
        elif in_fmt == "xywh":
            second = first + second
        low.append(first)
        high.append(second)
    if out_fmt == "xyxy":
        return low + high
    sizes = [high[0] - low[0], high[1] - low[1]]
    if out_fmt == "cxcywh":
        low = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2]
    return low + sizes
