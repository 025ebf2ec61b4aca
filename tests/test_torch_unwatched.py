"""`cvops.torch.nms` and `roi_align` go past PyTorch's dispatcher where nobody looks on, and only there."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

SCRIPT = """
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import cvops.torch as ops
from cvops.torch import _library

boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
scores = torch.tensor([0.8, 0.9, 0.7])
seen = []


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        seen.append(str(function))
        return function(*args, **(kwargs or {}))


def check(watched):
    keep = ops.nms(boxes, scores, 0.5)
    assert keep.tolist() == [1, 2], keep
    assert any(probe() for probe in _library._PROBES) is watched


check(False)
assert _library.is_unwatched(boxes, scores)
for other in (
    boxes.double(), boxes.bfloat16(), boxes.long(), boxes.to("meta"), boxes.clone().requires_grad_(), boxes.to_sparse(),
    torch.nn.Parameter(boxes), torch._neg_view(boxes), torch._to_functional_tensor(boxes), boxes.numpy(), None,
):
    assert not _library.is_unwatched(other, scores), other
assert _library.is_unwatched(boxes.clone(), scores)  # nothing above has imported torch.compile
maps, rois = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]])
kernels = torch.ops.cvops
calls = [
    (lambda b, s: ops.nms(b, s, 0.5), lambda b, s: kernels.nms(b, s, 0.5), boxes.double(), scores),
    (lambda b, s: ops.nms(b, s, 0.5, padded=True)[0], lambda b, s: kernels.nms_padded(b, s, 0.5)[0], boxes, scores),
    (lambda m, r: ops.roi_align(m, r, 2), lambda m, r: kernels.roi_align(m, r, [2, 2]), maps, rois),
    (lambda m, r: ops.roi_align(m, r, 2), lambda m, r: kernels.roi_align(m, r, [2, 2]), maps.half(), rois),
]
for call, operator, first, second in calls:
    assert _library.needs_only_the_kernel(first, second)
    got, expected = call(first, second), operator(first, second)
    assert got.dtype == expected.dtype and torch.equal(got, expected)
for other in (
    maps.long(), maps.to("meta"), maps.clone().requires_grad_(), maps.to_sparse(), torch.nn.Parameter(maps),
    torch._neg_view(maps), torch._to_functional_tensor(maps), maps.numpy(), [rois], None,
):
    assert not _library.needs_only_the_kernel(maps, other), other
    assert not _library.needs_only_the_kernel(other, rois), other
for mode in (Functions, Dispatches):
    seen.clear()
    with mode():
        check(True)
    assert any("cvops" in name and "nms" in name for name in seen), (mode, seen)
    for call, _, first, second in calls:
        seen.clear()
        with mode():
            call(first, second)
        assert any("cvops" in name for name in seen), (mode, seen)
leaf = maps.clone().requires_grad_()
ops.roi_align(leaf, rois, 2).sum().backward()
assert leaf.grad.sum() == 4
assert torch.equal(ops.roi_align(torch._neg_view(-maps), rois, 2), ops.roi_align(maps, rois, 2))
check(False)
assert "cvops::nms" in str(torch.jit.trace(lambda b, s: ops.nms(b, s, 0.5), (boxes, scores)).graph)
padded = torch.func.vmap(lambda s: ops.nms(boxes, s, 0.5, padded=True)[0])(torch.stack([scores, scores]))
assert padded.tolist() == [[1, 2, -1]] * 2
with torch.profiler.profile() as profile:
    check(True)
assert any("cvops::nms" in event.key for event in profile.key_averages())
grown = boxes.clone().requires_grad_()
assert ops.nms(grown, scores, 0.5).tolist() == [1, 2]
assert ops.nms(torch._neg_view(-boxes), scores, 0.5).tolist() == [1, 2]
keep = ops.nms(boxes, scores, 0.5, 0.75, 1)
assert keep.tolist() == [1] and keep.dtype == torch.int64
compiled = torch.compile(lambda b, s: ops.nms(b, s, 0.5) + 0, backend="eager")
assert compiled(boxes, scores).tolist() == [1, 2]
check(False)
# torch.compile is in use
assert not _library.is_unwatched(boxes, scores) and not _library.needs_only_the_kernel(maps, rois)
"""


def test_the_dispatcher_is_left_out_where_nobody_looks_on():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=300)
