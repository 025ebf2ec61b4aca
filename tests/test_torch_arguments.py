"""Every kind of argument that torchvision.ops takes is taken by `cvops.torch`, with the same result."""

from __future__ import annotations

import collections
import decimal
import fractions

import numpy as np
import pytest

from tests import torch_calls
from tests.test_torch_modules import BOXES as LISTS
from tests.test_torch_modules import IMAGES, MAPS, OPTIONS, tensors
from tests.torch_calls import BOXES, CALLS, SCORES

pytestmark = torch_calls.quiet

LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
# Function, place of a number among its arguments, and the number.
FLOATS = [
    ("nms", 2, 0.25),
    ("batched_nms", 3, 0.25),
    *((name, 3, 0.5) for name in torch_calls.POOLING),
    ("distance_box_iou", 2, 0.5),
    ("complete_box_iou", 2, 0.5),
    ("remove_small_boxes", 1, 10.0),
    *((name, 3, 0.5) for name in LOSSES),
    ("sigmoid_focal_loss", 2, 0.25),
    ("sigmoid_focal_loss", 3, 1.5),
]
INTEGERS = [("roi_align", 4, 2), ("ps_roi_align", 4, 2), *((name, 2, 2) for name in torch_calls.POOLING)]
INTEGERS += [("deform_conv2d", place, 1) for place in (4, 5, 6)]
PAIRS = [(name, 2, (2, 3)) for name in torch_calls.POOLING]
PAIRS += [("deform_conv2d", place, (1, 1)) for place in (4, 5, 6)] + [("clip_boxes_to_image", 1, (50, 40))]


class Index:
    def __init__(self, value):
        self.value = int(value)

    def __index__(self):
        return self.value


class Float:
    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


TORCH_FLOATS = ("float64", "float32", "float16", "bfloat16")
TORCH_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")


def kinds_of_number(torch, value):
    """The number in every kind of dress; it is exact in all of them."""
    whole = float(value).is_integer()
    dtypes = [*TORCH_FLOATS, *(TORCH_INTEGERS if whole else ())]
    for dtype in dtypes:
        tensor = torch.tensor(value).to(getattr(torch, dtype))
        yield f"tensor of {dtype}", tensor
        yield f"tensor of shape (1,) of {dtype}", tensor.reshape(1)
    yield "parameter", torch.nn.Parameter(torch.tensor(float(value)), requires_grad=False)
    yield "row of a larger tensor", torch.tensor([9.0, float(value)])[1]
    for dtype in ("f8", "f4", "f2", *(("i8", "i4", "u1") if whole else ())):
        yield f"NumPy {dtype}", np.dtype(dtype).type(value)
        yield f"NumPy array of {dtype}", np.array(value, dtype)
    yield "Fraction", fractions.Fraction(value)
    yield "Decimal", decimal.Decimal(value)
    yield "float", float(value)
    yield "object with __float__", Float(value)
    if whole:
        yield "int", int(value)
        yield "object with __index__", Index(value)
    if value == 1:
        yield "bool", True
        yield "tensor of bool", torch.tensor(True)
        yield "NumPy bool", np.True_


def kinds_of_pair(torch, pair):
    first, second = pair
    yield "list", list(pair)
    yield "Size", torch.Size(pair)
    yield "named tuple", collections.namedtuple("Sides", "height width")(*pair)
    yield "deque", collections.deque(pair)
    for dtype in (*TORCH_FLOATS, "int64", "int32", "uint8"):
        yield f"tensor of {dtype}", torch.tensor(pair).to(getattr(torch, dtype))
        yield f"tuple of tensors of {dtype}", tuple(torch.tensor(pair).to(getattr(torch, dtype)))
    yield "tensor and int", (torch.tensor(first), second)
    yield "int and tensor", [first, torch.tensor(second)]
    for dtype in ("i8", "i4", "f4"):
        yield f"NumPy array of {dtype}", np.array(pair, dtype)
        yield f"tuple of NumPy {dtype}", tuple(np.array(pair, dtype))
        yield f"tuple of NumPy arrays of {dtype}", tuple(np.array(side, dtype) for side in pair)
    if second == first + 1:
        yield "range", range(first, second + 1)


