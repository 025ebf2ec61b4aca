"""From the raw head of a YOLO-like detector, (1, 84, 8400), to a picture of its detections, in one call of cvops.

    pip install ".[demo]"
    python examples/yolo_head.py

The picture shows all boxes with a score above the threshold beside what `cvops.multiclass_nms` keeps. The head is made
from the candidates of a real detector: as an exported YOLO has it, for each of 8 400 cells of three maps the centre and
size of a box in the 640 x 640 input, then 80 scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detect import DetectionFile, head_options, read, save_before_and_after
from numpy.typing import NDArray

import cvops

PICTURE = Path(__file__).parent / "data" / "ssd_coco_coffee.npz"
INPUT = 640, 640  # height and width
CELLS, CLASSES = 8400, 80  # of 80 x 80, 40 x 40 and 20 x 20 cells


def main() -> None:
    options = head_options(
        "Draw what a YOLO-like head proposes and what multiclass_nms keeps of it.", 0.45, "yolo_head.png"
    )
    file = read(PICTURE)
    head, class_names = head_of(file)

    # What a program with a YOLO does: views of the head, no copy of the scores.
    boxes = cvops.box_convert(head[:, :4].transpose(0, 2, 1), "cxcywh", "xyxy")
    scores = head[:, 4:].transpose(0, 2, 1)
    found = cvops.multiclass_nms(boxes, scores, options.iou, score_threshold=options.score, max_output=300)
    image_size = file.picture.height, file.picture.width
    kept = cvops.scale_boxes(boxes[found.image, found.box], INPUT, image_size, letterbox=True)

    kept_scores = scores[found.image, found.box, found.label]
    _, box, label = np.nonzero(scores > options.score)
    before = cvops.scale_boxes(boxes[0, box], INPUT, image_size, letterbox=True)
    save_before_and_after(
        DetectionFile(before, scores[0, box, label], label, class_names, file.picture),
        DetectionFile(kept, kept_scores, found.label, class_names, file.picture),
        options.score, options.out,
    )  # fmt: skip
    print(f"{CELLS} cells, {len(box)} candidates, {len(kept)} kept; picture: {options.out}")


def head_of(file: DetectionFile) -> tuple[NDArray[np.float32], list[str]]:
    """What a YOLO would have said of the picture, (1, 4 + 80, 8400), and the names of its classes."""
    values, labels = np.unique(file.labels, return_inverse=True)
    size = file.picture.height, file.picture.width
    gain = min(side / own for side, own in zip(INPUT, size, strict=True))
    padding = [(side - gain * own) / 2 for side, own in zip(INPUT, size, strict=True)]
    boxes = gain * file.boxes + np.array([padding[1], padding[0]] * 2, np.float32)
    cells = np.random.default_rng(0).permutation(CELLS)[: len(boxes)]  # one for each box
    head = np.zeros((1, 4 + CLASSES, CELLS), np.float32)
    head[0, :4, cells] = cvops.box_convert(boxes, "xyxy", "cxcywh")
    head[0, 4 + labels, cells] = file.scores
    return head, [file.class_names[value] for value in values]


if __name__ == "__main__":
    main()
