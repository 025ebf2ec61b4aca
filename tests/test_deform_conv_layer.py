"""DeformConv2d: what it computes, its parameters, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_deform as reference
from tests.strategies_deform import FLOATS, Case


def of(*shape):
    return np.zeros(shape, np.float32)


def layer_of(case, **options):
    """The layer with the weight and bias of a case, and the input, offset and mask for it."""
    arrays, groups = case.arrays(), case.channels // case.arrays()["weight"].shape[1]
    layer = cvops.DeformConv2d(case.channels, case.outputs, case.kernel, **case.options, groups=groups, bias=case.bias)
    layer.load_state_dict({name: arrays[name] for name in ("weight", "bias") if arrays[name] is not None})
    return layer, (arrays["input"], arrays["offset"], arrays["mask"])


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(mask=False, bias=False, dtype="float32"),
        Case((2, 3), (2, 1), (1, 2), (1, 2), 2, 3, size=(7, 8), dtype="float32", offset_dtype="float64"),
        Case((1, 1), 1, 0, 1, "C", "C", dtype="float16"),
    ],
    ids=str,
)
def test_the_layer_is_the_function(ops, case):
    layer, (input, offset, mask) = layer_of(case)
    want = reference.deform_conv2d(**case.arrays(), **case.options)
    input, offset, mask = ops.array([input, offset, mask])
    compare.close(layer(input, offset) if mask is None else layer(input, offset, mask), want, input)
    if mask is not None:
        compare.close(layer(input, offset, mask=mask), want, input)


def test_the_layer_on_every_library(array):
    layer, given = layer_of(Case(dtype="float32"))
    given = [array(value) for value in given]
    compare.close(layer(*given), reference.deform_conv2d(**Case(dtype="float32").arrays(), padding=1), given[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_layer_uses_its_parameters_in_the_dtype_of_the_input(ops, dtype):
    layer, (input, offset, mask) = layer_of(Case(dtype="float32"))
    arrays = {**Case(dtype="float32").arrays(), "input": input.astype(dtype)}
    arrays |= {name: arrays[name].astype(dtype) for name in ("weight", "bias")}
    input, offset, mask = ops.array([arrays["input"], offset, mask])
    compare.close(layer(input, offset, mask), reference.deform_conv2d(**arrays, padding=1), input)


def test_defaults_of_the_layer(ops):
    layer = cvops.DeformConv2d(6, 4, 3)
    assert layer.weight.shape == (4, 6, 3, 3)
    assert layer.bias.shape == (4,)
    case = Case(padding=0, outputs=4, dtype="float32")
    arrays = {**case.arrays(), **layer.state_dict()}
    given = [ops.array(arrays[name]) for name in ("input", "offset", "mask")]
    compare.close(layer(*given), reference.deform_conv2d(**arrays), given[0])


def test_parameters_of_the_layer():
    layer = cvops.DeformConv2d(6, 4, (3, 2), 2, (1, 0), 1, 2)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    assert [(type(array), array.dtype, array.shape) for array in state.values()] == [
        (np.ndarray, np.float32, (4, 3, 3, 2)),
        (np.ndarray, np.float32, (4,)),
    ]
    np.testing.assert_array_equal(layer.weight, state["weight"])
    np.testing.assert_array_equal(layer.bias, state["bias"])
    layer = cvops.DeformConv2d(6, 4, 3, bias=False)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.bias is None


def test_parameters_are_uploaded_once(emulated):
    """And again only when they are replaced."""
    layer, given = layer_of(Case(dtype="float32"))
    on_device = [emulated(array) for array in given]
    layer(*on_device)
    kept = dict(layer._uploaded)
    assert len(kept) == 2
    layer(*on_device)
    assert layer._uploaded.keys() == kept.keys()
    assert all(layer._uploaded[key] is kept[key] for key in kept)
    layer.load_state_dict({name: -array for name, array in layer.state_dict().items()})
    assert not layer._uploaded
    arrays = Case(dtype="float32").arrays()
    arrays |= {name: -arrays[name] for name in ("weight", "bias")}
    compare.close(layer(*on_device), reference.deform_conv2d(**arrays, padding=1), on_device[0])


def test_load_state_dict_copies_arrays_of_every_library(array):
    layer = cvops.DeformConv2d(2, 2, 1)
    given = {"weight": np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1), "bias": np.array([5, 6], np.float32)}
    originals = {name: array(value) for name, value in given.items()}
    layer.load_state_dict(originals)
    for value in originals.values():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value[...] = -1
    for name, value in layer.state_dict().items():
        assert type(value) is np.ndarray
        np.testing.assert_array_equal(value, given[name])


@pytest.mark.parametrize("stored", FLOATS)
def test_loaded_arrays_may_have_any_float_dtype(ops, stored):
    case = Case(dtype="float32")
    arrays = case.arrays()
    layer = cvops.DeformConv2d(6, 6, 3, padding=1)
    layer.load_state_dict(ops.array({name: arrays[name].astype(stored) for name in ("weight", "bias")}))
    arrays |= {name: arrays[name].astype(stored).astype("float32") for name in ("weight", "bias")}
    want = reference.deform_conv2d(**arrays, padding=1)
    given = [ops.array(arrays[name]) for name in ("input", "offset", "mask")]
    compare.close(layer(*given), want, given[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[[[1.0]]]], "must be an array, got list"),
        (None, "must be an array, got None"),
        (np.zeros((1, 1, 1, 1), int), "got int64"),
        (np.zeros((1, 1, 1, 1), bool), "got bool"),
    ],
)
def test_load_state_dict_takes_arrays_of_floats(value, said):
    layer = cvops.DeformConv2d(1, 1, 1)
    with pytest.raises(TypeError, match=f"`weight` .*{said}"):
        layer.load_state_dict({"weight": value, "bias": of(1)})
    with pytest.raises(TypeError, match=r"`state_dict` must be .*, got list"):
        layer.load_state_dict([("weight", of(1, 1, 1, 1)), ("bias", of(1))])


def test_load_state_dict_with_a_prefix():
    layer = cvops.DeformConv2d(1, 1, 1)
    weight, bias = np.full((1, 1, 1, 1), 2, np.float32), np.array([3], np.float32)
    whole = {"head.dcn.weight": weight, "head.dcn.bias": bias, "weight": bias, "other.weight": bias, "head.bias": bias}
    layer.load_state_dict(whole, prefix="head.dcn.")
    assert (layer.weight.item(), layer.bias.item()) == (2, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("changes", "prefix", "names"),
    [
        ({"bias": None}, "", ["missing", "bias"]),
        ({"scale": 0}, "", ["unexpected", "scale"]),
        ({"bias": None, "weight": None, "b": 0, "w": 0}, "", ["missing", "weight", "bias", "unexpected", "b", "w"]),
        ({}, "dcn.", ["missing", "dcn.weight", "dcn.bias"]),
        ({"dcn.weight": 0, "dcn.bias": 0, "dcn.scale": 0}, "dcn.", ["unexpected", "dcn.scale"]),
    ],
)
def test_load_state_dict_is_strict(changes, prefix, names):
    layer = cvops.DeformConv2d(2, 3, 1)
    before = layer.state_dict()
    before = {name: array.copy() for name, array in before.items()}
    state = {name: array + 1 for name, array in before.items()}
    for name, change in changes.items():
        if change is None:
            del state[name]
        else:
            state[name] = before["weight" if "weight" in name else "bias"]
    with pytest.raises(ValueError) as raised:
        layer.load_state_dict(state, prefix)
    assert [name for name in names if name not in str(raised.value)] == [], raised.value
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])  # nothing was loaded


def test_load_state_dict_checks_shapes():
    layer = cvops.DeformConv2d(2, 3, 1)
    before = layer.weight.copy()
    with pytest.raises(ValueError, match=r"`bias` .*\(3,\).*got \(2,\)"):
        layer.load_state_dict({"weight": before + 1, "bias": of(2)})
    with pytest.raises(ValueError, match=r"`weight` .*\(3, 2, 1, 1\).*got \(2, 3, 1, 1\)"):
        layer.load_state_dict({"weight": of(2, 3, 1, 1), "bias": of(3)})
    np.testing.assert_array_equal(layer.weight, before)


def test_a_state_dict_goes_from_layer_to_layer():
    one, two = cvops.DeformConv2d(3, 2, 3), cvops.DeformConv2d(3, 2, 3)
    assert (one.weight != two.weight).any()
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(one.weight, two.weight)
    np.testing.assert_array_equal(one.bias, two.bias)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups"), [(64, 256, 3, 1), (128, 256, (3, 5), 4), (900, 800, 1, 1)]
)
def test_initialisation(channels, outputs, kernel, groups):
    """Kaiming uniform with a = sqrt(5), as in torch: within 1 / sqrt(inputs of one result), bias too."""
    layer = cvops.DeformConv2d(channels, outputs, kernel, groups=groups, rng=np.random.default_rng(0))
    bound = math.prod(layer.weight.shape[1:]) ** -0.5
    for values, slack in ((layer.weight, 0.01), (layer.bias, 0.1)):
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        assert np.abs(values).max() >= bound * (1 - slack / 5)
        assert abs(values.mean()) <= slack * bound
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) <= slack
    assert abs(np.corrcoef(layer.weight.ravel()[:-1], layer.weight.ravel()[1:])[0, 1]) < 0.02


def test_initialisation_is_reproducible():
    one, two, three = (cvops.DeformConv2d(3, 4, 3, rng=np.random.default_rng(seed)).state_dict() for seed in (7, 7, 8))
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(one[name], two[name])
        assert (one[name] != three[name]).any()


def test_repr_of_the_layer():
    assert repr(cvops.DeformConv2d(6, 4, 3)) == "DeformConv2d(6, 4, kernel_size=(3, 3), stride=(1, 1))"
    text = repr(cvops.DeformConv2d(6, 4, (3, 2), 2, (1, 0), 3, 2, bias=False))
    assert text.startswith("DeformConv2d(6, 4, ")
    for part in ("kernel_size=(3, 2)", "stride=(2, 2)", "padding=(1, 0)", "dilation=(3, 3)", "groups=2", "bias=False"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "error", "facts"),
    [
        ({"groups": 4}, ValueError, ["`groups`", "6", "got 4"]),
        ({"groups": 3}, ValueError, ["`groups`", "4", "got 3"]),
        ({"groups": 0}, ValueError, ["`groups`", "0"]),
        ({"in_channels": 0}, ValueError, ["`in_channels`", "0"]),
        ({"out_channels": -4}, ValueError, ["`out_channels`", "-4"]),
        ({"kernel_size": 0}, ValueError, ["`kernel_size`", "0"]),
        ({"kernel_size": (3, 3, 3)}, ValueError, ["`kernel_size`", "(3, 3, 3)"]),
        ({"stride": 0}, ValueError, ["`stride`", "0"]),
        ({"padding": (0, -1)}, ValueError, ["`padding`", "-1"]),
        ({"dilation": 0}, ValueError, ["`dilation`", "0"]),
        ({"in_channels": 6.0}, TypeError, ["`in_channels`", "float"]),
        ({"kernel_size": "33"}, TypeError, ["`kernel_size`"]),
        ({"stride": 1.5}, TypeError, ["`stride`"]),
    ],
)
def test_layers_that_cannot_be(changes, error, facts):
    with pytest.raises(error) as raised:
        cvops.DeformConv2d(**{"in_channels": 6, "out_channels": 4, "kernel_size": 3, **changes})
    assert [fact for fact in facts if fact not in str(raised.value)] == [], raised.value


def test_the_layer_refuses_an_input_of_other_channels(ops):
    layer = cvops.DeformConv2d(6, 4, 1)
    for channels in (5, 12):  # 12 would fit if the layer had two groups
        with pytest.raises(ValueError, match=rf"`input` .*6.*got \(1, {channels}, 3, 3\)"):
            layer(ops.array(of(1, channels, 3, 3)), ops.array(of(1, 2, 3, 3)))
    with pytest.raises(ValueError, match="`offset`"):
        layer(ops.array(of(1, 6, 3, 3)), ops.array(of(1, 2, 3, 4)))
    with pytest.raises(TypeError, match="`mask` must be an array"):
        layer(ops.array(of(1, 6, 3, 3)), ops.array(of(1, 2, 3, 3)), 1.0)
