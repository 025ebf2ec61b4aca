"""TorchScript: what torchvision can script is scripted here too, saved, and run by another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import compare, torch_calls
from tests.test_torch_modules import BOXES, IMAGES, MAPS, OPTIONS, tensors
from tests.torch_calls import BOXES as MANY_BOXES
from tests.torch_calls import CALLS, DEFORM, MAP, ROIS, SCORES

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
