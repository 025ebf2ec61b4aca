"""How a product of arrays is described to cuBLAS, which stores matrices by columns. No GPU needed to import it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Operand(NamedTuple):
    """A matrix as cuBLAS sees it: memory that holds a matrix by rows holds its transpose by columns."""

    as_it_is: bool  # whether cuBLAS is to use that transpose, or to transpose it again
    column_stride: int  # elements from one column, as cuBLAS sees it, to the next
    matrix_stride: int  # elements from one matrix of a batch to the next


class Product(NamedTuple):
    """out^T = b^T a^T, which is by columns what out = a b is by rows. `rows` are those of out^T, and so on."""

    rows: int
    columns: int
    depth: int
    batch: int
    left: Operand  # b
    right: Operand  # a
    out: Operand


def product(a: Any, b: Any, out: Any) -> Product:
    """The product out = a b of matrices (m, k) and (k, n), or of a batch of them if they have three dimensions.

    One of the last two axes of each must have stride 1; in `out` it must be the last. A matrix of two dimensions is
    used for the whole batch.
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
    matrix_stride = matrix.strides[0] // matrix.itemsize if matrix.ndim == 3 and matrix.shape[0] > 1 else 0
    if columns == 1 or right == 1:
        return Operand(True, max(down if rows > 1 else 1, columns), matrix_stride)
    return Operand(False, max(right, rows), matrix_stride)