@pytest.fixture(scope="module")
def peer(torchvision):
    return torchvision.ops


def arguments(torch, name):
    if name in LOSSES:
        return [torch.from_numpy(BOXES), torch.from_numpy(BOXES).roll(1, 0), "none", 1e-7]
    if name == "sigmoid_focal_loss":
        return [torch.linspace(-3, 3, 12), (torch.arange(12) % 2).float(), 0.25, 1.5]
    args = torch_calls.tensors(name)
    return [*args, 1e-7] if name in ("distance_box_iou", "complete_box_iou") else args


def with_argument(torch, name, place, value):
    args = arguments(torch, name)
    args[place] = value
    return args


def check_kinds(torch, function, peer, name, place, value, kinds):
    """Each kind gives what the plain number gives, and all that torchvision takes are taken."""
    want = function(*with_argument(torch, name, place, value))
    for kind, argument in kinds:
        args = with_argument(torch, name, place, argument)
        if peer is not None:
            try:
                peer(*args)
            except Exception:
                continue  # not taken there
        try:
            got = function(*args)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{name} takes no {kind}") from error
        assert torch.equal(got, want), f"{name}, {kind}"


OURS = ("tensor", "row", "NumPy", "int", "float")  # what is also taken where torchvision is missing


def ours(kinds):
    return [(kind, argument) for kind, argument in kinds if kind.startswith(OURS)]


@pytest.mark.parametrize(("name", "place", "value"), FLOATS)
def test_floats(torch_ops, torch, name, place, value):
    check_kinds(torch, getattr(torch_ops, name), None, name, place, value, ours(kinds_of_number(torch, value)))


@pytest.mark.parametrize(("name", "place", "value"), FLOATS)
def test_floats_as_torchvision(torch_ops, torch, peer, name, place, value):
    for number in {value, 1.0}:
        kinds = kinds_of_number(torch, number)
        check_kinds(torch, getattr(torch_ops, name), getattr(peer, name), name, place, number, kinds)


@pytest.mark.parametrize(("name", "place", "value"), INTEGERS)
def test_integers(torch_ops, torch, name, place, value):
    # A float is refused, as by torchvision; a tensor of shape (1,) is no pair.
    kinds = [
        (kind, argument)
        for kind, argument in ours(kinds_of_number(torch, value))
        if not isinstance(argument, float) and ((name.endswith("roi_align") and place == 4) or "(1,)" not in kind)
    ]
    check_kinds(torch, getattr(torch_ops, name), None, name, place, value, kinds)


@pytest.mark.parametrize(("name", "place", "value"), INTEGERS)
def test_integers_as_torchvision(torch_ops, torch, peer, name, place, value):
    for number in {value, 1}:
        kinds = kinds_of_number(torch, number)
        check_kinds(torch, getattr(torch_ops, name), getattr(peer, name), name, place, number, kinds)


@pytest.mark.parametrize(("name", "place", "pair"), PAIRS)
def test_pairs(torch_ops, torch, name, place, pair):
    check_kinds(torch, getattr(torch_ops, name), None, name, place, pair, kinds_of_pair(torch, pair))


@pytest.mark.parametrize(("name", "place", "pair"), PAIRS)
def test_pairs_as_torchvision(torch_ops, torch, peer, name, place, pair):
    check_kinds(torch, getattr(torch_ops, name), getattr(peer, name), name, place, pair, kinds_of_pair(torch, pair))


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("module", ["cvops", "torchvision"])
def test_flags(torch_ops, torch, request, flag, module):
    """`aligned` of roi_align."""
    peer = request.getfixturevalue("peer").roi_align if module == "torchvision" else None
    kinds = kinds_of_number(torch, 1) if flag else [("0", 0), ("tensor", torch.tensor(0)), ("NumPy", np.False_)]
    kinds = ours(kinds) if peer is None else kinds
    check_kinds(torch, torch_ops.roi_align, peer, "roi_align", 5, flag, kinds)


