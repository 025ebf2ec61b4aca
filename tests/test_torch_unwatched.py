"""The functions of `cvops.torch` go past PyTorch's dispatcher where nobody looks on, and only there."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

import cvops
import cvops.torch as ops
from cvops.torch import _entry
from tests import torch_calls
from tests.torch_calls import tensors

MEASURES = "box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"
DIRECT = "nms", "batched_nms", "multiclass_nms", *torch_calls.POOLING, *MEASURES, "deform_conv2d"


@pytest.fixture
def went(monkeypatch):
    """For each call of a function of cvops.torch, whether it went past the dispatcher."""
    answers, directly = [], _entry.directly

    def watched(*call):
        found = directly(*call)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(_entry, "directly", watched)
    return answers


def by_the_dispatcher(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(_entry, "directly", lambda *_: None)
        return call()


def assert_same(got, want):
    assert type(got) is type(want)
    for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (got, want)), strict=True):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        assert one.is_contiguous()
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", DIRECT)
def test_results_are_those_of_the_dispatcher(went, monkeypatch, name, dtype):
    args = tensors(name, getattr(torch, dtype))
    got = getattr(ops, name)(*args)
    assert went == [dtype in ("float32", "float64")]  # others torch converts faster
    assert_same(got, by_the_dispatcher(monkeypatch, lambda: getattr(ops, name)(*args)))
    with torch.inference_mode():
        inferred = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
        assert_same(getattr(ops, name)(*inferred), got)
    assert went[1:] == went[:1]


def more_calls():
    boxes, scores, maps = torch.rand(9, 4), torch.rand(9), torch.rand(2, 3, 8, 9)
    boxes[:, 2:] += 1
    rois = torch.cat([torch.arange(9)[:, None] % 2, boxes], 1)
    keep = {"score_threshold": 0.2, "max_output": 4}
    heads, of_heads, floors = boxes[None], torch.stack([scores, scores.flip(0)], 1)[None], torch.rand(2).double()
    pyramid = [maps, maps[..., ::2, ::2]]
    return {
        "padded": lambda: ops.nms(boxes, scores, 0.5, padded=True),
        "options": lambda: ops.nms(boxes, scores, 0.5, **keep),
        "batched, padded": lambda: ops.batched_nms(boxes, scores, scores > 0.5, 0.5, **keep, padded=True),
        "heads": lambda: ops.multiclass_nms(heads, of_heads, 0.5),
        "heads, padded": lambda: ops.multiclass_nms(heads, of_heads, 0.5, max_output=7, padded=np.True_),
        "heads, options": lambda: ops.multiclass_nms(
            heads, of_heads, 0.5, 0.3, 5, 2, 4, objectness=of_heads[..., 0], class_agnostic=True, metric="iou"
        ),
        "floors": lambda: ops.multiclass_nms(heads, of_heads, 0.5, floors, multi_label=False),
        "floors of another dtype": lambda: ops.multiclass_nms(heads, of_heads, 0.5, floors.half()),
        "floor in a tensor": lambda: ops.multiclass_nms(heads, of_heads, 0.5, floors[0], max_output=torch.tensor(3)),
        "no heads": lambda: ops.multiclass_nms(heads[:0], of_heads[:0], 0.5, max_output=3, padded=True),
        "integers": lambda: ops.nms((boxes * 9).long(), scores, 1),
        "numbers of torch": lambda: ops.roi_align(maps, rois, torch.tensor(2), torch.tensor(1), torch.tensor(2.0)),
        "numbers of NumPy": lambda: ops.roi_align(maps, rois, (np.int64(2), 3), np.float32(1), aligned=np.bool_(True)),
        "boxes in a list": lambda: ops.roi_align(maps, [boxes, boxes[:3]], [2, 3]),
        "pyramid": lambda: ops.multiscale_roi_align(pyramid, rois, 2, [1, 0.5]),
        "pyramid, boxes in a list": lambda: ops.multiscale_roi_align(pyramid, [boxes, boxes[:3]], 2, [1, 0.5]),
        "channels last": lambda: ops.ps_roi_pool(maps.to(memory_format=torch.channels_last), rois, (1, 3)),
        "nothing": lambda: ops.roi_pool(maps, rois[:0], 2),
    }


@pytest.mark.parametrize("case", more_calls())
def test_results_of_other_calls(monkeypatch, case):
    call = more_calls()[case]
    torch.manual_seed(0)
    assert_same(call(), by_the_dispatcher(monkeypatch, call))


def refused_calls():
    boxes, scores, maps = torch.ones(3, 4), torch.ones(3), torch.ones(1, 4, 5, 5)
    rois = torch.zeros(3, 5)
    return [
        lambda: ops.nms(boxes, scores[:2], "high"),  # what comes first is the same
        lambda: ops.nms(boxes[:, :3], scores, 0.5),
        lambda: ops.nms(boxes, scores.long(), 2.0),
        lambda: ops.nms(boxes, scores, 0.5, max_output=2**70),
        lambda: ops.nms(boxes, scores, 0.5, max_output=2**55, padded=True),
        lambda: ops.nms(boxes, scores, 0.5, score_threshold=float("nan")),
        lambda: ops.nms(boxes, None, 0.5),
        lambda: ops.nms(boxes.cfloat(), scores, 0.5),
        lambda: ops.batched_nms(boxes, scores, scores / 2, 0.5),
        lambda: ops.multiclass_nms(boxes, scores, 0.5),
        lambda: ops.multiclass_nms(boxes[None], scores[None, :, None], 0.5, max_output=2.5),
        lambda: ops.multiclass_nms(boxes[None], scores[None, :, None], 0.5, padded=True),
        lambda: ops.multiclass_nms(boxes[None], scores[None, :, None], 0.5, scores),
        lambda: ops.multiclass_nms(boxes[None], scores[None, :, None], 0.5, scores[:1].long()),
        lambda: ops.multiclass_nms(boxes[None], scores[None, :, None], 0.5, metric="giou"),
        lambda: ops.roi_align(maps, rois, 0),
        lambda: ops.roi_align(maps, rois[:, :4], 2, spatial_scale=-1.0),
        lambda: ops.roi_align(maps, rois, 2, sampling_ratio=2.5),
        lambda: ops.roi_align(maps, rois + 7, 2),
        lambda: ops.roi_align(maps.long(), rois, 2),
        lambda: ops.roi_align(maps.numpy(), rois, 2),
        lambda: ops.roi_pool(maps, [rois[:, 1:]] * 2, 2),
        lambda: ops.ps_roi_align(maps, rois, 3),
        lambda: ops.multiscale_roi_align([], rois, 2, []),
        lambda: ops.multiscale_roi_align([maps, maps.double()], rois, 2, [1, 2]),
        lambda: ops.multiscale_roi_align([maps], rois, 2, [1, 2]),
        lambda: ops.box_iou(boxes, boxes[:, 1:]),
        lambda: ops.box_iou(boxes, boxes, "xxyy"),
        lambda: ops.distance_box_iou(boxes, boxes, -1.0),
        lambda: ops.deform_conv2d(maps, maps, maps, stride=0),
        lambda: ops.deform_conv2d(maps, maps, maps, bias=maps),
    ]


@pytest.mark.parametrize("number", range(len(refused_calls())))
def test_errors_are_those_of_the_dispatcher(monkeypatch, number):
    call = refused_calls()[number]
    with pytest.raises((TypeError, ValueError)) as want:
        by_the_dispatcher(monkeypatch, call)
    with pytest.raises(type(want.value)) as got:
        call()
    assert str(got.value) == str(want.value)
    assert type(got.value.__context__) is type(want.value.__context__)


# ------------------------------------------------------------------------------------------------- what looks on


@contextlib.contextmanager
def forward_mode():
    with torch.autograd.forward_ad.dual_level():
        yield


def modes():
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    return seen, Functions, Dispatches


@pytest.mark.parametrize("name", DIRECT)
def test_modes_see_the_operator(went, name):
    seen, *kinds = modes()
    args = tensors(name)
    for mode in kinds:
        seen.clear()
        with mode():
            getattr(ops, name)(*args)
        assert any("cvops" in each and name in each for each in seen), (mode, seen)
    assert went == [False, False]


@pytest.mark.parametrize("name", DIRECT)
def test_contexts_that_look_on(went, name):
    args = tensors(name)
    for context in (forward_mode(), torch.autocast("cpu"), torch.profiler.profile()):
        with context as profile:
            getattr(ops, name)(*args)
    assert went == [False] * 3
    assert any(f"cvops::{name}" in event.key for event in profile.key_averages())
    getattr(ops, name)(*args)
    assert went[3:] == [True]


def test_transforms_and_tracers_see_the_operator(went):
    boxes, scores, _ = tensors("nms")
    call = lambda scores: ops.nms(boxes, scores, 0.5, padded=True)[0]  # noqa: E731
    want = call(scores)
    assert torch.equal(torch.func.vmap(call)(torch.stack([scores, scores])), torch.stack([want, want]))
    traced = torch.jit.trace(lambda b, s: ops.nms(b, s, 0.5), (boxes, scores), check_trace=False)
    assert "cvops::nms" in str(traced.graph)
    graph = torch.fx.experimental.proxy_tensor.make_fx(call)(scores).graph
    assert "cvops.nms_padded" in str(graph)
    assert went[0] is True
    assert not any(went[1:])


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "box_iou", "deform_conv2d"])
def test_gradients_are_recorded(went, monkeypatch, name):
    def gradient():
        first, *others = tensors(name)
        leaf = first.clone().requires_grad_()
        result = getattr(ops, name)(leaf, *others)
        assert result.requires_grad
        return torch.autograd.grad(result.nan_to_num().sum(), leaf)[0]

    found = gradient()
    assert went == [False]
    assert found.count_nonzero()
    assert torch.equal(found, by_the_dispatcher(monkeypatch, gradient))


def test_gradient_of_a_roi_within_the_map():
    leaf, rois = torch.ones(1, 1, 4, 4, requires_grad=True), torch.tensor([[0.0, 0, 0, 3, 3]])
    ops.roi_align(leaf, rois, 2).sum().backward()
    assert leaf.grad.sum() == 4  # a sample's weights sum up to 1


def test_tensors_that_are_more_than_their_values(went):
    maps, rois, size = tensors("roi_align")[:3]
    for other in (
        maps.to("meta"), maps.clone().requires_grad_(), maps.to_sparse(), torch.nn.Parameter(maps), maps.numpy(),
        torch._neg_view(maps), torch._to_functional_tensor(maps), maps.half(), maps.cfloat().conj(), [maps, "", [maps]],
    ):  # fmt: skip
        assert _entry.directly(lambda *args: maps.numpy(), (other, rois, size), {}) is None
        assert _entry.directly(lambda *args: maps.numpy(), (maps, other, size), {}) is None
    assert torch.equal(ops.roi_align(torch._neg_view(-maps), rois, size), ops.roi_align(maps, rois, size))
    assert went == [False] * (len(went) - 1) + [True]


@pytest.mark.parametrize("number", [2**63, -(2**64), 1j, np.float64(1), [torch.ones(1)], torch.Size([1])])
def test_numbers_that_need_a_longer_look(number):
    assert _entry.directly(lambda *args: np.ones(3), (torch.ones(1), number), {}) is None
    assert _entry.directly(lambda *args, **_: np.ones(3), (torch.ones(1),), {"name": number}) is None


def test_plain_tensors_are_known_here():
    """Else every call would go the long way, and nobody would notice."""
    keys = _entry.keys_of_plain_tensors("CPU")
    with torch.inference_mode():
        inferred = torch.ones(1)
    assert {torch._C._dispatch_keys(tensor).raw_repr() for tensor in (torch.ones(1), inferred)} == keys
    assert len(_entry.keys_of_plain_tensors("CUDA")) == 2
    assert len(_entry._PROBES) > 1


@pytest.mark.parametrize("name", [*DIRECT, "multiscale_roi_align"])
def test_defaults_are_those_of_cvops(name):
    """What is not given has the default of cvops on the short way, and that of cvops.torch on the long one."""
    here, there = (inspect.signature(getattr(module, name)).parameters for module in (ops, cvops))
    for option, parameter in here.items():
        long, short = parameter.default, there[option].default
        assert long == ((short, short) if isinstance(long, tuple) else short), (name, option)


def test_calls_that_python_refuses(went):
    boxes, scores, threshold = tensors("nms")
    maps, rois, size = tensors("roi_pool")[:3]
    for call, text in (
        (lambda: ops.nms(boxes, scores, threshold, 0.5, score_threshold=0.5), "nms.* multiple values.*score_threshold"),
        (lambda: ops.nms(boxes, scores, threshold, boxes=boxes), "nms.* multiple values for argument 'boxes'"),
        (lambda: ops.nms(boxes, iou_threshold=threshold), "nms.* missing 1 required positional argument: 'scores'"),
        (lambda: ops.nms(), "nms.* missing 3 required positional arguments"),
        (lambda: ops.nms(boxes, scores, threshold, *[None] * 9), "nms.* takes from 3 to 6 positional arguments"),
        (lambda: ops.roi_pool(maps, rois, size, 1.0, True), "roi_pool.* takes from 3 to 4 positional arguments"),
        # These the functions of cvops have.
        (lambda: ops.roi_pool(maps, rois, size, return_argmax=True), "roi_pool.* unexpected .*'return_argmax'"),
        (lambda: ops.generalized_box_iou(boxes, boxes, fmt="xywh"), "generalized_box_iou.* unexpected .*'fmt'"),
    ):
        with pytest.raises(TypeError, match=text):
            call()
    assert not any(went)


def test_arguments_by_name_and_by_position(went):
    boxes, scores, threshold = tensors("nms")
    keep = ops.nms(iou_threshold=threshold, scores=scores, boxes=boxes, max_output=3)
    assert_same(keep, ops.nms(boxes, scores, threshold, None, 3))
    assert_same(keep, ops.nms(boxes, scores, threshold, None, 3, False))
    padded = ops.batched_nms(boxes, scores, scores.long(), threshold, None, 4, True)
    assert_same(padded, ops.batched_nms(boxes, scores, scores.long(), threshold, max_output=4, padded=True))
    assert went == [True] * 5


SCRIPT = """
import sys
import torch
import cvops.torch as ops
from cvops.torch import _entry

boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
scores, maps, rois = torch.tensor([0.8, 0.9, 0.7]), torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]])
went, directly = [], _entry.directly


def watched(*call):
    found = directly(*call)
    went.append(found is not None)
    return found


def compiled(b, s):
    keep = ops.nms(b, s, 0.5, padded=True)[0]
    torch._dynamo.graph_break()
    return keep, ops.roi_align(maps, rois, 2)


_entry.directly = watched
assert ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
assert went == [True] and "torch._dynamo" not in sys.modules
_entry.directly = directly
run = torch.compile(compiled, backend="eager")
for _ in range(2):
    keep, pooled = run(boxes, scores)
    assert keep.tolist() == [1, 2, -1] and pooled.shape == (1, 1, 2, 2)
graphs = []
torch.compile(compiled, backend=lambda graph, _: graphs.append(graph.code) or graph)(boxes, scores)
assert "cvops.nms" in graphs[0] and "cvops.roi_align" in graphs[1], graphs
_entry.directly = watched
assert ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
assert went == [True, True]  # torch.compile has been imported, as torchvision does, but looks on no longer
"""


def test_torch_compile_sees_the_operator():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=300)
