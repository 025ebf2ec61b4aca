"""torch.fx traces every function and layer, as one node each, and what it makes of them computes the same."""

from __future__ import annotations

import pickle
import sys

import pytest

from tests import torch_calls
from tests.test_torch_decode import Head, head_arguments
from tests.test_torch_modules import BOXES as LISTS
from tests.test_torch_modules import IMAGES, MAPS, OPTIONS, tensors
from tests.torch_calls import BOXES, CALLS, DEFORM, MAP, ROIS

pytestmark = torch_calls.quiet
LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss", "sigmoid_focal_loss")
IN_TORCHVISION = (*CALLS, *LOSSES)
FUNCTIONS = (*IN_TORCHVISION, *torch_calls.OWN)
LAYERS = {
    "RoIAlign": ((2, 0.5, 2, True), "rois"),
    "RoIPool": (((2, 3), 0.5), "rois"),
    "PSRoIAlign": ((2, 0.5, 2), "rois"),
    "PSRoIPool": ((2, 0.5), "rois"),
    "DeformConv2d": ((4, 6, 3, 1, 1, 1, 2), "deform"),
    "MultiScaleRoIAlign": ((list(MAPS), 2, 2), "pyramid"),
}


def arguments(torch, name):
    if name in LOSSES[:3]:
        return [torch.from_numpy(BOXES), torch.from_numpy(BOXES).roll(1, 0), "mean"]
    if name in LOSSES:
        return [torch.linspace(-3, 3, 12), (torch.arange(12) % 2).float(), 0.25, 1.5, "sum"]
    return torch_calls.own_tensors(name) if name in torch_calls.OWN else torch_calls.tensors(name)


