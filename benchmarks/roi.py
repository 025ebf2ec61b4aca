"""The RoI operators, forward and backward, and the pyramid pooler: synthetic maps, a real pyramid, layouts, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cvops
from tests.data import (
    CASES,
    ONE,
    POSITION_SENSITIVE,
    SMALL,
    SMALL_POSITION_SENSITIVE,
    TINY,
    Array,
    Case,
    pyramid_boxes,
    uniform,
)

from . import peers
from .fresh import in_fresh_process
from .harness import Call, Figure, Row, all_close, all_close_to_largest

PYRAMID = Path(__file__).parent.parent / "examples" / "data" / "nanodet_fpn_astronaut_small.npz"


def rows(quick: bool) -> Iterator[Row | Figure]:
    cases = SMALL if quick else CASES
    position_sensitive = SMALL_POSITION_SENSITIVE if quick else POSITION_SENSITIVE
    for case in [*cases, ONE, *TINY]:
        yield forward_row("roi_align", case, case.samples)
    for case in cases:
        yield backward_row("roi_align", case, case.samples)
    for case in cases:
        yield forward_row("roi_pool", case)
    for case in cases:
        yield pool_backward_row(case)
    for operator, options in (("ps_roi_align", [position_sensitive.samples]), ("ps_roi_pool", [])):
        yield forward_row(operator, position_sensitive, *options)
        # The gradient of torchvision's ps_roi_pool is another one: see the notes of cvops.ps_roi_pool_backward.
        yield backward_row(operator, position_sensitive, *options, check=all_close if options else None)
    yield from pyramid_rows(*synthetic_pyramid(quick))
    yield from pyramid_rows(*real_pyramid())
    yield from form_rows(cases)
    if sys.platform == "linux":
        peak = in_fresh_process("peak of roi_align")
        yield Figure(table="memory above inputs and result", name=f"roi_align, {CASES[0]}", value=peak, unit="MB")


# ----------------------------------------------------------------------------------------------- one map, many RoIs


def forward_row(operator: str, case: Case, *options: Any) -> Row:
    maps, boxes = case.maps(), case.boxes()
    arguments = maps, boxes, case.bins, case.scale, *options
    sides: dict[str, Call] = {"cvops": partial(getattr(cvops, operator), *arguments)}
    if peers.installed("torchvision"):
        sides["torchvision"] = peers.with_torchvision(operator, *arguments)
    if operator in ONNX_RUNTIME and peers.installed("ONNX Runtime"):
        sides["ONNX Runtime"] = ONNX_RUNTIME[operator](case, maps, boxes)
    return Row(table=operator, name=str(case), inputs=case.inputs, sides=sides, check=first_close)


def backward_row(operator: str, case: Case, *options: Any, check: Callable[[Any, Any], str] | None = all_close) -> Row:
    boxes = case.boxes()
    channels = case.shape[1] // (case.bins**2 if operator.startswith("ps_") else 1)
    grad = uniform((case.rois, channels, case.bins, case.bins), seed=1)
    gradient = partial(getattr(cvops, f"{operator}_backward"), grad, boxes, case.shape, case.scale, *options)
    sides: dict[str, Call] = {"cvops": gradient}
    if peers.installed("torchvision"):
        sides["torchvision"] = torchvision_gradient(operator, case, boxes, grad, *options)
    return Row(
        table=f"{operator}, gradient",
        name=str(case),
        inputs=case.inputs,
        sides=sides,
        check=check and (lambda expected, got: check(expected, got[0])),
    )


def pool_backward_row(case: Case) -> Row:
    boxes = case.boxes()
    pooled, argmax = cvops.roi_pool(case.maps(), boxes, case.bins, case.scale, return_argmax=True)
    grad = uniform(pooled.shape, seed=1)
    sides: dict[str, Call] = {
        "cvops": partial(cvops.roi_pool_backward, grad, boxes, argmax, case.shape, case.scale),
    }
    if peers.installed("torchvision"):
        sides["torchvision"] = torchvision_gradient("roi_pool", case, boxes, grad)
    return Row(
        table="roi_pool, gradient",
        name=str(case),
        inputs=case.inputs,
        sides=sides,
        check=lambda expected, got: all_close(expected, got[0]),
    )


def first_close(expected: Any, got: Any) -> str:
    """As `all_close`; ONNX Runtime returns a list of one."""
    return all_close(expected, got[0] if isinstance(got, list) else got)


def torchvision_gradient(operator: str, case: Case, boxes: Array, grad: Array, *options: Any) -> Call:
    import torch

    maps = torch.from_numpy(case.maps())
    forward = peers.with_torchvision(operator, maps, boxes, case.bins, case.scale, *options)
    return peers.with_torchvision_gradient(forward, [maps], grad)


def _onnxruntime_roi_align(case: Case, maps: Array, boxes: Array) -> Call:
    attributes = {
        "output_height": case.bins,
        "output_width": case.bins,
        "sampling_ratio": case.samples,
        "spatial_scale": case.scale,
        "coordinate_transformation_mode": "output_half_pixel",
    }
    return peers.with_onnxruntime(
        "RoiAlign", attributes, maps=maps, rois=boxes[:, 1:].copy(), images=boxes[:, 0].astype(np.int64)
    )


def _onnxruntime_roi_pool(case: Case, maps: Array, boxes: Array) -> Call:
    attributes = {"pooled_shape": [case.bins, case.bins], "spatial_scale": case.scale}
    return peers.with_onnxruntime("MaxRoiPool", attributes, maps=maps, rois=boxes)


ONNX_RUNTIME: dict[str, Callable[[Case, Array, Array], Call]] = {
    "roi_align": _onnxruntime_roi_align,
    "roi_pool": _onnxruntime_roi_pool,
}


# --------------------------------------------------------------------------------------------------------- pyramids


def synthetic_pyramid(quick: bool) -> tuple[str, str, dict[str, Array], Array, tuple[int, int]]:
    height, width, channels, boxes = (200, 336, 32, 64) if quick else (800, 1344, 256, 512)
    maps = {f"p{level}": uniform((1, channels, height >> level, width >> level), seed=level) for level in range(2, 6)}
    name = f"4 levels of {height} x {width}, C = {channels}, {boxes} boxes"
    inputs = f"uniform maps, pyramid_boxes({boxes}, {height}, {width}, seed=0)"
    return name, inputs, maps, pyramid_boxes(boxes, height, width), (height, width)


def real_pyramid() -> tuple[str, str, dict[str, Array], Array, tuple[int, int]]:
    with np.load(PYRAMID) as file:
        maps, boxes = {name: file[name] for name in ("p3", "p4", "p5")}, file["rois"]
    return f"a real one, 3 levels, {len(boxes)} boxes", f"examples/data/{PYRAMID.name}", maps, boxes, (416, 416)


def pyramid_rows(name: str, inputs: str, maps: dict[str, Array], boxes: Array, image: tuple[int, int]) -> Iterator[Row]:
    pool = cvops.MultiScaleRoIAlign(list(maps), 7, 2)
    some = next(iter(maps.values()))
    grad = uniform((len(boxes), some.shape[1], 7, 7), seed=1)
    forward: dict[str, Call] = {"cvops": partial(pool, maps, [boxes], [image])}
    backward: dict[str, Call] = {"cvops": partial(pool.backward, grad, maps, [boxes], [image])}
    if peers.installed("torchvision"):
        import torch
        import torchvision

        tensors = {level: torch.from_numpy(array) for level, array in maps.items()}
        peer = torchvision.ops.MultiScaleRoIAlign(list(maps), 7, 2)
        forward["torchvision"] = partial(peer, tensors, [torch.from_numpy(boxes)], [image])
    yield Row(table="MultiScaleRoIAlign", name=name, inputs=inputs, sides=forward, check=all_close)
    if "torchvision" in forward:
        # A level without boxes has no gradient in torch.
        used = [level for level, gradient in backward["cvops"]().items() if gradient.any()]
        leaves = [tensors[level] for level in used]
        backward["torchvision"] = peers.with_torchvision_gradient(forward["torchvision"], leaves, grad)
    yield Row(
        table="MultiScaleRoIAlign, gradient",
        name=name,
        inputs=inputs,
        sides=backward,
        check=lambda expected, got: "".join(all_close(expected[u], g) for u, g in zip(used, got, strict=True)),
    )


# ----------------------------------------------------------------------------------------------- cvops beside itself


def form_rows(cases: list[Case]) -> Iterator[Row]:
    """The same values in other layouts, dtypes and libraries."""
    for operator in ("roi_align", "roi_pool"):
        for case in cases:
            maps, boxes = case.maps(), case.boxes()
            options = [case.samples] if operator == "roi_align" else []
            forms: dict[str, tuple[Any, Any]] = {
                "cvops": (maps, boxes),
                "channels last": (np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), boxes),
                "float64": (maps.astype("d"), boxes.astype("d")),
            }
            if peers.installed("torchvision"):
                import torch

                forms["torch tensors"] = (torch.from_numpy(maps), torch.from_numpy(boxes))
            yield Row(
                table=f"{operator} of cvops in other forms",
                name=str(case),
                inputs=case.inputs,
                sides={
                    form: partial(getattr(cvops, operator), *arrays, case.bins, case.scale, *options)
                    for form, arrays in forms.items()
                },
                check=all_close_to_largest,  # float64 puts samples elsewhere by what float32 rounds
            )