@pytest.mark.parametrize(("name", "place", "value"), [*FLOATS, *INTEGERS])
def test_tensors_that_are_no_numbers(torch_ops, torch, name, place, value):
    """What requires grad would lose it; two numbers are not one."""
    for wrong in (torch.tensor(float(value), requires_grad=True), torch.nn.Parameter(torch.tensor(float(value)))):
        with pytest.raises(TypeError, match=r"` must be a number, got a tensor that requires grad: pass \w+\.item\(\)"):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))
    for wrong in (torch.tensor([[value, value]]), torch.tensor([])):
        with pytest.raises((TypeError, ValueError), match="` must be "):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))
    with pytest.raises(TypeError, match="` must be a number, got a tensor on meta: pass"):
        getattr(torch_ops, name)(*with_argument(torch, name, place, torch.tensor(float(value), device="meta")))
    for wrong in ("half", None, object(), 1j, torch.tensor(1j)):
        with pytest.raises(TypeError, match="` must be "):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))


@pytest.mark.parametrize(("name", "place", "pair"), PAIRS)
def test_tensors_that_are_no_pairs(torch_ops, torch, name, place, pair):
    one = float(pair[0])
    for wrong in (torch.tensor([one, one], requires_grad=True), (torch.tensor(one, requires_grad=True), pair[1])):
        with pytest.raises(TypeError, match="` must be a number, got a tensor that requires grad"):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))
    for wrong in (torch.tensor([1, 2, 3]), torch.tensor([[1, 2], [3, 4]]), {1, 2}, {1: 2, 3: 4}, "12", b"12"):
        with pytest.raises((TypeError, ValueError), match="` must be "):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))


@pytest.mark.parametrize(("name", "place", "value"), INTEGERS)
def test_fractions_for_integers(torch_ops, torch, name, place, value):
    for wrong in (torch.tensor(value + 0.5), np.float32(value + 0.5), fractions.Fraction(5, 2), float(value), 1.5):
        with pytest.raises(TypeError, match="must be an integer"):
            getattr(torch_ops, name)(*with_argument(torch, name, place, wrong))


@pytest.mark.parametrize(("name", "place", "value"), [*FLOATS[:6], *INTEGERS, *PAIRS])
@pytest.mark.parametrize("library", ["torch-cuda"])
def test_on_a_gpu_numbers_are_refused(torch_ops, torch, library, name, place, value):
    with pytest.raises(TypeError, match=r"` must be a number, got a tensor on cuda:0: pass \w+\.item\(\)"):
        getattr(torch_ops, name)(*with_argument(torch, name, place, torch.tensor(value, device="cuda")))


# ------------------------------------------------------------------------------------------------------------ classes


@pytest.mark.parametrize("padded", [False, True])
def test_bool_classes(torch_ops, torch, padded):
    boxes, scores, idxs, threshold = torch_calls.tensors("batched_nms")
    for two in (idxs > 0, torch.zeros(24, dtype=torch.bool), torch.ones(24, dtype=torch.bool)):
        got = torch_ops.batched_nms(boxes, scores, two, threshold, padded=padded)
        want = torch_ops.batched_nms(boxes, scores, two.long(), threshold, padded=padded)
        for one, other in zip(got, want, strict=True) if padded else [(got, want)]:
            assert torch.equal(one, other)
    two = idxs > 0
    want = torch_ops.batched_nms(boxes, scores, two.long(), threshold)
    assert len(want) > len(torch_ops.nms(boxes, scores, threshold))
    assert torch.equal(torch.jit.script(torch_ops.batched_nms)(boxes, scores, two, threshold), want)
    compiled = torch.compile(torch_ops.batched_nms, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(boxes, scores, two, threshold), want)
    assert torch_ops.batched_nms(boxes[:0], scores[:0], two[:0], threshold).shape == (0,)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", ["bool", *TORCH_INTEGERS, *TORCH_FLOATS])
def test_classes_of_every_dtype(torch_ops, torch, peer, dtype):
    boxes, scores, idxs, threshold = torch_calls.tensors("batched_nms")
    idxs = idxs.to(getattr(torch, dtype))
    want = peer.batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(torch_ops.batched_nms(boxes, scores, idxs, threshold), want)


# ------------------------------------------------------------------------------------------------- MultiScaleRoIAlign

