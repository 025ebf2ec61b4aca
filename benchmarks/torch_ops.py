"""`cvops.torch` beside torchvision: forward and backward, and what a call costs beyond the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.data import clustered, deformed, pyramid_boxes, rois, uniform

from . import peers
from .harness import Row, all_close, all_close_to_largest, same_indices

# As in roi.py and deform_conv.py: (channels, height, width), RoIs, bins, scale, samples; and shapes of a convolution.
POOLED = [((256, 200, 304), 512, 7, 1 / 4, 2), ((1024, 38, 50), 300, 14, 1 / 16, 0)]
CONVOLVED = [(2, 64, 64, 64, 64), (1, 128, 100, 134, 128)]


def rows(quick: bool) -> Iterator[Row]:
    if not peers.installed("torchvision"):
        return
    import torch
    import torchvision

    import cvops.torch

    modules = {"cvops": cvops.torch, "torchvision": torchvision.ops}
    yield from overhead_rows(quick)
    for shape, count, bins, scale, samples in POOLED[1:] if quick else POOLED:
        maps = torch.from_numpy(uniform((1, *shape)))
        of_maps = torch.from_numpy(rois(count, *shape[1:], scale))
        arguments = of_maps, bins, scale, samples
        yield Row(
            table="roi_align, forward and backward",
            name=f"{shape}, {count} RoIs, {bins} x {bins}",
            inputs=f"uniform maps {(1, *shape)}, rois({count}, seed=0), scale {scale:g}, sampling {samples}",
            sides={side: step(module.roi_align, maps, *arguments) for side, module in modules.items()},
            check=all_close,
        )
    size, channels = ((200, 336), 32) if quick else ((800, 1344), 256)
    levels = {
        f"p{n}": torch.from_numpy(uniform((1, channels, size[0] >> n, size[1] >> n), seed=n)) for n in range(2, 6)
    }
    listed = [torch.from_numpy(pyramid_boxes(512, *size))]

    def pooled(pool: Any, finest: Any) -> Any:
        return pool({**levels, "p2": finest}, listed, [size])

    yield Row(
        table="MultiScaleRoIAlign, forward and backward",
        name=f"4 levels of {size[0]} x {size[1]}, C = {channels}, 512 boxes",
        inputs=f"uniform maps, pyramid_boxes(512, {size[0]}, {size[1]}, seed=0)",
        sides={
            side: step(partial(pooled, module.MultiScaleRoIAlign(list(levels), 7, 2)), levels["p2"])
            for side, module in modules.items()
        },
        check=all_close,
    )
    for convolution in CONVOLVED[:1] if quick else CONVOLVED:
        arrays = {name: torch.from_numpy(array) for name, array in deformed(*convolution).items()}
        order = [arrays[name] for name in ("input", "offset", "weight", "bias", "mask")]
        yield Row(
            table="deform_conv2d, 3x3, with mask, forward and backward",
            name=f"{convolution[:4]} -> {convolution[4]}",
            inputs=f"deformed{convolution}, seed=0",
            sides={
                side: step(partial(convolve, module.deform_conv2d), *order, wanted=5)
                for side, module in modules.items()
            },
            check=all_close_to_largest,
        )


def overhead_rows(quick: bool) -> Iterator[Row]:
    """Calls that record nothing, beside the plain function on arrays and on tensors, and torchvision's."""
    boxes, scores, _ = clustered(10)
    many, many_scores, labels = clustered(1_000 if quick else 20_000)
    shape, count, bins, scale, samples = POOLED[-1] if quick else POOLED[0]
    pooled = uniform((1, *shape)), rois(count, *shape[1:], scale), bins, scale
    arrays = deformed(*CONVOLVED[0])
    convolved = (
        *(arrays[name] for name in ("input", "offset", "weight", "bias")),
        (1, 1),
        (1, 1),
        (1, 1),
        arrays["mask"],
    )
    calls: dict[str, tuple[str, tuple[Any, ...], Any]] = {
        "nms, 10 boxes": ("nms", (boxes, scores, 0.5), same_indices(scores)),
        f"batched_nms, {len(many):,} boxes": (
            "batched_nms",
            (many, many_scores, labels, 0.5),
            same_indices(many_scores),
        ),
        f"box_iou, {len(many) // 10:,} x {len(many) // 10:,}": ("box_iou", (many[::10], many[::10]), all_close),
        f"roi_align, {shape}, {count} RoIs": ("roi_align", (*pooled, samples), all_close),
        f"roi_pool, {shape}, {count} RoIs": ("roi_pool", pooled, all_close),
        f"deform_conv2d, {CONVOLVED[0][:4]}": ("deform_conv2d", convolved, all_close_to_largest),
    }
    import torch
    import torchvision

    import cvops
    import cvops.torch

    for row, (name, args, check) in calls.items():
        tensors = [torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        yield Row(
            table="cvops.torch without gradients",
            name=row,
            inputs="as in the other suites",
            sides={
                "cvops": partial(getattr(cvops.torch, name), *tensors),
                "plain, arrays": partial(getattr(cvops, name), *args),
                "plain, tensors": partial(getattr(cvops, name), *tensors),
                "torchvision": partial(getattr(torchvision.ops, name), *tensors),
            },
            check=check,
        )


def convolve(function: Callable[..., Any], input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> Any:
    return function(input, offset, weight, bias, padding=(1, 1), mask=mask)


def step(function: Callable[..., Any], *arguments: Any, wanted: int = 1) -> Callable[[], Any]:
    """A call that computes the function and the gradients of its first `wanted` tensors for ones."""
    import torch

    leaves = [tensor.clone().requires_grad_() for tensor in arguments[:wanted]]

    def call() -> Any:
        gradients = torch.autograd.grad(function(*leaves, *arguments[wanted:]).sum(), leaves)
        return gradients if wanted > 1 else gradients[0]

    return call
