"""FeaturePyramidNetwork and its extra blocks: against the reference, and every edge by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from cvops import _cpu
from cvops._cpu import _conv, _winograd
from tests import compare
from tests import reference_deform as reference
from tests.libraries import to_numpy
from tests.strategies import few

# Sizes of the maps, finest first: halved, halved and rounded up, halved and rounded down, and with no rule at all.
SIZES = {
    "doubles": [(16, 24), (8, 12), (4, 6)],
    "rounded up": [(13, 21), (7, 11), (4, 6)],
    "rounded down": [(15, 13), (7, 6), (3, 3)],
    "any": [(9, 20), (5, 3), (2, 7)],
    "unlucky ratios": [(46, 44), (28, 26), (26, 15)],  # as floats, they put some pixels on another side of a boundary
    "equal": [(4, 5), (4, 5), (4, 5)],
    "one pixel": [(3, 2), (2, 1), (1, 1)],
}
CHANNELS = [4, 10, 3]
EXTRA = {
    "none": (lambda: None, None),
    "pool": (cvops.LastLevelMaxPool, "pool"),
    "p6p7 of the last result": (lambda: cvops.LastLevelP6P7(6, 6), "p6p7"),
    "p6p7 of the last input": (lambda: cvops.LastLevelP6P7(3, 6), "p6p7"),
}


def maps_of(sizes, channels=CHANNELS, batch=2, dtype=np.float64):
    """Maps by names that are not in alphabetical order."""
    random = np.random.default_rng(0)
    names = [f"feature {len(sizes) - i}" for i in range(len(sizes))]
    shapes = [(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]
    return {name: random.normal(size=shape).astype(dtype) for name, shape in zip(names, shapes, strict=True)}


def with_random_parameters(pyramid):
    """The pyramid, and its parameters."""
    random = np.random.default_rng(1)
    parameters = {
        name: random.normal(0, 0.3, array.shape).astype(np.float32) for name, array in pyramid.state_dict().items()
    }
    pyramid.load_state_dict(parameters)
    return pyramid, parameters


def check(got, want, like):
    assert type(got) is dict
    assert list(got) == list(want)
    for name in want:
        compare.close(got[name], want[name], like)


# ------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("dtype", few(["float32", "float64"], every=2))
@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("sizes", SIZES)
def test_pyramid(ops, sizes, extra, dtype):
    make, name = EXTRA[extra]
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6, make()))
    maps = maps_of(SIZES[sizes], dtype=dtype)
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters, name), ops.array(maps["feature 1"]))


@st.composite
def pyramids(draw):
    """Maps of any sizes, the number of results, and the kind of extra block."""
    levels = draw(st.lists(st.tuples(*[st.integers(1, 12)] * 3), min_size=1, max_size=4))
    channels, sizes = [c for c, *_ in levels], [tuple(size) for _, *size in levels]
    batch, dtype = draw(st.integers(0, 2)), draw(st.sampled_from(["float64", "float32"]))
    return (
        maps_of(sizes, channels, batch, dtype),
        draw(st.integers(1, 20)),
        draw(st.sampled_from([None, "pool", "p6p7"])),
    )


@given(pyramids())
def test_any_pyramid(ops, drawn):
    maps, outputs, name = drawn
    channels = [map.shape[1] for map in maps.values()]
    extra = {None: None, "pool": cvops.LastLevelMaxPool(), "p6p7": cvops.LastLevelP6P7(channels[-1], outputs)}[name]
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(channels, outputs, extra))
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters, name), ops.array(maps["feature 1"]))


@pytest.mark.parametrize("channels", [[5], [2, 3], [1, 2, 3, 4, 5]])
def test_number_of_levels(ops, channels):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(channels, 7))
    sizes = [(2 ** (len(channels) - i), 3 * 2 ** (len(channels) - i)) for i in range(len(channels))]
    maps = maps_of(sizes, channels)
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters), ops.array(maps["feature 1"]))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_parameters_are_used_in_the_dtype_of_the_input(ops, dtype):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelP6P7(6, 6)))
    maps = maps_of(SIZES["rounded up"], dtype=dtype)
    parameters = {name: array.astype(dtype) for name, array in parameters.items()}
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters, "p6p7"), ops.array(maps["feature 1"]))
    maps = {name: map.astype("float64") for name, map in maps.items()}  # the same layer, another dtype
    with_its_own = pyramid.state_dict()
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, with_its_own, "p6p7"), ops.array(maps["feature 1"]))


def test_every_library(array):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelMaxPool()))
    maps = {name: array(map) for name, map in maps_of(SIZES["rounded up"], dtype="float32").items()}
    want = reference.feature_pyramid({name: to_numpy(map) for name, map in maps.items()}, parameters, "pool")
    check(pyramid(maps), want, maps["feature 1"])


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batches(ops, batch):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelP6P7(3, 6)))
    maps = maps_of(SIZES["rounded up"], batch=batch)
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters, "p6p7"), ops.array(maps["feature 1"]))


@pytest.mark.parametrize("extra", EXTRA)
def test_sizes_of_a_detector(ops, extra):
    """Wide enough for every block of the convolutions, in float32."""
    make, name = EXTRA[extra]
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([70, 130, 3], 6, make()))
    maps = maps_of([(50, 67), (25, 34), (13, 17)], [70, 130, 3], 1, "float32")
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, parameters, name), ops.array(maps["feature 1"]))


def test_layouts(ops):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6))
    maps = maps_of(SIZES["doubles"], dtype="float32")
    want = reference.feature_pyramid(maps, parameters)
    layouts = [
        lambda map: np.ascontiguousarray(map.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        lambda map: np.ascontiguousarray(map[..., ::-1, ::-1])[..., ::-1, ::-1],
        lambda map: map.astype(">f4"),
    ]
    given = {name: layout(map) for layout, (name, map) in zip(layouts, maps.items(), strict=True)}
    before = {name: map.copy() for name, map in given.items()}
    check(pyramid(ops.array(given)), want, ops.array(maps["feature 1"]))
    for name, map in given.items():
        np.testing.assert_array_equal(map, before[name])  # nothing was written there


def test_order_is_that_of_the_dict_whatever_the_names(ops):
    pyramid, _ = with_random_parameters(cvops.FeaturePyramidNetwork([3, 3, 3], 2, cvops.LastLevelMaxPool()))
    finest, middle, coarsest = maps_of(SIZES["doubles"], [3, 3, 3]).values()
    got = pyramid(ops.array({"c": finest, "a": middle, "b": coarsest}))
    assert list(got) == ["c", "a", "b", "pool"]
    assert [to_numpy(result).shape[2:] for result in got.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_the_dict_and_the_maps_stay_as_they_are(ops):
    pyramid = cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelP6P7(6, 6))
    maps = maps_of(SIZES["doubles"])
    before = {name: map.copy() for name, map in maps.items()}
    pyramid(ops.array(maps))
    assert list(maps) == list(before)
    for name, map in maps.items():
        np.testing.assert_array_equal(map, before[name])


def test_every_number_of_threads_gives_the_same_bits(threads):
    pyramid, _ = with_random_parameters(cvops.FeaturePyramidNetwork([70, 130, 3], 20, cvops.LastLevelMaxPool()))
    maps = maps_of([(50, 67), (25, 34), (13, 17)], [70, 130, 3], 2, "float32")
    bits = set()
    for count in (1, 2, 3):
        threads(count)
        bits.add(b"".join(result.tobytes() for result in pyramid(maps).values()))
    assert len(bits) == 1


# ------------------------------------------------------------------------------------------------ Winograd's method


def convolution(size, channels, outputs, batch=1):
    """Arguments of a 3x3 convolution in float32."""
    random = np.random.default_rng(2)
    shapes = (batch, channels, *size), (outputs, channels, 3, 3), (outputs,)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def direct(maps, weight, bias, padding=1):
    return reference.conv2d(maps.astype(float), weight.astype(float), bias.astype(float), padding=padding)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", few([(16, 16), (8, 32), (61, 9), (13, 21), (50, 67), (31, 130)], every=3))
@pytest.mark.parametrize(("channels", "outputs"), [(16, 16), (3, 50), (70, 65)])
def test_sizes_for_winograd(channels, outputs, size, exact):
    extra = cvops.LastLevelP6P7(outputs, outputs)
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([channels], outputs, extra, exact=exact))
    maps = maps_of([size], [channels], 2, "float32")
    check(pyramid(maps), reference.feature_pyramid(maps, parameters, "p6p7"), maps["feature 1"])


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.integers(1, 9),
    outputs=st.integers(1, 9),
)
def test_winograd_of_any_size(size, padding, channels, outputs):
    size = [max(length, 3 - 2 * p) for length, p in zip(size, padding, strict=True)]
    maps, weight, bias = convolution(size, channels, outputs)
    compare.close(_winograd.conv2d(maps, weight, bias, padding), direct(maps, weight, bias, padding).astype("f"), maps)


def test_parts_of_winograd_do_not_change_bits(monkeypatch):
    """Neither how many outputs have their weights transformed together, nor how many tiles are a block."""
    maps, weight, bias = convolution((21, 40), 70, 65, 2)
    whole = _winograd.conv2d(maps, weight, bias, (1, 1))
    for outputs, tiles in ((1, 16), (7, 32), (50, 48)):
        monkeypatch.setattr(_winograd, "_WEIGHT_BYTES", outputs * 36 * 4 * 70)
        monkeypatch.setattr(_winograd, "_TILE_BYTES", tiles * 36 * 4 * 70)
        np.testing.assert_array_equal(_winograd.conv2d(maps, weight, bias, (1, 1)), whole)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "normal", "sparse"])
def test_error_of_both_methods(kind, exact):
    """Of as many channels as pyramids have: the docstring says how large it may be."""
    maps, weight, bias = convolution((20, 30), 256, 32)
    if kind == "uniform":
        maps = np.random.default_rng(3).uniform(size=maps.shape).astype(np.float32)
    elif kind == "sparse":
        maps = np.maximum(maps - 1, 0)
    got, want = _cpu.conv2d(maps, weight, bias, (1, 1), (1, 1), exact), direct(maps, weight, bias)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_fills_tiles_unless_exact(value):
    exact, fast = (
        with_random_parameters(cvops.FeaturePyramidNetwork([16], 16, exact=exact))[0] for exact in (True, False)
    )
    for y, x in [(9, 10), (8, 11), (0, 0), (12, 19), (17, 23)]:
        maps = maps_of([(18, 24)], [16], 1, "float32")
        maps["feature 1"][0, :, y, x] = value
        near = np.zeros((18, 24), bool)
        near[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        assert not (~np.isfinite(exact(maps)["feature 1"]) & ~near).any()
        tiles = np.zeros((18, 24), bool)
        for top in range(0, 18, 4):
            for left in range(0, 24, 4):
                if top - 1 <= y <= top + 4 and left - 1 <= x <= left + 4:
                    tiles[top : top + 4, left : left + 4] = True
        infinite = ~np.isfinite(fast(maps)["feature 1"])
        assert not (infinite & ~tiles).any()
        if not np.isfinite(value):
            assert (infinite | ~near).all()
            own = infinite[..., y // 4 * 4 : y // 4 * 4 + 4, x // 4 * 4 : x // 4 * 4 + 4]
            assert own.all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 3, 2), (2, 2, 1), (3, 1, 1), (3, 2, 1)])
def test_bands_do_not_change_bits(kernel, stride, padding, dtype, monkeypatch):
    """A band is the part of an image that is sorted at a time."""
    random = np.random.default_rng(4)
    shapes = (2, 5, 23, 31), (7, 5, kernel, kernel), (7,)
    arrays = [random.normal(size=shape).astype(dtype) for shape in shapes]
    arrays[0] = np.ascontiguousarray(arrays[0][..., ::-1])[..., ::-1]
    options = (stride, stride), (padding, padding), True
    whole = _cpu.conv2d(*arrays, *options)
    want = reference.conv2d(*(array.astype(float) for array in arrays), stride=stride, padding=padding)
    compare.close(whole, want.astype(dtype), arrays[0])
    for size in (0, 5000, 20000):
        monkeypatch.setattr(_conv, "_BAND_BYTES", size)
        np.testing.assert_array_equal(_cpu.conv2d(*arrays, *options), whole)


def test_exact_is_a_flag():
    check_refused(TypeError, ["`exact`", "str"], cvops.FeaturePyramidNetwork, [4], 6, exact="no")
    assert repr(cvops.FeaturePyramidNetwork([4], 6, exact=True)) == "FeaturePyramidNetwork([4], 6, exact=True)"


# ------------------------------------------------------------------------------------------------------ parameters


def test_names_and_shapes_of_parameters():
    pyramid = cvops.FeaturePyramidNetwork([4, 10], 6, cvops.LastLevelP6P7(10, 6))
    want = {
        "inner_blocks.0.0.weight": (6, 4, 1, 1),
        "inner_blocks.0.0.bias": (6,),
        "inner_blocks.1.0.weight": (6, 10, 1, 1),
        "inner_blocks.1.0.bias": (6,),
        "layer_blocks.0.0.weight": (6, 6, 3, 3),
        "layer_blocks.0.0.bias": (6,),
        "layer_blocks.1.0.weight": (6, 6, 3, 3),
        "layer_blocks.1.0.bias": (6,),
        "extra_blocks.p6.weight": (6, 10, 3, 3),
        "extra_blocks.p6.bias": (6,),
        "extra_blocks.p7.weight": (6, 6, 3, 3),
        "extra_blocks.p7.bias": (6,),
    }
    state = pyramid.state_dict()
    assert {name: array.shape for name, array in state.items()} == want
    assert list(state) == list(want)  # in torchvision's order
    assert {type(array) for array in state.values()} == {np.ndarray}
    assert {array.dtype.name for array in state.values()} == {"float32"}
    for extra in (None, cvops.LastLevelMaxPool()):
        assert list(cvops.FeaturePyramidNetwork([4, 10], 6, extra).state_dict()) == list(want)[:8]


def old_form(state):
    """The names that torchvision's pyramids had before the blocks became sequences."""
    return {name.replace(".0.weight", ".weight").replace(".0.bias", ".bias"): array for name, array in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone.fpn."])
def test_both_forms_of_names_can_be_loaded(prefix):
    _, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelP6P7(6, 6)))
    old = old_form(parameters)
    assert "inner_blocks.1.weight" in old
    assert "extra_blocks.p6.weight" in old
    half = {**old_form(dict(list(parameters.items())[:4])), **dict(list(parameters.items())[4:])}
    for form in (parameters, old, half):
        pyramid = cvops.FeaturePyramidNetwork(CHANNELS, 6, cvops.LastLevelP6P7(6, 6))
        elsewhere = {"head.weight": np.zeros(1), "inner_blocks.0.0.weight": np.zeros(1)} if prefix else {}
        pyramid.load_state_dict({**elsewhere, **{prefix + name: array for name, array in form.items()}}, prefix=prefix)
        state = pyramid.state_dict()
        assert list(state) == list(parameters)
        for name, array in parameters.items():
            np.testing.assert_array_equal(state[name], array)


