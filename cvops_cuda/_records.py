"""Structs that kernels take by value; on this side of the launch they are named tuples. No GPU needed to import it.

Each kernel takes one. A field is an int (`long long`), a float (`double`), an array (a pointer; None is null), a tuple
of these (an array in C), or another record. All of them have 8 bytes or a multiple of 8, so that nothing is padded. The
emulation compares names, offsets and kinds with the struct of the same name in the kernel file.
"""

from __future__ import annotations

import functools
import struct
import typing
from collections.abc import Callable
from typing import Any

_CODES = {int: "q", float: "d"}


class Layout:
    """How a record lies in memory, by the annotations of its fields."""

    def __init__(self, kinds: list[Any]) -> None:
        fields = [(i, typing.get_args(kind) or (kind,)) for i, kind in enumerate(kinds)]
        self._tuples = [(i, i + 1) for i, members in reversed(fields) if len(members) > 1]
        flat = [member for _, members in fields for member in members]
        packer = struct.Struct("=" + "".join(map(_code, flat)))
        self._pack, self.size = packer.pack, packer.size
        self._pointers = [i for i, kind in enumerate(flat) if _code(kind) == "Q"]
        self._parts = [(i, layout(kind)) for i, kind in enumerate(flat) if _code(kind)[-1] == "s"]

    def pack(self, record: Any, address: Callable[[Any], int]) -> bytes:
        """The bytes of a record; `address` returns where an array lies. A record within it may be packed already."""
        values = list(record)
        for begin, end in self._tuples:
            values[begin:end] = values[begin]
        for i in self._pointers:
            values[i] = 0 if values[i] is None else address(values[i])
        for i, layout in self._parts:
            if values[i].__class__ is not bytes:
                values[i] = layout.pack(values[i], address)
        return self._pack(*values)


@functools.cache
def layout(record: type) -> Layout:
    """The layout of a class of named tuples."""
    return Layout(list(typing.get_type_hints(record).values()))


def pack(record: Any, address: Callable[[Any], int] | None = None) -> bytes:
    """The bytes of a record, which may have arrays only if `address` is given."""
    return layout(record.__class__).pack(record, address or _none_there)


def _none_there(array: Any) -> int:
    raise TypeError(f"a {type(array).__name__} where a record has no arrays")


def _code(kind: Any) -> str:
    return f"{layout(kind).size}s" if hasattr(kind, "_fields") else _CODES.get(kind, "Q")
