"""`cvops.torch._library.register`: one statement makes an operator of a function, with all that PyTorch asks of one."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from __future__ import annotations  # as the public functions have it: annotations are text

import numpy as np
import torch

from cvops.torch._library import register


def scaled(
    input: Array, weight: Array | None = None, factor: Number = 2.0, *, power: Integer = 1, padded: bool = False
):
    assert isinstance(input, np.ndarray) and input.dtype != np.float16
    return input**power * factor * (1 if weight is None else weight)


def scaled_backward(
    grad: Array, input: Array, weight: Array | None = None, factor: Number = 2.0, *, power: Integer = 1
):
    return grad * power * input ** (power - 1) * factor * (1 if weight is None else weight)


def like(first, *others, **options):
    return torch.empty_like(first)


register(scaled_backward, like)
kernel = register(scaled, like, gradient=scaled_backward, mixes_dtypes=True)
ragged = register(scaled, like, name="scaled_ragged", ragged=True, no_gradient="it has none")
operator = torch.ops.cvops.scaled
schema = "scaled(Tensor input, Tensor? weight=None, float factor=2., *, int power=1) -> Tensor"
assert str(operator.default._schema) == "cvops::" + schema, operator.default._schema

x, weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([1.0, 0.0, 2.0])
want = 3 * x.detach() ** 2 * weight
assert torch.equal(operator(x, weight, 3.0, power=2), want) and torch.equal(kernel(x, weight, 3.0, power=2), want)
torch.library.opcheck(operator.default, (x, weight, 3.0), {"power": 2})
torch.library.opcheck(operator.default, (x,))
(gradient,) = torch.autograd.grad(operator(x, weight, 3.0, power=2).sum(), x, create_graph=True)
assert torch.equal(gradient, 6 * x * weight)
graph = torch.compile(lambda x: operator(x, weight, 3.0, power=2).sum(), fullgraph=True, backend="aot_eager")
assert torch.equal(torch.autograd.grad(graph(x), x)[0], gradient)
for call, error in (
    (lambda: gradient.sum().backward(), "`scaled` can be differentiated once, not twice"),
    (lambda: torch.ops.cvops.scaled_ragged(x).sum().backward(), "it has none"),
    (lambda: torch.func.vmap(torch.ops.cvops.scaled_ragged)(x.detach()), "`scaled_ragged` keeps a different number"),
):
    try:
        call()
    except NotImplementedError as found:
        assert str(found).startswith(error), found
    else:
        raise AssertionError(error)
batch = torch.func.vmap(lambda x: operator(x, weight, power=2))(torch.ones(4, 3))
assert torch.equal(batch, (2 * weight).expand(4, 3))
for dtype in (torch.float16, torch.bfloat16, torch.float64):
    assert operator(x.detach().to(dtype)).dtype == dtype
with torch.autocast("cpu", torch.bfloat16):
    mixed = operator(x.detach().bfloat16(), weight, power=2)
assert mixed.dtype == torch.bfloat16 and torch.equal(mixed.float(), 2 * x.detach() ** 2 * weight)
try:
    register(lambda input: input, like, name="scaled", arguments="Tensor input")
except ImportError as found:
    assert "another version" in str(found)
else:
    raise AssertionError("another schema is taken")
"""


def test_one_statement_makes_an_operator(torch_ops):
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True, timeout=300)