def test_load_state_dict_copies_arrays_of_every_library(array):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([2, 3], 4))
    given = {name: array(value + 1) for name, value in parameters.items()}
    pyramid.load_state_dict(given)
    for value in given.values():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value[...] = 0
    for name, value in pyramid.state_dict().items():
        np.testing.assert_array_equal(value, parameters[name] + 1)


def test_loading_takes_effect_after_a_call(ops):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork(CHANNELS, 6))
    maps = maps_of(SIZES["doubles"])
    pyramid(ops.array(maps))
    other = {name: -2 * array for name, array in parameters.items()}
    pyramid.load_state_dict(other)
    check(pyramid(ops.array(maps)), reference.feature_pyramid(maps, other), ops.array(maps["feature 1"]))


def test_parameters_are_uploaded_once(emulated):
    pyramid, _ = with_random_parameters(cvops.FeaturePyramidNetwork([3], 2))
    kept = []
    for dtype in ("float32", "float32", "float64"):
        pyramid({"map": emulated(np.ones((1, 3, 4, 4), dtype))})
        kept.append(dict(pyramid._uploaded))
    assert [len(each) for each in kept] == [4, 4, 8]
    assert all(kept[0][key] is kept[2][key] for key in kept[0])
    pyramid.load_state_dict(pyramid.state_dict())
    assert not pyramid._uploaded
    pyramid({"map": np.ones((1, 3, 4, 4))})
    assert not pyramid._uploaded  # a CPU needs no copies


