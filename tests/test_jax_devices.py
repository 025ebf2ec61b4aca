"""cvops.jax on several devices: jax.shard_map and jax.pmap equal the same without them, forward and gradient."""

from __future__ import annotations

import numpy as np
import pytest

from tests import operators
from tests.libraries import require
from tests.operators import converted

jax = None  # set by the fixture, because it may be missing
RANDOM = np.random.default_rng(11)
N = 2  # devices, which conftest.py asks JAX for


def boxes(*shape):
    corners = RANDOM.uniform(0, 8, (N, *shape, 2))
    return np.concatenate([corners, corners + RANDOM.uniform(1, 9, (N, *shape, 2))], -1).astype("f4")


def normal(*shape):
    return RANDOM.standard_normal((N, *shape), "f4")


def of_row(name, row):
    """The call of a row of operators.py, whose arrays the second device has backwards."""
    arrays = []
    for value in row.args:
        converted(value, arrays.append)
    of_devices = {f"array {i}": np.stack([array, backwards(array)]) for i, array in enumerate(arrays)}
    limit = {"max_output": 9} if row.ragged else {}

    def call(ops, **given):
        each = iter([given[key] for key in of_devices])
        args = [converted(value, lambda _: next(each)) for value in row.args]
        return getattr(ops, name)(*args, **row.options, **limit)

    return of_devices, call


def backwards(array):
    return np.flip(array, next(axis for axis, length in enumerate(array.shape) if length > 1))


# What each device has of each argument, along the first axis; and how the operator is called with that of one device.
OPERATORS = {
    # All by their ordinary calls, and what is special about some.
    **{name: of_row(name, row) for name, row in operators.OPERATORS.items() if "jax" not in row.lacks},
    "roi_align, list": (
        {"input": normal(2, 3, 7, 6), "first": boxes(2), "second": boxes(3)},
        lambda ops, input, first, second: ops.roi_align(input, [first, second], 2, sampling_ratio=2),
    ),
    "MultiScaleRoIAlign": (
        {"fine": normal(1, 3, 16, 16), "coarse": normal(1, 3, 8, 8), "boxes": boxes(4)},
        lambda ops, fine, coarse, boxes: ops.MultiScaleRoIAlign(["c", "f"], 2, 2, canonical_scale=8, canonical_level=0)(
            {"f": fine, "c": coarse}, [boxes], [(16, 16)]
        ),
    ),
    "deform_conv2d, no mask": (
        {"input": normal(1, 2, 5, 5), "offset": normal(1, 8, 4, 4), "weight": normal(2, 2, 2, 2)},
        lambda ops, **arrays: ops.deform_conv2d(**arrays),
    ),
    "multiclass_nms, floors and objectness": (
        {
            "boxes": np.stack([boxes(9)] * 2, 1),
            "scores": RANDOM.random((N, 2, 9, 3), "f4"),
            "floors": RANDOM.random((N, 3), "f4"),
            "objectness": RANDOM.random((N, 2, 9), "f4"),
        },
        lambda ops, boxes, scores, floors, objectness: ops.multiclass_nms(
            boxes, scores, 0.2, max_output=5, score_threshold=floors, objectness=objectness, multi_label=False
        ),
    ),
}
# Which arguments differ from device to device: none, each alone, and all.
CASES = [
    (operator, differ)
    for operator, (arrays, _) in OPERATORS.items()
    for differ in dict.fromkeys([(), *((name,) for name in arrays), tuple(arrays)])
]
every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_case = pytest.mark.parametrize(("operator", "differ"), CASES)


pytestmark = pytest.mark.usefixtures("jax")


@pytest.fixture(autouse=True)
def ops():
    global jax
    jax = require("jax")
    import cvops.jax

    return cvops.jax


@pytest.fixture
def mesh():
    devices = np.array(jax.devices("cpu")[:N])
    assert len(devices) == N
    return jax.sharding.Mesh(devices.reshape(N, 1), ("i", "j"))


def given(operator, differ):
    """The arguments; those that differ have an axis for devices."""
    return {name: array if name in differ else array[0] for name, array in OPERATORS[operator][0].items()}


def part(arguments, differ, device):
    """What one device has of the arguments."""
    return {name: array[device] if name in differ else array for name, array in arguments.items()}


def called(ops, operator, arguments):
    """All results, as a tuple."""
    result = OPERATORS[operator][1](ops, **arguments)
    return result if isinstance(result, tuple) else (result,)


def one_by_one(ops, operator, differ):
    """The function of the arguments that calls the operator for each device, and stacks the results."""

    def function(arguments):
        results = [called(ops, operator, part(arguments, differ, device)) for device in range(N)]
        return tuple(map(jax.numpy.stack, zip(*results, strict=True)))

    return function


def sharded(ops, operator, differ, mesh, out_specs, **options):
    """The same, by jax.shard_map."""
    spec = jax.sharding.PartitionSpec

    def local(arguments):
        return tuple(result[None] for result in called(ops, operator, part(arguments, differ, 0)))

    specs = {name: spec("i") if name in differ else spec() for name in OPERATORS[operator][0]}
    return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=out_specs, **options)


