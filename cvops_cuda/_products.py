"""How cuBLAS, which stores matrices by columns, is told of a product of arrays. No GPU needed to import it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Operand(NamedTuple):
    """A matrix as cuBLAS sees it: its memory, read by columns, is the matrix transposed."""

    as_it_is: bool  # whether that is what is wanted, or its transpose
    pitch: int  # elements from one column there to the next
    step: int  # elements from one matrix of a batch to the next


class Product(NamedTuple):
    """out^T = b^T a^T, which by columns is what out = a b is by rows: `rows` of out^T, and so on."""

    rows: int
    columns: int
    depth: int
    batch: int
    left: Operand  # b
    right: Operand  # a
    out: Operand


def product(a: Any, b: Any, out: Any) -> Product:
    """The product out = a b of (m, k) and (k, n) matrices, or of a batch of them where they have three dimensions.

    One of the last two axes of each must have neighbours next to each other, in `out` the last. A matrix of two
    dimensions is used for the whole batch.
    """
    return Product(
        rows=out.shape[-1],
        columns=out.shape[-2],
        depth=a.shape[-1],
        batch=out.shape[0] if out.ndim == 3 else 1,
        left=_operand(b),
        right=_operand(a),
        out=_operand(out),
    )


def _operand(matrix: Any) -> Operand:
    rows, columns = matrix.shape[-2:]
    down, right = (stride // matrix.itemsize for stride in matrix.strides[-2:])
    step = matrix.strides[0] // matrix.itemsize if matrix.ndim == 3 and matrix.shape[0] > 1 else 0
    if columns == 1 or right == 1:
        return Operand(True, max(down if rows > 1 else 1, columns), step)
    return Operand(False, max(right, rows), step)