@pytest.mark.parametrize(
    ("remove", "add", "prefix", "said"),
    [
        (["layer_blocks.1.0.bias"], [], "", ["missing", "layer_blocks.1.0.bias"]),
        ([], ["inner_blocks.2.0.weight"], "", ["unexpected", "inner_blocks.2.0.weight"]),
        ([], ["extra_blocks.p6.weight"], "", ["unexpected", "extra_blocks.p6.weight"]),
        (["inner_blocks.0.0.bias"], ["x"], "", ["missing", "inner_blocks.0.0.bias", "unexpected", "x"]),
        ([], [], "fpn.", ["missing", "fpn.inner_blocks.0.0.weight", "fpn.layer_blocks.1.0.bias"]),
    ],
)
def test_load_state_dict_is_strict(remove, add, prefix, said):
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([2, 3], 4))
    state = {name: array + 1 for name, array in parameters.items() if name not in remove}
    state |= {name: np.zeros((4, 2, 1, 1), np.float32) for name in add}
    with pytest.raises(ValueError) as raised:
        pyramid.load_state_dict(state, prefix)
    assert [word for word in said if word not in str(raised.value)] == [], raised.value
    for name, array in pyramid.state_dict().items():
        np.testing.assert_array_equal(array, parameters[name])  # nothing was loaded


