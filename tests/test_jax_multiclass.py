"""`cvops.jax.multiclass_nms` in compiled programs: answers of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests import reference_multiclass as reference
from tests.test_multiclass_nms import some

OPTIONS = {
    "none": {},
    "a threshold": {"score_threshold": 0.5, "max_candidates": 40},
    "floors": {"score_threshold": np.float32([0.2, 0.9, 0.5]), "max_per_class": 3},
    "objectness": {"objectness": np.random.default_rng(0).random((2, 30), "f4"), "class_agnostic": True},
    "one label": {"multi_label": False},
    "limits that are none": {"max_candidates": 2**63 - 1, "max_per_class": 2**63 - 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_in_programs(jax, options):
    import cvops.jax

    boxes, scores = some(2, 30, 3)
    want = reference.multiclass_nms(boxes, scores, 0.4, max_output=12, padded=True, **options)
    arrays = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in options.items() if name not in arrays}

    @jax.jit
    def program(boxes, scores, arrays):
        found = cvops.jax.multiclass_nms(boxes, scores, 0.4, max_output=12, **arrays, **numbers)
        assert found._fields == ("box", "label", "count")
        return found

    for one, other in zip(program(boxes, scores, arrays), want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("multi_label", [True, False])
def test_subnormal_scores(jax, multi_label):
    """XLA takes subnormal numbers for zero in its threads."""
    import cvops.jax

    tiny = np.finfo("f4").smallest_subnormal
    scores = np.array([-tiny, -0.0, tiny, 0, 3 * tiny, -3 * tiny, 2 * tiny, 0], np.float32).reshape(1, 4, 2)
    boxes = np.array([[[0, 0, 3, 4], [0, 0, 3, 2.5], [9, 9, 10, 10], [9, 9, 10, 10]]], np.float32) * np.float32(1e-22)
    for options in ({}, {"score_threshold": 0.0}, {"objectness": np.full((1, 4), 0.5, np.float32)}):
        options |= {"max_output": 8, "multi_label": multi_label}
        want = reference.multiclass_nms(boxes, scores, 0.5, padded=True, **options)
        got = cvops.jax.multiclass_nms(boxes, scores, 0.5, **options)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_refused_as_in_cvops(jax):
    import cvops.jax

    boxes, scores = some(2, 30, 3)
    with pytest.raises(ValueError, match=r"got \(30, 3\): use `scores\[None\]`"):
        cvops.jax.multiclass_nms(boxes[0], scores[0], 0.5, max_output=3)
    for size, got in ((2.5, "float"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"`max_output` must be an integer, got {got}"):
            cvops.jax.multiclass_nms(boxes, scores, 0.5, max_output=size)


def test_floors_are_rounded_to_bfloat16(jax):
    import cvops.jax

    boxes, scores = np.float32([[[0, 0, 1, 1]]]), jax.numpy.full((1, 1, 1), 0.3, "bfloat16")
    for dtype in ("float32", "float16", "bfloat16"):  # 0.3 of either is below that of bfloat16
        floors = jax.numpy.full(1, 0.3, dtype)
        assert cvops.jax.multiclass_nms(boxes, scores, 0.5, max_output=1, score_threshold=floors).count.tolist() == [0]
        floors = jax.numpy.full(1, 0.29, dtype)
        assert cvops.jax.multiclass_nms(boxes, scores, 0.5, max_output=1, score_threshold=floors).count.tolist() == [1]
