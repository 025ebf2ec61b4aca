"""multiclass_nms as slow loops from its definition, importing nothing from cvops.

`test_multiclass_nms.py` checks it against values computed by hand.
"""

from __future__ import annotations

import math

import numpy as np

from tests.reference import batched_nms_of_many, iou, working


def multiclass_nms(
    boxes,
    scores,
    iou_threshold,
    *,
    score_threshold=None,
    max_candidates=None,
    max_per_class=None,
    max_output=None,
    multi_label=True,
    class_agnostic=False,
    objectness=None,
    padded=False,
):
    """(image, box, label) of the detections, or with `padded` (box, label, count)."""
    images, length, classes = scores.shape
    with np.errstate(all="ignore"):
        floors = None if score_threshold is None else np.broadcast_to(score_threshold, classes).astype(scores.dtype)
        values = scores
        if objectness is None:
            boxes, _ = working(boxes, scores)
        else:
            boxes, values, objectness = working(boxes, scores, objectness)
            values = values * objectness[:, :, None]
    found = []
    for n in range(images):
        candidates = []
        for b in range(length):
            labels = range(classes) if multi_label else range(min(classes, 1))
            if not multi_label:
                for c in range(1, classes):
                    best = values[n, b, labels[0]]
                    if values[n, b, c] > best or (math.isnan(best) and not math.isnan(values[n, b, c])):
                        labels = [c]
            candidates += [(b, c) for c in labels if floors is None or values[n, b, c] > floors[c]]

        def rank(candidate, n=n):
            value = float(values[n, candidate[0], candidate[1]])
            return (1, 0.0, candidate) if math.isnan(value) else (0, -value, candidate)

        kept = []
        for b, c in sorted(candidates, key=rank)[:max_candidates]:
            own = boxes[n, b] if boxes.ndim == 3 else boxes[n, b, c]
            rivals = [rival for label, rival in kept if class_agnostic or label[1] == c]
            if not any(float(iou(rival, own)) > iou_threshold for rival in rivals):
                kept.append(((b, c), own))
        of_class, best = {}, []
        for (b, c), _ in kept:
            of_class[c] = of_class.get(c, 0) + 1
            if max_per_class is None or of_class[c] <= max_per_class:
                best.append((n, b, c))
        found.append(best[:max_output])
    if not padded:
        rows = np.array([row for best in found for row in best], np.int64).reshape(-1, 3)
        return tuple(np.ascontiguousarray(column) for column in rows.T)
    box, label = np.full((2, images, max_output), -1, np.int64)
    for n, best in enumerate(found):
        for k, (_, b, c) in enumerate(best):
            box[n, k], label[n, k] = b, c
    return box, label, np.array([len(best) for best in found], np.int64)


def multiclass_nms_of_many(
    boxes,
    scores,
    iou_threshold,
    *,
    score_threshold=-math.inf,
    max_candidates=None,
    max_per_class=None,
    max_output=None,
    class_agnostic=False,
):
    """`multiclass_nms` for thousands of candidates with finite scores: rows of (image, box, label)."""
    rows = []
    for n, (own, values) in enumerate(zip(boxes, scores, strict=True)):
        box, label = np.nonzero(values > score_threshold)
        best = np.argsort(-values[box, label], kind="stable")[:max_candidates]
        box, label = box[best], label[best]
        by_rank = -np.arange(len(best)).astype(np.float64)
        idxs = np.zeros_like(label) if class_agnostic else label
        found, of_class = [], {}
        for k in batched_nms_of_many(own[box], by_rank, idxs, iou_threshold).tolist():
            of_class[label[k]] = of_class.get(label[k], 0) + 1
            if max_per_class is None or of_class[label[k]] <= max_per_class:
                found.append((n, box[k], label[k]))
        rows += found[:max_output]
    return np.array(rows, np.int64).reshape(-1, 3)
