"""Annotations of cvops.torch: type checkers see what the functions take, TorchScript the types that it knows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, TypeAlias, TypeVar

    import numpy as np
    from torch import Tensor

    from .._types import Format, Integer, Ints

    T = TypeVar("T")
    BroadcastingList2: TypeAlias = T | Sequence[T]
    Number: TypeAlias = float | np.floating[Any] | np.integer[Any] | Tensor
    Size: TypeAlias = Sequence[Number] | Tensor
    Reduction = Literal["none", "mean", "sum"]
else:
    from torch.jit.annotations import BroadcastingList2

    Format = Reduction = str
    Integer, Number = int, float
    Ints = Size = tuple[int, int]

__all__ = ["BroadcastingList2", "Format", "Integer", "Ints", "Number", "Reduction", "Size"]