SHAPES = {
    "lists": lambda torch: [list(shape) for shape in IMAGES],
    "tuple of tuples": lambda torch: tuple(IMAGES),
    "sizes": lambda torch: [torch.Size(shape) for shape in IMAGES],
    "tensors": lambda torch: [torch.tensor(shape) for shape in IMAGES],
    "float tensors": lambda torch: [torch.tensor(shape).float() for shape in IMAGES],
    "tuples of tensors": lambda torch: [tuple(torch.tensor(shape)) for shape in IMAGES],
    "tuples of tensors and ints": lambda torch: [(torch.tensor(h), w) for h, w in IMAGES],
    "arrays": lambda torch: [np.array(shape) for shape in IMAGES],
    "tuples of arrays": lambda torch: [tuple(map(np.array, shape)) for shape in IMAGES],
    "floats": lambda torch: [(float(h), float(w)) for h, w in IMAGES],
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("module", ["cvops", "torchvision"])
def test_image_shapes(torch_ops, torch, request, kind, module):
    maps, boxes, shapes = tensors(torch, MAPS), tensors(torch, LISTS), SHAPES[kind](torch)
    pool = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2, **OPTIONS)
    assert torch.equal(pool(maps, boxes, shapes), pool(maps, boxes, IMAGES))
    if module == "torchvision":
        other = request.getfixturevalue("peer").MultiScaleRoIAlign(list(MAPS), 2, 2, **OPTIONS)
        torch.testing.assert_close(pool(maps, boxes, shapes), other(maps, boxes, shapes))


def test_wrong_image_shapes(torch_ops, torch):
    maps, boxes = tensors(torch, MAPS), tensors(torch, LISTS)
    pool = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2)
    for wrong in (3, "ab", {1: 2}, None):
        with pytest.raises(TypeError, match="`image_shapes` must be a list of"):
            pool(maps, boxes, wrong)
    for wrong in ([3, 4], [(1, 2, 3)], [torch.tensor(3)], ["ab"]):
        with pytest.raises((TypeError, ValueError), match=r"`image_shapes` must be \(height, width\)"):
            pool(maps, boxes, wrong)
    with pytest.raises(TypeError, match="requires grad"):
        pool(maps, boxes, [(torch.tensor(3.0, requires_grad=True), 4)])


@pytest.mark.parametrize("names", [list, tuple, dict.fromkeys, lambda names: dict.fromkeys(names).keys()])
@pytest.mark.parametrize("size", [2, (2, 2), [2, 2], np.int64(2), (np.int32(2), 2)])
def test_options_of_multiscale_roi_align(torch_ops, torch, peer, names, size):
    maps, boxes = tensors(torch, MAPS), tensors(torch, LISTS)
    features = collections.OrderedDict(maps)
    options = {"canonical_scale": 16.5, "canonical_level": 3}
    try:
        other = peer.MultiScaleRoIAlign(names(MAPS), size, 2, **options)
        want = other(features, boxes, IMAGES)
    except TypeError:  # NumPy integers are not taken there
        want = None
    pool = torch_ops.MultiScaleRoIAlign(names(MAPS), size, 2, **options)
    if want is not None:
        torch.testing.assert_close(pool(features, boxes, IMAGES), want)
    assert pool(features, tuple(boxes), IMAGES).shape == (5, 12, 2, 2)


def test_what_is_no_pyramid(torch_ops, torch):
    maps, boxes = tensors(torch, MAPS), tensors(torch, LISTS)
    for wrong in (3, "p2", None):
        with pytest.raises(TypeError, match="`featmap_names` must be a list of str, got"):
            torch_ops.MultiScaleRoIAlign(wrong, 2, 2)
    pool = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2)
    for wrong in (list(maps.values()), maps["p2"], None, 3):
        with pytest.raises(TypeError, match="`features` must be a dict of arrays by name, got"):
            pool(wrong, boxes, IMAGES)


