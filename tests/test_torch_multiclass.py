"""`cvops.torch.multiclass_nms`: answers of the reference, compiled, exported and under vmap."""

from __future__ import annotations

import numpy as np
import pytest

import cvops
from tests import reference_multiclass as reference
from tests.test_jax_multiclass import OPTIONS
from tests.test_multiclass_nms import some

every_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tensors(torch, options):
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }


def same(found, want):
    for one, other in zip(found, want, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@every_options
def test_answers_of_the_reference(torch_ops, torch, options):
    boxes, scores = some(2, 30, 3)
    given = torch.from_numpy(boxes).requires_grad_(), torch.from_numpy(scores).requires_grad_()
    found = torch_ops.multiclass_nms(*given, 0.4, **tensors(torch, options))
    assert found._fields == ("image", "box", "label")
    same(found, reference.multiclass_nms(boxes, scores, 0.4, **options))
    padded = torch_ops.multiclass_nms(*given, 0.4, max_output=7, padded=True, **tensors(torch, options))
    same(padded, reference.multiclass_nms(boxes, scores, 0.4, max_output=7, padded=True, **options))
    given[0][found.image, found.box].sum().backward()
    assert (given[0].grad != 0).any()


@every_options
def test_compiled(torch_ops, torch, options):
    boxes, scores = some(2, 30, 3)
    extra = tensors(torch, options)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def program(boxes, scores):
        found = torch_ops.multiclass_nms(boxes, scores, 0.4, max_output=7, padded=True, **extra)
        return found.box, found.label, found.count

    want = reference.multiclass_nms(boxes, scores, 0.4, max_output=7, padded=True, **options)
    same(program(torch.from_numpy(boxes), torch.from_numpy(scores)), want)


def test_exported(torch_ops, torch):
    class Detect(torch.nn.Module):
        def forward(self, boxes, scores):
            found = torch_ops.multiclass_nms(boxes, scores, 0.4, score_threshold=0.5)
            return found.image, found.box, found.label

    boxes, scores = some(2, 30, 3)
    given = torch.from_numpy(boxes), torch.from_numpy(scores)
    same(
        torch.export.export(Detect(), given).module()(*given),
        reference.multiclass_nms(boxes, scores, 0.4, score_threshold=0.5),
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by opcheck
@pytest.mark.parametrize("name", ["multiclass_nms", "multiclass_nms_padded"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_opcheck(torch_ops, torch, name, dtype):
    boxes, scores = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in some(2, 30, 3))
    operator = getattr(torch.ops.cvops, name).default
    torch.library.opcheck(operator, (boxes, scores, 0.4, scores[0, 0], scores[:, :, 0], 5), {"max_candidates": 30})
    torch.library.opcheck(operator, (boxes, scores.transpose(0, 1).contiguous().transpose(0, 1), 0.4, None, None, 5))


def test_vmap(torch_ops, torch):
    boxes, scores = some(4, 30, 3)
    batches = torch.from_numpy(boxes.reshape(2, 2, 30, 4)), torch.from_numpy(scores.reshape(2, 2, 30, 3))

    def call(boxes, scores):
        return tuple(torch_ops.multiclass_nms(boxes, scores, 0.4, max_output=7, padded=True))

    found = [result.flatten(0, 1) for result in torch.func.vmap(call)(*batches)]
    same(found, reference.multiclass_nms(boxes, scores, 0.4, max_output=7, padded=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_thresholds_in_16_bits(torch_ops, torch, dtype):
    """A score of 0.3 in either dtype is not above 0.3."""
    boxes = torch.arange(3.0)[None, :, None] * 10 + torch.tensor([0.0, 0, 1, 1])
    scores = torch.full((1, 3, 1), 0.3, dtype=getattr(torch, dtype))
    scores[0, 1] = 0.5
    for floor in (0.3, torch.tensor([0.3]), torch.tensor([0.3], dtype=scores.dtype)):
        assert torch_ops.multiclass_nms(boxes, scores, 0.5, score_threshold=floor).box.tolist() == [1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_floors_are_rounded_once(torch_ops, torch, dtype):
    """A little more than half a step above 1 is a step above 1, although it is just half of one in float32."""
    step = torch.finfo(getattr(torch, dtype)).eps
    boxes, scores = torch.tensor([[[0.0, 0, 1, 1]]]), torch.full((1, 1, 1), 1 + step, dtype=getattr(torch, dtype))
    for floor in (1 + step / 2 + 2**-40, 1 - step / 2):
        floors = torch.tensor([floor], dtype=torch.float64)
        found, of_floors = (torch_ops.multiclass_nms(boxes, scores, 0.5, score_threshold=f) for f in (floor, floors))
        assert of_floors.box.tolist() == found.box.tolist() == ([] if floor > 1 else [0])


def test_refused_as_in_cvops(torch_ops, torch):
    boxes, scores = map(torch.from_numpy, some(2, 30, 3))
    for args, options in (
        ((boxes[0], scores[0], 0.5), {}),
        ((boxes, scores, 50), {}),
        ((boxes, scores, 0.5), {"score_threshold": scores[0, 0, :2]}),
        ((boxes, scores, 0.5), {"score_threshold": [0.5, 0.5, 0.5]}),
        ((boxes, scores, 0.5), {"objectness": scores}),
        ((boxes, scores, 0.5), {"max_output": -1}),
        ((boxes, scores, 0.5), {"padded": True}),
        ((boxes, scores, 0.5), {"metric": "giou"}),
    ):
        with pytest.raises((TypeError, ValueError)) as plain:
            cvops.multiclass_nms(*args, **options)
        with pytest.raises(plain.type) as raised:
            torch_ops.multiclass_nms(*args, **options)
        assert str(raised.value) == str(plain.value)
