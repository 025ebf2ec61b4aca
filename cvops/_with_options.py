"""Base of the classes that hold the options of an operator."""

from __future__ import annotations

from typing import Any, NoReturn


class WithOptions:
    """A value that is its options, under their names in the order of `__init__`: compared, hashed and printed by them.

    A frozen dataclass is this too, but takes a fifth of the time that importing cvops has.
    """

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"cannot assign to {name!r}: make another {type(self).__name__}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name!r}: make another {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