def test_both_forms_of_one_name_cannot_be_loaded():
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([2, 3], 4))
    twice = {**parameters, "inner_blocks.0.bias": parameters["inner_blocks.0.0.bias"] + 1}
    with pytest.raises(ValueError, match=r"`inner_blocks\.0\.bias`.*`inner_blocks\.0\.0\.bias`"):
        pyramid.load_state_dict(twice)
    np.testing.assert_array_equal(pyramid.state_dict()["inner_blocks.0.0.bias"], parameters["inner_blocks.0.0.bias"])


def test_load_state_dict_checks_shapes():
    pyramid, parameters = with_random_parameters(cvops.FeaturePyramidNetwork([2, 3], 4))
    wrong = {**parameters, "inner_blocks.1.0.weight": np.zeros((4, 2, 1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"`inner_blocks.1.0.weight` .*\(4, 3, 1, 1\).*got \(4, 2, 1, 1\)"):
        pyramid.load_state_dict(wrong)


def test_initialisation():
    """Kaiming uniform with a = 1: within sqrt(3 / inputs of one result); biases are 0."""
    extra, random = cvops.LastLevelP6P7(1024, 128), np.random.default_rng(0)
    pyramid = cvops.FeaturePyramidNetwork([256, 1024], 128, extra, rng=random)
    for name, values in pyramid.state_dict().items():
        if name.endswith("bias"):
            assert not values.any()
            continue
        bound = math.sqrt(3 / math.prod(values.shape[1:]))
        assert bound * 0.999 <= np.abs(values).max() <= bound * (1 + 1e-6), name
        assert abs(values.mean()) <= 0.02 * bound, name
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) <= 0.02, name


def test_initialisation_is_reproducible():
    def state(seed):
        extra, random = cvops.LastLevelP6P7(3, 4), np.random.default_rng(seed)
        return cvops.FeaturePyramidNetwork([2, 3], 4, extra, rng=random).state_dict()

    one, two, three = state(7), state(7), state(8)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
        assert name.endswith("bias") or (one[name] != three[name]).any()


def test_repr():
    text = repr(cvops.FeaturePyramidNetwork([256, 512], 128, cvops.LastLevelP6P7(512, 128)))
    for part in ("FeaturePyramidNetwork(", "[256, 512]", "128", "LastLevelP6P7(512, 128)"):
        assert part in text
    assert repr(cvops.LastLevelMaxPool()) == "LastLevelMaxPool()"


# --------------------------------------------------------------------------------------------------- refused calls


def check_refused(error, said, call, *args, **options):
    with pytest.raises(error) as raised:
        call(*args, **options)
    assert [word for word in said if word not in str(raised.value)] == [], raised.value


@pytest.fixture
def refused(ops):
    """Called with an error, what it says, and the maps that a pyramid network refuses by it."""
    pyramid = cvops.FeaturePyramidNetwork(CHANNELS, 6)
    return lambda error, said, maps: check_refused(error, said, pyramid, ops.array(maps))


def test_maps_that_do_not_fit(refused):
    maps = maps_of(SIZES["doubles"])
    first, second, third = maps
    refused(ValueError, ["3", "2"], {first: maps[first], second: maps[second]})
    refused(ValueError, ["3", "0"], {})
    refused(ValueError, ["3", "4"], {**maps, "more": maps[third]})
    refused(ValueError, [second, "10", "(2, 9, 8, 12)"], {**maps, second: maps[second][:, 1:]})
    refused(ValueError, [third, "(3, 4, 6)"], {**maps, third: maps[third][0]})
    refused(ValueError, [third, "2", "(1, 3, 4, 6)"], {**maps, third: maps[third][:1]})


@pytest.mark.parametrize(("extra", "name"), [("pool", "pool"), ("p6p7 of the last result", "p7")])
def test_maps_with_the_name_of_an_extra_one(ops, extra, name):
    """One of the two would be lost."""
    pyramid = cvops.FeaturePyramidNetwork([3], 6, EXTRA[extra][0]())
    check_refused(ValueError, ["`maps`", name], pyramid, ops.array({name: np.zeros((1, 3, 4, 4))}))


def test_maps_of_other_kinds(ops, refused):
    maps = maps_of(SIZES["doubles"])
    first, second, third = maps
    refused(TypeError, ["`maps`", "dict of arrays by name", "list"], list(maps.values()))
    refused(TypeError, ["`maps`", "dict of arrays by name", type(ops.array(maps[first])).__name__], maps[first])
    refused(TypeError, [third, "must be an array", "list"], {**maps, third: maps[third].tolist()})
    refused(TypeError, [first, "int64", ".astype"], {**maps, first: maps[first].astype(np.int64)})
    refused(TypeError, [second, "float32", "float64"], {**maps, second: maps[second].astype(np.float32)})


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (([4, 0], 6), ValueError, ["`in_channels_list`", "0"]),
        (([4, -1], 6), ValueError, ["`in_channels_list`", "-1"]),
        (([], 6), ValueError, ["`in_channels_list`"]),
        (([4, 5.0], 6), TypeError, ["`in_channels_list`", "float"]),
        ((4, 6), TypeError, ["`in_channels_list`", "int"]),
        (([4], 0), ValueError, ["`out_channels`", "0"]),
        (([4], 6.0), TypeError, ["`out_channels`", "float"]),
        (([4], 6, "pool"), TypeError, ["`extra_blocks`", "LastLevelMaxPool", "LastLevelP6P7", "str"]),
        (([4], 6, cvops.LastLevelMaxPool), TypeError, ["`extra_blocks`", "type"]),
    ],
)
def test_pyramids_that_cannot_be(arguments, error, said):
    check_refused(error, said, cvops.FeaturePyramidNetwork, *arguments)


def test_extra_blocks_that_do_not_fit():
    for channels, outputs, wanted in [(7, 6, 10), (6, 9, 10), (9, 9, 8)]:  # of the last map, or of the last result
        extra = cvops.LastLevelP6P7(channels, outputs)
        said = ["`extra_blocks`", str(wanted), f"got {channels}"]
        check_refused(ValueError, said, cvops.FeaturePyramidNetwork, [4, 10], 8, extra)
    check_refused(ValueError, ["`in_channels`", "0"], cvops.LastLevelP6P7, 0, 6)
    check_refused(ValueError, ["`out_channels`", "-1"], cvops.LastLevelP6P7, 6, -1)
