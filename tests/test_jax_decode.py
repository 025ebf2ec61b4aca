"""The decoders of `cvops.jax`: answers of the reference, and derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_decode as reference
from tests.test_decode import ANCHORS, DELTAS, ORDINARY

every_function = pytest.mark.parametrize("name", ORDINARY)


@pytest.fixture
def ops(jax):
    import cvops.jax

    return cvops.jax


def called(ops, name, arrays):
    """The function of its arrays alone."""
    args, options = ORDINARY[name]
    return getattr(ops, name)(*arrays, *args[len(arrays) :], **options)


def arrays_of(name, dtype="f4"):
    return [arg.astype(dtype) for arg in ORDINARY[name][0] if isinstance(arg, np.ndarray)]


@every_function
@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_traced_functions_answer_as_the_reference(ops, jax, name, dtype):
    values = arrays_of(name, dtype)
    args, options = ORDINARY[name]
    want = getattr(reference, name)(*values, *args[len(values) :], **options)
    got = jax.jit(lambda *arrays: called(ops, name, arrays))(*values)
    compare.close(got, want, jax.numpy.asarray(values[0]))


@every_function
def test_derivatives(ops, jax, name):
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        check_grads(lambda *arrays: called(ops, name, arrays), arrays_of(name, "f8"), 2, eps=1e-5)


def test_derivatives_at_the_clip(ops, jax):
    """As in `cvops.torch`."""
    deltas, anchor = np.array([[0, 0, 1, 1.5], [0, 0, 0.5, 1]], "f4"), np.array([0, 0, 10, 20], "f4")
    grad = jax.grad(lambda deltas: ops.decode_boxes(deltas, anchor, clip=1)[:, 2:].sum())(deltas)
    np.testing.assert_allclose(grad, [[10, 20, 5 * np.e, 0], [10, 20, 5 * np.sqrt(np.e), 10 * np.e]], rtol=1e-6)


@every_function
def test_vmap(ops, jax, name):
    values = arrays_of(name)
    batches = [np.stack([value, value[::-1]]) for value in values]
    got = jax.vmap(lambda *arrays: called(ops, name, arrays))(*batches)
    for i in range(2):
        np.testing.assert_allclose(got[i], called(ops, name, [batch[i] for batch in batches]), rtol=1e-5, atol=1e-4)


def test_refused_as_in_cvops(ops):
    with pytest.raises(ValueError, match=r"`deltas` must have shape \(\.\.\., 4\), got \(7, 3\)"):
        ops.decode_boxes(DELTAS[:, :3], ANCHORS)
    with pytest.raises(ValueError, match="`weights` must be finite and > 0, got 0"):
        ops.encode_boxes(ANCHORS, ANCHORS, (1, 0, 1, 1))
    with pytest.raises(TypeError, match="`boxes` must be an array, got list"):
        ops.scale_boxes([[0.0, 0, 1, 1]], (1, 1), (1, 1))


def test_points_like_a_traced_array(jax):
    """`cvops.jax` has no such function to be named."""

    def inside(x):
        with pytest.raises(
            TypeError, match=r"^`like` is traced by jax \(jit, grad, vmap\): call this outside, and pass"
        ):
            cvops.make_points([(1, 2)], [8], like=x)
        return x

    jax.jit(inside)(np.zeros(1, np.float32))