def test_layers_take_numbers_in_tensors(torch_ops, torch):
    two, half = torch.tensor(2), torch.tensor(0.5)
    maps, rois, *_ = torch_calls.tensors("roi_align")
    assert torch.equal(torch_ops.RoIAlign(two, half, two)(maps, rois), torch_ops.roi_align(maps, rois, 2, 0.5, 2))
    assert torch.equal(torch_ops.RoIPool((two, 2), half)(maps, rois), torch_ops.roi_pool(maps, rois, 2, 0.5))
    layer = torch_ops.DeformConv2d(
        torch.tensor(4), torch.tensor(6), torch.tensor([3, 3]), padding=torch.tensor(1), groups=two
    )
    assert (layer.weight.shape, layer.padding, layer.groups) == ((6, 2, 3, 3), (1, 1), 2)
    assert torch_ops.FeaturePyramidNetwork([torch.tensor(4)], torch.tensor(3)).inner_blocks[0][0].out_channels == 3


# -------------------------------------------------------------------------------------------------- under torch.compile


@pytest.mark.parametrize(("name", "place", "value"), [FLOATS[0], FLOATS[2], FLOATS[8], INTEGERS[0], PAIRS[-1]])
def test_tensors_for_numbers_break_the_graph(torch_ops, torch, name, place, value):
    """The value has to be known; everything else of the function is still compiled."""
    from torch._dynamo.testing import CompileCounter

    args = arguments(torch, name)
    want = getattr(torch_ops, name)(*args[:place], value, *args[place + 1 :]) + 1
    counted = CompileCounter()

    def function(first, number):
        result = getattr(torch_ops, name)(first * 1, *args[1:place], number, *args[place + 1 :])
        return result + 1

    assert torch.equal(torch.compile(function, backend=counted)(args[0], torch.tensor(value)), want)
    assert counted.frame_count >= 1
    with pytest.raises(Exception, match="cvops has to know the number in a tensor"):
        torch.compile(function, fullgraph=True, backend="eager")(args[0], torch.tensor(value))
    torch._dynamo.reset()


# -------------------------------------------------------------------------------------------------------------- errors


def refused(torch):
    """Calls with a tensor of a dtype that is not taken."""
    maps, rois, *_ = torch_calls.tensors("roi_align")
    boxes, scores, idxs = torch.from_numpy(BOXES), torch.from_numpy(SCORES), torch.arange(24)
    input, offset, weight, bias, *steps, mask = torch_calls.tensors("deform_conv2d")
    yield "roi_align", (maps.int(), rois, 2)
    yield "roi_align", (maps.bool(), rois, 2)
    yield "roi_align", (maps, rois.long(), 2)
    yield "roi_pool", (maps.to(torch.complex64), rois, 2)
    yield "ps_roi_align", (maps.to(torch.uint8), rois, 2)
    yield "ps_roi_pool", (maps, rois.int(), 2)
    yield "nms", (boxes.bool(), scores, 0.5)
    yield "nms", (boxes, scores.long(), 0.5)
    yield "batched_nms", (boxes, scores, idxs.to(torch.complex64), 0.5)
    yield "deform_conv2d", (input.int(), offset, weight.int())
    yield "deform_conv2d", (input, offset.long(), weight)
    yield "deform_conv2d", (input, offset, weight, bias, *steps, mask.int())
    for name in ("box_area", "masks_to_boxes"):
        yield name, (boxes.to(torch.complex64)[None],)
    yield "box_iou", (boxes, boxes.bool())
    yield "generalized_box_iou", (boxes.to(torch.complex64), boxes)
    yield "complete_box_iou_loss", (boxes.bool(), boxes)
    yield "box_convert", (boxes.bool(), "xyxy", "xywh")
    yield "clip_boxes_to_image", (boxes.bool(), (3, 4))
    yield "remove_small_boxes", (boxes.bool(), 3)


@pytest.mark.parametrize("library", ["torch", "torch-cuda"])
def test_errors_name_the_conversion_of_tensors(torch_ops, torch, library):
    for name, args in refused(torch):
        args = [
            arg.to("cuda" if library == "torch-cuda" else "cpu") if isinstance(arg, torch.Tensor) else arg
            for arg in args
        ]
        with pytest.raises(TypeError) as caught:
            getattr(torch_ops, name)(*args)
        assert "astype" not in str(caught.value)
    assert set(CALLS) >= {name for name, _ in refused(torch)} - set(LOSSES)
