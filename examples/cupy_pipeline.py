"""The second half of a detector as one CUDA graph: decode, nms and roi_align of a batch, without the host in between.

    pip install "cvops[cuda13]"
    python examples/cupy_pipeline.py

A graph replays launches on fixed addresses. So shapes may not depend on values (`padded=True` fills the results up to
`max_output`), nothing may be read by the host, and the memory has to stay: the recipe is in `captured`.

The batch is a photograph and its mirror image: what an SSD proposes for them, before suppression, and one level of a
feature pyramid. data/NOTICE.md says where these come from.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cvops

DATA = Path(__file__).parent / "data"
SIDE, STRIDE = 416, 8  # of the square picture that the pyramid is of, and pixels in a cell of its level p3
MAX_OUTPUT, SCORE, IOU = 20, 0.1, 0.5

Arrays = dict[str, Any]


class Found(NamedTuple):
    """The detections of a batch, best first. Rows from `count` on only fill the arrays up."""

    count: Any
    candidates: Any  # index of each among all that the detector proposed
    boxes: Any  # (MAX_OUTPUT, 4), corners in pixels
    pooled: Any  # (MAX_OUTPUT, C, 7, 7)


def main() -> None:
    description = "Decode, suppress and pool the detections of a batch in a CUDA graph, and print them."
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=description)  # errors then take one line
    parser.parse_args()
    if lacking := missing():
        parser.error(f"this example needs CuPy and a GPU: {lacking}")
    import cupy

    batch, names, classes = load()
    graph = captured(cupy, batch)
    found = replay(cupy, graph, batch)
    report(found, batch, names, classes)
    swapped = {**batch, "images": 1 - batch["images"], "features": batch["features"][::-1]}
    again = replay(cupy, graph, swapped)
    same = bool((again.pooled == found.pooled).all())
    print(f"The graph again, with the images in the other order: {'the same' if same else 'OTHER'} features.")


def missing() -> str:
    """What keeps this machine from running the example; empty if nothing."""
    if not find_spec("cupy"):
        return "CuPy is not installed"
    import cupy

    return "" if cupy.cuda.is_available() else "CuPy finds no GPU"


def load() -> tuple[Arrays, list[str], int]:
    """The batch as NumPy arrays, the names of the classes, and how many there are."""
    with np.load(DATA / "ssd_coco_astronaut.npz") as file:
        boxes, scores, labels, (height, width) = (file[name] for name in ("boxes", "scores", "labels", "image_hw"))
        names = [str(name) for name in file["class_names"]]
    with np.load(DATA / "nanodet_fpn_astronaut_small.npz") as file:
        level = file["p3"]
    # As the heads of an SSD give them: centre and size, relative to the picture.
    corners = boxes / np.array([width, height, width, height], np.float32)
    codes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    mirrored = np.concatenate([1 - codes[:, :1], codes[:, 1:]], 1)
    images = np.repeat(np.arange(2), len(scores))
    batch = {
        "codes": np.concatenate([codes, mirrored]),
        "scores": np.tile(scores, 2),
        "labels": np.tile(labels.astype(np.int64), 2),
        "images": images,
        "features": np.concatenate([level, level[..., ::-1]]),
    }
    return batch, names, len(names)


def detect(xp: Any, ops: Any, batch: Arrays) -> Found:
    """Decode, suppress and pool. `xp` is the array module of `batch`, and `ops` has the operators for its arrays."""
    codes = batch["codes"]
    boxes = xp.empty_like(codes)
    half = codes[:, 2:] / 2
    boxes[:, :2] = codes[:, :2] - half
    boxes[:, 2:] = codes[:, :2] + half
    boxes = xp.clip(boxes, 0, 1) * SIDE
    # Boxes of another class or of another image do not suppress each other.
    groups = batch["labels"] * len(batch["features"]) + batch["images"]
    keep, count = ops.batched_nms(
        boxes, batch["scores"], groups, IOU, score_threshold=SCORE, max_output=MAX_OUTPUT, padded=True
    )
    candidates = xp.maximum(keep, 0)  # rows that only fill up take the first box
    rois = xp.empty((MAX_OUTPUT, 5), boxes.dtype)
    rois[:, 0] = batch["images"][candidates]
    rois[:, 1:] = boxes[candidates]
    pooled = ops.roi_align(batch["features"], rois, 7, 1 / STRIDE, 2, True)
    return Found(count, candidates, rois[:, 1:], pooled)


class Captured(NamedTuple):
    """A graph of `detect`, and what has to live as long as it."""

    graph: Any
    stream: Any
    inputs: Arrays
    found: Found
    pool: Any


def captured(cupy: Any, batch: Arrays) -> Captured:
    """Capture `detect` in a CUDA graph, for batches of the shapes and dtypes of this one."""
    # Addresses that the graph knows come from a pool of its own, which serves nobody else.
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    with cupy.cuda.using_allocator(pool.malloc), stream:
        inputs = {name: cupy.asarray(array) for name, array in batch.items()}
        detect(cupy, cvops, inputs)  # once before: kernels are compiled and loaded
        stream.synchronize()
        stream.begin_capture()
        found = detect(cupy, cvops, inputs)
        graph = stream.end_capture()
    return Captured(graph, stream, inputs, found, pool)


def replay(cupy: Any, captured: Captured, batch: Arrays) -> Found:
    """What `detect` finds in the batch, on the host."""
    with captured.stream:
        for name, array in batch.items():
            captured.inputs[name].set(np.ascontiguousarray(array))
        captured.graph.launch(captured.stream)
        return Found(*(cupy.asnumpy(array, stream=captured.stream) for array in captured.found))


def report(found: Found, batch: Arrays, names: list[str], classes: int) -> None:
    """Print the detections, from the host."""
    count = int(found.count)
    print(f"{len(batch['scores'])} candidates of {classes} classes in 2 images, {count} above {SCORE} kept:")
    for row in range(count):
        candidate = found.candidates[row]
        strength = np.linalg.norm(found.pooled[row], axis=0).mean()
        print(
            f"image {batch['images'][candidate]}  {names[batch['labels'][candidate]]:12}"
            f"  score {batch['scores'][candidate]:.3f}"
            f"  box {' '.join(f'{corner:6.1f}' for corner in found.boxes[row])}  mean feature norm {strength:.2f}"
        )


if __name__ == "__main__":
    main()
