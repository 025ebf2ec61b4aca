"""Annotations of cvops.torch: type checkers see what the functions take, TorchScript the types that it knows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal, TypeAlias, TypeVar

    import numpy as np
    from torch import Tensor

    from .._decode import Letterbox
    from .._multiclass import Metric
    from .._types import Format, Integer, Ints

    T = TypeVar("T")
    BroadcastingList2: TypeAlias = T | Sequence[T]
    Number: TypeAlias = float | np.floating[Any] | np.integer[Any] | Tensor
    Numbers: TypeAlias = Sequence[Number]
    Size: TypeAlias = Sequence[Number] | Tensor
    Threshold: TypeAlias = Number | Tensor | None
    Reduction = Literal["none", "mean", "sum"]
else:
    from typing import Any

    from torch import Tensor
    from torch.jit.annotations import BroadcastingList2

    Format = Metric = Reduction = str
    Integer, Number = int, float
    Letterbox = bool | str
    Numbers = Any  # tuples and lists of int and of float are types of their own
    Ints = Size = tuple[int, int]
    Threshold = Tensor | float | int | None  # an int is no float there

__all__ = [
    "BroadcastingList2",
    "Format",
    "Integer",
    "Ints",
    "Letterbox",
    "Metric",
    "Number",
    "Numbers",
    "Reduction",
    "Size",
    "Threshold",
]
