"""TorchScript: what torchvision can script is scripted here too, saved, and run by another process."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import compare, torch_calls
from tests.test_torch_decode import Head, head_arguments
from tests.test_torch_modules import BOXES, IMAGES, MAPS, OPTIONS, tensors
from tests.torch_calls import BOXES as MANY_BOXES
from tests.torch_calls import CALLS, DEFORM, MAP, OWN, ROIS, SCORES

pytestmark = torch_calls.quiet


@pytest.mark.parametrize("name", CALLS)
def test_functions(torch_ops, torch, name):
    want = torch_calls.want(name)
    got = torch.jit.script(getattr(torch_ops, name))(*torch_calls.tensors(name)).clone()
    (compare.same if want.dtype.kind == "i" else compare.close)(got, want, got)


@pytest.mark.parametrize(
    "name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss", "sigmoid_focal_loss"]
)
def test_losses(torch_ops, torch, name):
    args = torch.rand(2, 5, 4).unbind()
    for reduction in ("none", "mean"):
        got = torch.jit.script(getattr(torch_ops, name))(*args, reduction=reduction)
        torch.testing.assert_close(got, getattr(torch_ops, name)(*args, reduction=reduction))


def test_options_and_errors(torch_ops, torch):
    boxes, scores = torch.from_numpy(MANY_BOXES), torch.from_numpy(SCORES)
    script = torch.jit.script(torch_ops.nms)
    assert torch.equal(script(boxes, scores, 0.3, 0.2, 4), torch_ops.nms(boxes, scores, 0.3, 0.2, 4))
    with pytest.raises(Exception, match="padded=True is not for TorchScript"):
        script(boxes, scores, 0.3, padded=True)
    maps, rois = torch.from_numpy(MAP), torch.from_numpy(ROIS)
    pool = torch.jit.script(torch_ops.roi_align)
    assert torch.equal(
        pool(maps, [rois[:2, 1:], rois[2:, 1:]], 2), torch_ops.roi_align(maps, [rois[:2, 1:], rois[2:, 1:]], 2)
    )
    with pytest.raises(Exception, match="`boxes` must be a list of one array for each image, 2, got 1"):
        pool(maps, [rois[:, 1:]], 2)
    with pytest.raises(Exception, match="`boxes` must have shape"):
        pool(maps, rois[:, 1:], 2)


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"])
def test_gradients(torch_ops, torch, name):
    gradients = []
    for function in (getattr(torch_ops, name), torch.jit.script(getattr(torch_ops, name))):
        args = torch_calls.tensors(name)
        function(args[0].requires_grad_(), *args[1:]).sin().sum().backward()
        gradients.append(args[0].grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", OWN)
def test_own_functions(torch_ops, torch, tmp_path, name):
    args, function = torch_calls.own_tensors(name), getattr(torch_ops, name)
    script = torch.jit.script(function)
    script.save(str(tmp_path / "function.pt"))
    for run in (script, torch.jit.load(tmp_path / "function.pt")):
        for _ in range(3):
            torch.testing.assert_close(run(*args), function(*args), rtol=0, atol=0, equal_nan=True)


DELTAS = np.float32([[0.5, 0, 0.25, 9], [-0.5, 1, -3, 0], [0, 0, 0, np.nan]])
HEADS = [
    ("decode_boxes", (DELTAS, MANY_BOXES[:3]), {}),
    ("decode_boxes", (DELTAS, MANY_BOXES[:3], (10, 10, 5, 5)), {"clip": None}),
    ("decode_boxes", (DELTAS, MANY_BOXES[:3], [10.0, 10.0, 5.0, 5.0], 0.5), {}),
    ("decode_boxes", (DELTAS[None], MANY_BOXES[:12].reshape(4, 3, 4), (10.0, 10.0, 5.5, 5)), {}),
    ("decode_boxes", (DELTAS.astype(np.float16), MANY_BOXES[:3].astype(np.int64)), {}),
    ("decode_boxes", (DELTAS[:2].astype(np.int16), MANY_BOXES[:2].astype(np.float64)), {}),
    ("encode_boxes", (MANY_BOXES, MANY_BOXES[0]), {}),
    ("encode_boxes", (MANY_BOXES.astype(np.float16), MANY_BOXES[::-1]), {"weights": [1, 2, 3, 4]}),
    ("encode_boxes", (MANY_BOXES.astype(np.uint8), MANY_BOXES.astype(np.int32)), {}),
    ("distance_to_boxes", (MANY_BOXES[:, :2], np.stack([MANY_BOXES, MANY_BOXES])), {}),
    ("distance_to_boxes", (MANY_BOXES[:3, :2].astype(np.int64), MANY_BOXES[:3].astype(np.float16)), {}),
    ("distance_to_boxes", (MANY_BOXES[:0, :2], MANY_BOXES[:0]), {}),
    *(
        ("scale_boxes", (MANY_BOXES, (640, 640), [480, 853]), {"letterbox": letterbox})
        for letterbox in (True, False, "center", "topleft")
    ),
    ("scale_boxes", (MANY_BOXES.astype(np.float16), (640.5, 640), (480.0, 853.0), True), {}),
    ("scale_boxes", (MANY_BOXES.astype(np.int64), [64, 70], [480.25, 853.0]), {}),
    *(
        ("multiclass_nms", (MANY_BOXES[None], SCORES[None, :, None], 0.3), options)
        for options in ({}, {"metric": "iou"})
    ),
    ("multiclass_nms", (MANY_BOXES.reshape(2, 12, 4), SCORES.reshape(2, 12, 1), 0.1, 0.25), {}),
    ("multiclass_nms", (MANY_BOXES.reshape(2, 4, 3, 4), SCORES.reshape(2, 4, 3), 0.5, 0.1, 9, 2, 4), {}),
    ("multiclass_nms", (MANY_BOXES.reshape(2, 4, 3, 4), SCORES.reshape(2, 4, 3), 0.5), {"multi_label": False}),
    (
        "multiclass_nms",
        (MANY_BOXES.reshape(2, 12, 4), SCORES.repeat(3).reshape(2, 12, 3), 0.2),
        {"score_threshold": np.float32([0.1, 0.4, 0.2]), "objectness": SCORES.reshape(2, 12), "class_agnostic": True},
    ),
    ("multiclass_nms", (MANY_BOXES[None], SCORES[None, :, None].astype(np.float16), 0.3, 0.1), {}),
    ("multiclass_nms", (MANY_BOXES[None], SCORES[None, :, None], 0.3, np.array(0.1)), {}),
    ("multiclass_nms", (MANY_BOXES[None], 9 * SCORES[None, :, None], 0.3, 4), {}),
    ("multiclass_nms", (MANY_BOXES[None], SCORES[None, :, None], 1), {"score_threshold": 0}),
    ("multiclass_nms", (MANY_BOXES[None], SCORES[None, :, None], 0.3), {"max_output": 0}),
]


@pytest.mark.parametrize(("name", "args", "options"), HEADS)
def test_options_of_own_functions(torch_ops, torch, tmp_path, name, args, options):
    def tensor(value):
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    args, options = list(map(tensor, args)), {key: tensor(value) for key, value in options.items()}
    function = getattr(torch_ops, name)
    script, want = torch.jit.script(function), function(*args, **options)
    script.save(str(tmp_path / "function.pt"))
    loaded = torch.jit.load(tmp_path / "function.pt")
    bound = inspect.signature(function).bind(*args, **options)
    bound.apply_defaults()  # they are not saved
    for got in (script(*args, **options), loaded(**bound.arguments)):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert getattr(got, "_fields", ()) == getattr(want, "_fields", ())


def test_a_head_saved_and_loaded(torch_ops, torch, tmp_path):
    head = Head(torch, torch_ops)
    torch.jit.script(head).save(tmp_path / "head.pt")
    loaded = torch.jit.load(tmp_path / "head.pt")
    for images, length in ((1, 20), (3, 40), (2, 0)):
        args = head_arguments(torch, images, length)
        torch.testing.assert_close(loaded(*args), head(*args), rtol=0, atol=0)


class Numbers:
    """Calls as they stand in scripted code, where a number has one type."""

    def __new__(cls, torch, torch_ops):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weights, self.listed, self.size = (10.0, 10.0, 5.0, 5.0), [10, 10, 5, 5], (480, 853)

            def forward(self, deltas: torch.Tensor, anchors: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
                height, width = image.shape[-2], image.shape[-1]
                return [
                    torch_ops.decode_boxes(deltas, anchors, self.weights),
                    torch_ops.decode_boxes(deltas, anchors, self.listed, clip=None),
                    torch_ops.decode_boxes(deltas, anchors, [10.0, 10.0, 5.0, 5.0], 0.25),
                    torch_ops.encode_boxes(deltas, anchors, weights=(10.0, 10, 5.0, 5)),
                    torch_ops.scale_boxes(anchors, image.shape[-2:], self.size, "topleft"),
                    torch_ops.scale_boxes(anchors, [height, width], (480.0, 853.5), letterbox=True),
                    torch_ops.scale_boxes(anchors, (height, 64.0), [480.5, 853.5]),
                    torch_ops.distance_to_boxes(anchors[:, :2], distances=deltas),
                ]

        return Module()


def test_numbers_in_scripted_code(torch_ops, torch):
    module = Numbers(torch, torch_ops)
    args = *torch_calls.own_tensors("decode_boxes")[:2], torch.zeros(1, 3, 640, 512)
    torch.testing.assert_close(torch.jit.script(module)(*args), module(*args), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["decode_boxes", "encode_boxes", "distance_to_boxes", "scale_boxes"])
def test_gradients_of_decoders(torch_ops, torch, name):
    gradients = []
    for function in (getattr(torch_ops, name), torch.jit.script(getattr(torch_ops, name))):
        args = torch_calls.own_tensors(name)
        given = [arg.requires_grad_() for arg in args if isinstance(arg, torch.Tensor)]
        gradients.append(torch.autograd.grad(function(*args).sin().sum(), given))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("name", "others", "text"),
    [
        ("decode_boxes", [(1, 1, 1)], "`weights` must be four numbers, got"),
        ("decode_boxes", [[1.0, 1.0, 1.0, 1.0, 1.0]], "`weights` must be four numbers, got"),
        ("decode_boxes", [(1, 1, 0, 1)], "`weights` must be finite and > 0, got 0"),
        ("encode_boxes", [(1.0, 1.0, 1.0, float("inf"))], "`weights` must be finite and > 0, got inf"),
        ("encode_boxes", ["1111"], "`weights` must be four numbers"),
        ("decode_boxes", [(1, 1, 1, 1), float("nan")], "`clip` must be a number, got nan"),
        ("scale_boxes", [(640, 640), (480, 0)], "`to_size` must be finite and > 0, got 0"),
        ("scale_boxes", [(640, 640, 3), (480, 2)], r"`from_size` must be \(height, width\), got"),
        (
            "scale_boxes",
            [(640, 640), (480, 2), "left"],
            "`letterbox` must be True, False, 'center' or 'topleft', got",
        ),
    ],
)
def test_numbers_that_scripted_functions_refuse(torch_ops, torch, name, others, text):
    boxes = [torch.from_numpy(MANY_BOXES)] * (1 if name == "scale_boxes" else 2)
    with pytest.raises(Exception, match=text):
        torch.jit.script(getattr(torch_ops, name))(*boxes, *others)
    with pytest.raises((TypeError, ValueError), match=text):
        getattr(torch_ops, name)(*boxes, *others)


def test_shapes_that_scripted_functions_refuse(torch_ops, torch):
    boxes, scores = torch.from_numpy(MANY_BOXES), torch.from_numpy(SCORES)
    for name, args, text in (
        ("decode_boxes", (boxes[:, :3], boxes), r"`deltas` must have shape \(..., 4\)"),
        ("decode_boxes", (boxes, boxes[:, :3]), r"`anchors` must have shape \(..., 4\)"),
        ("encode_boxes", (boxes, boxes[:, :3]), r"`anchors` must have shape \(..., 4\)"),
        ("encode_boxes", (boxes, boxes[:3]), "24"),
        ("distance_to_boxes", (boxes[:1, :2], boxes), r"`points` must have shape \(L, 2\)"),
        ("distance_to_boxes", (boxes[0, :2], boxes), r"`points` must have shape \(L, 2\)"),
        ("distance_to_boxes", (boxes[:1, :2], boxes[0]), r"`points` must have shape \(L, 2\)"),
        ("distance_to_boxes", (boxes, boxes), r"`points` must have shape \(L, 2\)"),
        ("scale_boxes", (boxes[:, :3], (1, 1), (1, 1)), r"`boxes` must have shape \(..., 4\)"),
        ("multiclass_nms", (boxes, scores[:, None], 0.5), "use `scores\\[None\\]`"),
        ("multiclass_nms", (boxes[None], scores[None, :, None], 1.5), "`iou_threshold` must be from 0 to 1"),
        ("multiclass_nms", (boxes[None], scores[None, :, None], 0.5, scores), "`score_threshold` must have shape"),
        ("multiclass_nms", (boxes[None], scores[None, :, None], 0.5, None, -1), "`max_candidates` must be >= 0"),
    ):
        with pytest.raises(Exception, match=text):
            torch.jit.script(getattr(torch_ops, name))(*args)
        with pytest.raises((TypeError, ValueError), match=text):
            getattr(torch_ops, name)(*args)
    script = torch.jit.script(torch_ops.multiclass_nms)
    with pytest.raises(Exception, match="padded=True is not for TorchScript"):
        script(boxes[None], scores[None, :, None], 0.5, max_output=3, padded=True)
    with pytest.raises(Exception, match="`metric` must be one of iou"):
        script(boxes[None], scores[None, :, None], 0.5, metric="giou")


def test_modules_in_another_process(torch_ops, torch, tmp_path):
    torch.manual_seed(0)
    input, offset = tensors(torch, [DEFORM["input"], DEFORM["offset"]])
    maps, boxes = tensors(torch, MAPS), tensors(torch, BOXES)

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pyramid = torch_ops.FeaturePyramidNetwork(
                [12, 12, 12], 8, torch_ops.LastLevelP6P7(8, 8), torch.nn.BatchNorm2d
            )
            self.pool = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2, **OPTIONS)
            self.align, self.maximum = torch_ops.RoIAlign(2, 0.25, 2, aligned=True), torch_ops.RoIPool(2, 0.25)
            self.by_position, self.mean = torch_ops.PSRoIAlign(2, 0.25, 2), torch_ops.PSRoIPool((2, 2), 0.25)
            self.convolution = torch_ops.DeformConv2d(4, 6, 3, padding=1)

        def forward(
            self,
            maps: dict[str, torch.Tensor],
            boxes: list[torch.Tensor],
            image_shapes: list[tuple[int, int]],
            input: torch.Tensor,
            offset: torch.Tensor,
        ) -> list[torch.Tensor]:
            levels = self.pyramid(maps)
            p2 = levels["p2"]
            results = [self.pool(levels, boxes, image_shapes), levels["p7"], self.convolution(input, offset)]
            results += [self.align(p2, boxes), self.maximum(p2, boxes)]
            return results + [self.by_position(p2, boxes), self.mean(p2, boxes)]  # noqa: RUF005

    detector = Detector().eval()
    args = maps, boxes, IMAGES, input, offset
    torch.jit.script(detector).save(tmp_path / "detector.pt")
    with torch.no_grad():
        torch.save((args, detector(*args)), tmp_path / "answer.pt")
    code = """
import torch, cvops.torch
args, want = torch.load("answer.pt")
with torch.no_grad():
    for _ in range(3):  # TorchScript optimises in the second call
        got = torch.jit.load("detector.pt")(*args)
torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
print(len(got))
"""
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_tracing(torch_ops, torch):
    maps, rois = torch.from_numpy(MAP), torch.from_numpy(ROIS)
    traced = torch.jit.trace(lambda maps, rois: torch_ops.roi_align(maps, rois, 2), (maps, rois))
    assert torch.equal(traced(maps * 2, rois[:3]), torch_ops.roi_align(maps * 2, rois[:3], 2))


def test_torchvision_scripts_nothing_more(torch_ops, torch, torchvision):
    """Each function of torchvision that can be scripted can be here."""
    peer, scripted = torchvision.ops, []
    for name in sorted(set(peer.__all__) & set(torch_ops.__all__)):
        if isinstance(getattr(peer, name), type):
            continue  # a module: above
        try:
            torch.jit.script(getattr(peer, name))
        except RuntimeError:
            continue
        torch.jit.script(getattr(torch_ops, name))
        scripted.append(name)
    assert set(CALLS) - set(scripted) == {"masks_to_boxes"}  # which can be scripted here
