"""From the anchors, deltas and class scores of a RetinaNet-like head to a picture of its detections.

    pip install ".[demo]"
    python examples/retina_head.py

The picture shows all boxes with a score above the threshold beside what `cvops.multiclass_nms` keeps. The head is made
from the candidates of a real detector: for each anchor of five maps the deltas of a box and a logit for each class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detect import DetectionFile, head_options, read, save_before_and_after
from numpy.typing import NDArray

import cvops

PICTURE = Path(__file__).parent / "data" / "ssd_coco_coffee.npz"
INPUT = 512, 512  # height and width, to which each axis of the picture was resized
STRIDES = [8, 16, 32, 64, 128]
SIZES = [(INPUT[0] // stride, INPUT[1] // stride) for stride in STRIDES]
SCALES = [(4 * stride, 5.04 * stride, 6.35 * stride) for stride in STRIDES]


def main() -> None:
    options = head_options(
        "Draw what a RetinaNet-like head proposes and what multiclass_nms keeps of it.", 0.5, "retina_head.png"
    )
    file = read(PICTURE)
    anchors = cvops.make_anchors(SIZES, STRIDES, scales=SCALES, ratios=(0.5, 1.0, 2.0))
    deltas, logits = head_of(file, anchors)

    # What a program with a RetinaNet does.
    boxes = cvops.clip_boxes_to_image(cvops.decode_boxes(deltas, anchors), INPUT)
    scores = 1 / (1 + np.exp(-logits))
    found = cvops.multiclass_nms(
        boxes, scores, options.iou, score_threshold=options.score, max_candidates=1000, max_output=100
    )
    image_size = file.picture.height, file.picture.width
    kept = cvops.scale_boxes(boxes[found.image, found.box], INPUT, image_size)

    kept_scores = scores[found.image, found.box, found.label]
    _, box, label = np.nonzero(scores > options.score)
    before = cvops.scale_boxes(boxes[0, box], INPUT, image_size)
    save_before_and_after(
        DetectionFile(before, scores[0, box, label], label, file.class_names, file.picture),
        DetectionFile(kept, kept_scores, found.label, file.class_names, file.picture),
        options.score, options.out,
    )  # fmt: skip
    print(f"{len(anchors)} anchors, {len(box)} candidates, {len(kept)} kept; picture: {options.out}")


def head_of(file: DetectionFile, anchors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a RetinaNet would have said of the picture: deltas (1, L, 4) and logits (1, L, classes)."""
    height, width = file.picture.height, file.picture.width
    boxes = cvops.scale_boxes(file.boxes, (height, width), INPUT)
    deltas = np.zeros((1, len(anchors), 4), np.float32)
    logits = np.full((1, len(anchors), len(file.class_names)), -9, np.float32)
    free = np.ones(len(anchors), bool)
    for box, probability, label in zip(boxes, file.scores, file.labels, strict=True):
        best = int(np.where(free, cvops.box_iou(box[None], anchors)[0], -1).argmax())  # each box has its own anchor
        free[best] = False
        deltas[0, best] = cvops.encode_boxes(box, anchors[best])
        logits[0, best, label] = np.log(probability / (1 - probability))
    return deltas, logits


if __name__ == "__main__":
    main()
