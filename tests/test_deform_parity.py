"""deform_conv2d and the pyramid give the answers of torchvision and ONNX Runtime, where they are installed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given

import cvops
from tests import compare, strategies_deform
from tests.libraries import on_one_thread, require
from tests.strategies_deform import CASES, LARGE, NAMES, OFFSETS, Case

# Where an offset is NaN, torchvision ends the process; the gradient of an infinite one is NaN there.
FINITE = [kind for kind in OFFSETS if kind != "NaN and infinite"]
SOME = [case for case in CASES if case.offsets in FINITE]


torch = pytest.fixture(scope="module", name="torch")(on_one_thread)


def in_one_dtype(case, dtype):
    """torchvision takes no others."""
    return case._replace(dtype=dtype, offset_dtype=dtype, mask_dtype=dtype)


def check_torchvision(torch, torchvision, case):
    arrays, grad = case.arrays(), case.grad()
    tensors = {
        name: None if array is None else torch.tensor(array, requires_grad=True) for name, array in arrays.items()
    }
    want = torchvision.ops.deform_conv2d(**tensors, **case.options)
    compare.close(cvops.deform_conv2d(**arrays, **case.options), want.detach().numpy(), grad)
    want.backward(torch.from_numpy(grad))
    gradients = cvops.deform_conv2d_backward(grad, **arrays, **case.options)
    for name, gradient in zip(NAMES, gradients, strict=True):
        if arrays[name] is None:
            assert gradient is None
        else:
            compare.close(gradient, tensors[name].grad.numpy(), grad)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", SOME + LARGE, ids=str)
def test_torchvision(torch, torchvision, case, dtype):
    check_torchvision(torch, torchvision, in_one_dtype(case, dtype))


@given(case=strategies_deform.cases(offsets=FINITE, dtypes=["float32", "float64"], same_dtypes=True))
def test_torchvision_on_any_call(torch, torchvision, case):
    check_torchvision(torch, torchvision, case)


@pytest.mark.parametrize(
    "case",
    [
        Case(channels=64, outputs=64, size=(50, 67), batch=1),
        Case(channels=128, outputs=96, size=(25, 34), stride=2, offset_groups=4),
        Case((5, 5), 2, 2, 1, 4, 2, channels=48, outputs=32, size=(33, 41)),
    ],
    ids=str,
)
def test_torchvision_on_sizes_of_a_detector(torch, torchvision, case):
    check_torchvision(torch, torchvision, in_one_dtype(case, "float32"))


# ---------------------------------------------------------------------------------------------------- ONNX Runtime


def with_onnxruntime(case):
    """The call of ONNX's DeformConv, which came with version 19 of its operators. Absent inputs have no name."""
    onnxruntime, onnx = require("onnxruntime"), require("onnx")
    arrays = {name: array for name, array in case.arrays().items() if array is not None}
    (top, left), weight = strategies_deform.pair(case.padding), arrays["weight"]
    node = onnx.helper.make_node(
        "DeformConv",
        [name if name in arrays else "" for name in ("input", "weight", "offset", "bias", "mask")],
        ["result"],
        strides=strategies_deform.pair(case.stride),
        pads=[top, left, top, left],
        dilations=strategies_deform.pair(case.dilation),
        group=case.channels // weight.shape[1],
        offset_group=arrays["offset"].shape[1] // (2 * case.kernel[0] * case.kernel[1]),
        kernel_shape=case.kernel,
    )
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    graph = onnx.helper.make_graph([node], "graph", values, [onnx.ValueInfoProto(name="result")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return partial(session.run, ["result"], arrays)


@pytest.mark.parametrize("case", [case for case in SOME if case.batch] + LARGE, ids=str)
def test_onnxruntime(onnxruntime, case):
    case = in_one_dtype(case, "float32")
    arrays = case.arrays()
    compare.close(cvops.deform_conv2d(**arrays, **case.options), with_onnxruntime(case)()[0], arrays["input"])


# -------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize(
    "options", [{}, {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 3, "bias": False}]
)
def test_layers_of_torchvision(torch, torchvision, options):
    """Parameters go over by state_dict, and results are tensors."""
    theirs = torchvision.ops.DeformConv2d(6, 9, (2, 3), **options)
    ours = cvops.DeformConv2d(6, 9, (2, 3), **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    case = Case((2, 3), **{k: v for k, v in options.items() if k not in ("groups", "bias")} or {"padding": 0})
    tensors = [torch.from_numpy(case.arrays()[name].astype(np.float32)) for name in ("input", "offset", "mask")]
    for count in (2, 3):
        want = theirs(*tensors[:count]).detach().numpy()
        compare.close(ours(*tensors[:count]), want, tensors[0])


EXTRA = {
    "none": lambda _: None,
    "pool": lambda module: module.LastLevelMaxPool(),
    "p6p7 of the last result": lambda module: module.LastLevelP6P7(16, 16),
    "p6p7 of the last input": lambda module: module.LastLevelP6P7(40, 16),
}


@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pyramids_of_torchvision(torch, torchvision, extra, old, dtype):
    channels, sizes = [10, 20, 40], [(25, 37), (13, 19), (7, 10)]
    theirs = torchvision.ops.FeaturePyramidNetwork(
        channels, 16, EXTRA[extra](torchvision.ops.feature_pyramid_network)
    ).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):  # they are 0 at first
                parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    state = {f"fpn.{name}": tensor for name, tensor in theirs.state_dict().items()}
    if old:
        state = {name.replace(".0.weight", ".weight").replace(".0.bias", ".bias"): t for name, t in state.items()}
        assert "fpn.inner_blocks.0.weight" in state
    ours = cvops.FeaturePyramidNetwork(channels, 16, EXTRA[extra](cvops))
    ours.load_state_dict(state, prefix="fpn.")

    random = np.random.default_rng(0)
    maps = {
        name: torch.from_numpy(random.normal(size=(2, count, *size)).astype(dtype))
        for name, count, size in zip(["res3", "res4", "res5"], channels, sizes, strict=True)
    }
    with torch.no_grad():
        want = theirs(maps)
    got = ours(maps)
    assert list(got) == list(want)
    for name in want:
        compare.close(got[name], want[name].numpy(), maps["res3"])  # 1e-5 in float32


@pytest.mark.parametrize("fine", [*range(1, 20), 44, 46, 58, 66, 82])
def test_upsampling_of_torchvision(torch, torchvision, fine):
    """A map of n pixels, above one of n / 2 rounded up or down, and above others, some of them of unlucky ratios."""
    theirs, ours = torchvision.ops.FeaturePyramidNetwork([1, 1], 1), cvops.FeaturePyramidNetwork([1, 1], 1)
    ours.load_state_dict(theirs.state_dict())
    for coarse in {(fine + 1) // 2, max(fine // 2, 1), 1, 2, 26, 28, 30, 39, fine, fine + 1, 2 * fine}:
        maps = {"fine": torch.zeros(1, 1, 1, fine), "coarse": torch.arange(1.0, coarse + 1).reshape(1, 1, 1, coarse)}
        with torch.no_grad():
            want = theirs(maps)["fine"].numpy()
        compare.close(ours(maps)["fine"], want, maps["fine"])