def same(torch, got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def targets(graph_module):
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_its_own(torch_ops, torch, name):
    """All arguments are unknown: numbers and strings too."""
    function, args = getattr(torch_ops, name), arguments(torch, name)
    traced = torch.fx.symbolic_trace(function)
    assert targets(traced) == [function]
    same(torch, traced(*args), function(*args))


def test_calls_that_python_refuses(torch_ops, torch):
    """At once, and not when the graph runs."""
    for call, text in (
        (lambda boxes: torch_ops.nms(boxes), "'scores'"),
        (lambda boxes: torch_ops.box_area(boxes, "xyxy", boxes), "too many positional arguments"),
        (lambda boxes: torch_ops.box_area([boxes], format="xyxy"), "'format'"),
        (lambda boxes: torch_ops.box_iou(boxes, boxes, boxes1=boxes), "'boxes1'"),
    ):
        with pytest.raises(TypeError, match=text):
            torch.fx.symbolic_trace(call)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("unknown", ["the first", "the tensors", "each in turn"])
def test_within_a_module(torch_ops, torch, name, unknown):
    function, args = getattr(torch_ops, name), arguments(torch, name)
    many = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    for places in {"the first": [[0]], "the tensors": [many], "each in turn": [[i] for i in range(len(args))]}[unknown]:
        names = [f"x{i}" for i in places]

        class Layer(torch.nn.Module):
            pass

        given = [f"x{i}" if i in places else f"args[{i}]" for i in range(len(args))]
        scope = {"function": function, "args": args}
        exec(f"def forward(self, {', '.join(names)}): return function({', '.join(given)}) * 1", scope)
        Layer.forward = scope["forward"]
        if any(isinstance(arg, torch.Tensor) for i, arg in enumerate(args) if i not in places):
            scope["args"] = args = [torch.nn.Parameter(a, False) if isinstance(a, torch.Tensor) else a for a in args]
            layer = Layer()
            for i, arg in enumerate(args):
                if isinstance(arg, torch.Tensor):
                    layer.register_parameter(f"p{i}", arg)
        else:
            layer = Layer()
        traced = torch.fx.symbolic_trace(layer)
        assert function in targets(traced)
        same(torch, traced(*(args[i] for i in places)), function(*args) * 1)


@pytest.mark.parametrize("name", torch_calls.POOLING)
def test_lists_of_boxes(torch_ops, torch, name):
    maps, boxes = torch.from_numpy(MAP), [torch.from_numpy(ROIS[ROIS[:, 0] == i, 1:]) for i in range(2)]
    function = getattr(torch_ops, name)

    class Layer(torch.nn.Module):
        def __init__(self, maps):
            super().__init__()
            self.maps = torch.nn.Parameter(maps, False)

        def forward(self, one, two):
            return function(self.maps, [one, two], 2), function(torch.ones(2, 12, 9, 10), (one, two), (2, 3))

    traced = torch.fx.symbolic_trace(Layer(maps))
    for got, want in zip(traced(*boxes), Layer(maps)(*boxes), strict=True):
        same(torch, got, want)


def test_options(torch_ops, torch):
    class Last(torch.nn.Module):
        def forward(self, boxes, scores):
            keep, count = torch_ops.nms(boxes, scores, 0.5, score_threshold=0.2, max_output=4, padded=True)
            height, width = boxes.shape[0], 30
            return keep, count, torch_ops.clip_boxes_to_image(boxes[keep], (height, width))

    args = torch_calls.tensors("nms")[:2]
    for got, want in zip(torch.fx.symbolic_trace(Last())(*args), Last()(*args), strict=True):
        same(torch, got, want)


def test_a_head(torch_ops, torch):
    """What is traced with one image is run with others, and on other numbers of boxes."""
    traced = torch.fx.symbolic_trace(Head(torch, torch_ops))
    assert targets(traced)[:2] == [torch_ops.decode_boxes, torch_ops.multiclass_nms]
    for images, length in ((1, 20), (3, 40), (2, 0)):
        args = head_arguments(torch, images, length)
        same(torch, traced(*args), Head(torch, torch_ops)(*args))
        same(torch, pickle.loads(pickle.dumps(traced))(*args), Head(torch, torch_ops)(*args))


def test_a_head_of_distances(torch_ops, torch):
    class Head(torch.nn.Module):
        def forward(self, points, distances, scores, floors, height):
            boxes = torch_ops.distance_to_boxes(points, distances)
            found = torch_ops.multiclass_nms(
                boxes, scores, 0.5, score_threshold=floors, objectness=scores[..., 0], max_output=5, padded=True
            )
            boxes = torch_ops.scale_boxes(boxes, (640, 640), (height, 853), letterbox="center")
            return torch_ops.encode_boxes(boxes, boxes[0] + 1), found.box, found.count

    traced = torch.fx.symbolic_trace(Head())
    for length in (30, 4):
        points, distances = torch.rand(length, 2) * 50, torch.rand(2, length, 4) * 9 + 1
        args = points, distances, torch.rand(2, length, 3), torch.tensor([0.2, 0.3, 0.9]), 480 + length
        same(torch, traced(*args), Head()(*args))


def layer_and_arguments(torch, module, name):
    init, kind = LAYERS[name]
    torch.manual_seed(0)
    layer = getattr(module, name)(*init, **(OPTIONS if kind == "pyramid" else {}))
    args = {
        "rois": lambda: tensors(torch, [MAP, ROIS]),
        "deform": lambda: tensors(torch, [DEFORM[one] for one in ("input", "offset", "mask")]),
        "pyramid": lambda: [tensors(torch, MAPS), tensors(torch, LISTS), IMAGES],
    }[kind]()
    return layer, args


@pytest.mark.parametrize("name", LAYERS)
def test_layers(torch_ops, torch, name):
    layer, args = layer_and_arguments(torch, torch_ops, name)
    traced = torch.fx.symbolic_trace(layer)
    assert len(targets(traced)) == 1
    for one in (traced, torch.fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        same(torch, one(*args), layer(*args))
    traced.graph.lint()
    maps = args[0] if name != "MultiScaleRoIAlign" else args[0]["p2"]
    maps.requires_grad_()
    gradients = [torch.autograd.grad(one(*args).sin().sum(), maps) for one in (layer, traced)]
    same(torch, *gradients)


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_are_scripted_and_compiled(torch_ops, torch, name):
    layer, args = layer_and_arguments(torch, torch_ops, name)
    traced = torch.fx.symbolic_trace(layer)
    same(torch, torch.compile(traced, fullgraph=True, backend="aot_eager")(*args), layer(*args))
    if name == "DeformConv2d":  # others have arguments that fx does not annotate
        same(torch, torch.jit.script(traced)(*args), layer(*args))
    torch._dynamo.reset()


class Detector:
    """A pyramid network, its extra block, a pooler by names, and what a detector does last."""

    def __new__(cls, torch, torch_ops, blocks):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.pyramid = torch_ops.FeaturePyramidNetwork([12, 12], 8, blocks.LastLevelMaxPool())
                self.pool = torch_ops.MultiScaleRoIAlign(["a", "b"], 2, 2)

            def forward(self, a, b, boxes, scores, height):
                levels = self.pyramid({"a": a, "b": b})
                boxes = torch_ops.clip_boxes_to_image(torch_ops.box_convert(boxes, "xywh", "xyxy"), (50, 40))
                keep = torch_ops.remove_small_boxes(boxes, 4.0)
                return self.pool(levels, [boxes[keep], boxes], [(height, 40)]), levels["pool"]

        return Module().eval()


def detector_arguments(torch):
    return [torch.from_numpy(MAP), torch.from_numpy(MAPS["p3"]), torch.from_numpy(BOXES), torch.rand(24), 36]


def test_a_detector(torch_ops, torch):
    detector, args = Detector(torch, torch_ops, torch_ops), detector_arguments(torch)
    traced = torch.fx.symbolic_trace(detector)
    assert {torch_ops.box_convert, torch_ops.clip_boxes_to_image, torch_ops.remove_small_boxes} < set(targets(traced))
    for got, want in zip(traced(*args), detector(*args), strict=True):
        torch.testing.assert_close(got, want)


def test_torchvision_traces_nothing_more(torch_ops, torch, torchvision):
    """Each function and layer that torch.fx traces there, it traces here, with equal results."""
    peer, found = torchvision.ops, []
    for name in IN_TORCHVISION:
        args = arguments(torch, name)

        def function(first, module=peer, name=name, others=args[1:]):
            return getattr(module, name)(first, *others)

        for one, given in ((getattr(peer, name), args), (function, args[:1])):
            try:
                want = torch.fx.symbolic_trace(one, {} if one is not function else {"module": peer, "others": args[1:]})
                want = want(*given)
            except Exception:
                continue
            found.append(name)
            torch.testing.assert_close(getattr(torch_ops, name)(*args), want, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                torch.fx.symbolic_trace(getattr(torch_ops, name))(*args), want, atol=1e-4, rtol=1e-4
            )
    assert {"clip_boxes_to_image", "remove_small_boxes"} <= set(found)
    for name in LAYERS:
        layer, args = layer_and_arguments(torch, peer, name)
        try:
            want = torch.fx.symbolic_trace(layer)(*args)
        except Exception:
            continue
        found.append(name)
        ours, _ = layer_and_arguments(torch, torch_ops, name)
        torch.testing.assert_close(torch.fx.symbolic_trace(ours)(*args), want, atol=1e-4, rtol=1e-4)
    assert {"RoIAlign", "RoIPool", "PSRoIAlign", "PSRoIPool", "MultiScaleRoIAlign"} <= set(found)
    blocks = sys.modules["torchvision.ops.feature_pyramid_network"]
    theirs, ours = Detector(torch, peer, blocks), Detector(torch, torch_ops, torch_ops)
    ours.load_state_dict(theirs.state_dict())
    args = detector_arguments(torch)
    torch.testing.assert_close(
        torch.fx.symbolic_trace(ours)(*args), torch.fx.symbolic_trace(theirs)(*args), atol=1e-4, rtol=1e-4
    )


def test_tensors_of_other_kinds_are_not_traced(torch_ops, torch):
    """Subclasses and modes of torch functions are left to torch."""

    class Other(torch.Tensor):
        pass

    boxes, scores, threshold = torch_calls.tensors("nms")
    want = torch_ops.nms(boxes, scores, threshold)
    assert torch.equal(torch_ops.nms(boxes.as_subclass(Other), scores, threshold).as_subclass(torch.Tensor), want)
    with torch.device("cpu"):
        assert torch.equal(torch_ops.nms(boxes, scores, threshold), want)
        maps, rois, *others = torch_calls.tensors("roi_align")
        assert torch_ops.roi_align(maps, [rois[:1, 1:], rois[1:, 1:]], *others).shape == (5, 12, 2, 3)
