"""A detector of torchvision, unedited, on the operators of torchvision and on those of cvops: the same detections.

    pip install torch torchvision ".[demo]"
    python examples/torch_dropin.py
    python examples/torch_dropin.py --model retinanet_resnet50_fpn --side 640 --repeats 5

The weights are random, because nothing is downloaded: the boxes mean nothing, but they are as many as in earnest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from detect import ASTRONAUT, OneLineParser, read

MODELS = [
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
]


def main() -> None:
    parser = OneLineParser("Run a detector of torchvision with and without cvops; compare the detections.")
    add = parser.add_argument
    add("--model", choices=MODELS, default=MODELS[0], help="which detector (default: %(default)s)")
    add("--side", type=side, default=128, help="pixels of a side of the image, 64 to 2048 (default: %(default)s)")
    add("--repeats", type=repeats, default=2, help="timings of each, 1 or more (default: %(default)s)")
    options = parser.parse_args()
    parser.need("torch", "torchvision")
    print(f"{options.model}: making one with random weights", flush=True)

    import torch
    import torchvision

    import cvops
    import cvops.torch

    torch.set_num_threads(1)  # on a machine with other work, threads that wait for each other take minutes
    cvops.set_num_threads(1)
    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, options.model)
    sizes = {"min_size": options.side, "max_size": options.side}
    detector = make(weights=None, weights_backbone=None, **sizes, **thresholds(options.model)).eval()
    photograph = np.array(read(ASTRONAUT).picture.convert("RGB"))
    images = [torch.from_numpy(photograph).permute(2, 0, 1) / 255]

    calls: Counter[str] = Counter()

    def replaced() -> Any:
        with cvops.torch.replace_torchvision() as counted:
            detections = detector(images)
        calls.update(counted)
        return detections

    variants: dict[str, Callable[[], Any]] = {
        "torchvision": lambda: detector(images),
        "replace_torchvision()": replaced,
    }
    heads: Any = getattr(detector, "roi_heads", None)
    if pool := getattr(heads, "box_roi_pool", None):
        # torchvision's constructors check the type of a pooler; later it can be ours, which pools all levels at once.
        ours = cvops.torch.MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio)

        def swapped() -> Any:
            heads.box_roi_pool = ours
            detections = detector(images)
            heads.box_roi_pool = pool
            return detections

        variants["roi_heads.box_roi_pool swapped"] = swapped

    with torch.inference_mode():
        found = {}
        for name, call in variants.items():
            print(f"first call: {name}", flush=True)  # cvops compiles
            found[name] = call()[0]
        calls.clear()
        milliseconds = timed(variants, options.repeats)
    want = found["torchvision"]
    print(f"\n{options.side} x {options.side} pixels, {len(want['boxes'])} detections, one thread each")
    for name, detections in found.items():
        remark = "" if detections is want else agreement(want, detections)
        print(f"{name:32}{milliseconds[name]:8.1f} ms  {remark}".rstrip())
    names = [f"{name} ({count // options.repeats} times)" for name, count in sorted(calls.items())]
    print(f"\nrun on cvops: {', '.join(names)}")


def side(text: str) -> int:
    number = int(text)
    if not 64 <= number <= 2048:
        raise argparse.ArgumentTypeError(f"must be from 64 to 2048, got {number}")
    return number


def repeats(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def thresholds(model: str) -> dict[str, float]:
    """Options under which random weights have detections."""
    return {"box_score_thresh" if "rcnn" in model else "score_thresh": 0.0}


def timed(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of a call of each in milliseconds, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(of_variant) for name, of_variant in times.items()}


def agreement(want: dict[str, Any], got: dict[str, Any]) -> str:
    """In words, how far the detections agree."""
    import torch

    for name in want:
        if want[name].shape != got[name].shape or not torch.allclose(want[name], got[name], rtol=1e-4, atol=1e-3):
            return f"OTHER {name}"
    return "the same detections"


if __name__ == "__main__":
    main()