def loss_of(results):
    """One number from all results that may have gradients."""
    real = [result for result in results if result.dtype.kind == "f"]
    return sum(((result * factors(result)).sum() for result in real), jax.numpy.zeros(()))


def factors(result):
    return np.cos(np.arange(result.size, dtype="f4")).reshape(result.shape)


def results_and_gradients(function, arguments, loss=loss_of):
    real = {name: array for name, array in arguments.items() if array.dtype.kind == "f"}
    slopes = jax.jit(jax.grad(lambda real: loss(function(arguments | real))))(real)
    return jax.jit(function)(arguments), slopes


def close(got, want):
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_every_operator_is_here(ops):
    assert {name.partition(",")[0] for name in OPERATORS} == set(ops.__all__)


@every_case
def test_sharded_equals_unsharded(ops, mesh, operator, differ):
    function = sharded(ops, operator, differ, mesh, jax.sharding.PartitionSpec("i"))
    arguments = given(operator, differ)
    want = results_and_gradients(one_by_one(ops, operator, differ), arguments)
    close(results_and_gradients(function, arguments), want)


@every_operator
def test_sharded_without_the_check(ops, mesh, operator):
    differ = tuple(OPERATORS[operator][0])[:1]
    function = sharded(ops, operator, differ, mesh, jax.sharding.PartitionSpec("i"), check_vma=False)
    arguments = given(operator, differ)
    want = results_and_gradients(one_by_one(ops, operator, differ), arguments)
    close(results_and_gradients(function, arguments), want)


@every_operator
def test_sums_over_devices_have_gradients(ops, mesh, operator):
    """As in data-parallel training: the sum is taken inside, and its gradient for what all devices share is a sum."""
    spec, differ = jax.sharding.PartitionSpec, tuple(OPERATORS[operator][0])[:1]
    specs = {name: spec("i") if name in differ else spec() for name in OPERATORS[operator][0]}

    def total(arguments):
        def local(arguments):
            loss = loss_of(called(ops, operator, part(arguments, differ, 0)))
            return jax.lax.psum(loss, "i")

        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=spec())(arguments)

    def alone(arguments):
        return sum(loss_of(called(ops, operator, part(arguments, differ, device))) for device in range(N))

    arguments = given(operator, differ)
    want = results_and_gradients(alone, arguments, loss=lambda loss: loss)
    close(results_and_gradients(total, arguments, loss=lambda loss: loss), want)


@every_case
def test_no_false_claim_that_devices_agree(ops, mesh, operator, differ):
    function, arguments = sharded(ops, operator, differ, mesh, jax.sharding.PartitionSpec()), given(operator, differ)
    if differ:
        with pytest.raises(ValueError, match="out_specs"):
            jax.eval_shape(function, arguments)
    else:
        close(function(arguments), tuple(row[None] for row in called(ops, operator, arguments)))


@every_operator
def test_arguments_that_vary_along_different_axes(ops, mesh, operator):
    spec, names = jax.sharding.PartitionSpec, list(OPERATORS[operator][0])
    differ = tuple(names[::2])  # these along i, the others along j, which has one device
    specs = {name: spec("i" if name in differ else "j") for name in names}

    def function(arguments):
        def local(arguments):
            return tuple(result[None, None] for result in called(ops, operator, part(arguments, names, 0)))

        arguments = {name: array if name in differ else array[None] for name, array in arguments.items()}
        out = spec("i", "j") if len(names) > 1 else spec("i")
        results = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=out)(arguments)
        return tuple(result[:, 0] for result in results)

    arguments = given(operator, differ)
    want = results_and_gradients(one_by_one(ops, operator, differ), arguments)
    close(results_and_gradients(function, arguments), want)


@every_operator
def test_vectorised_on_each_device(ops, mesh, operator):
    """jax.vmap within jax.shard_map and around it, of a batch of two on each device."""
    spec, arrays = jax.sharding.PartitionSpec, OPERATORS[operator][0]
    batches = {name: np.stack([array, array[::-1]], 1) for name, array in arrays.items()}  # (N, 2, ...)

    def one(arguments):
        return called(ops, operator, arguments)

    def on_devices(function):
        def local(arguments):
            return tuple(result[None] for result in function(part(arguments, arrays, 0)))

        return jax.shard_map(local, mesh=mesh, in_specs=spec("i"), out_specs=spec("i"))

    want = results_and_gradients(jax.vmap(jax.vmap(one)), batches)
    close(results_and_gradients(on_devices(jax.vmap(one)), batches), want)
    close(results_and_gradients(jax.vmap(on_devices(one), in_axes=1, out_axes=1), batches), want)


@every_operator
def test_pmap(ops, operator):
    differ = tuple(OPERATORS[operator][0])
    mapped = jax.pmap(lambda arguments: called(ops, operator, arguments), devices=jax.devices("cpu")[:N])
    arguments = given(operator, differ)
    real = {name: array for name, array in arguments.items() if array.dtype.kind == "f"}
    want = results_and_gradients(one_by_one(ops, operator, differ), arguments)
    close((mapped(arguments), jax.grad(lambda real: loss_of(mapped(arguments | real)))(real)), want)
