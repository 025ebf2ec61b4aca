"""What is compiled: the text of each module and what the kernels call the element types. No GPU needed to import it."""

from __future__ import annotations

import re
from pathlib import Path

from ._constants import macros

# Type code of what a module reads and writes -> its name there; E is the bfloat16 of ml_dtypes, which CuPy knows.
ELEMENTS = {"d": "double", "f": "float", "e": "Float16", "E": "BFloat16"}
# Numbers under which kernels know the dtype of an array that they convert as they read it: `enum` in numeric.cuh.
DTYPE_CODES = {
    name: code
    for code, name in enumerate(
        ("float64", "float32", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "bfloat16")
    )
}  # fmt: skip
KERNELS = Path(__file__).parent / "kernels"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


def source(file: str) -> str:
    """`kernels/<file>.cu` with what it includes put in place: one text, by which CuPy keys its cache.

    `#line` lets errors of the compiler name the real file.
    """
    return _inlined(f"{file}.cu")


def _inlined(name: str) -> str:
    text = (KERNELS / name).read_text()

    def in_place(include: re.Match[str]) -> str:
        next_line = text.count("\n", 0, include.end()) + 1
        return f'{_inlined(include[1])}#line {next_line} "{name}"\n'

    return f'#line 1 "{name}"\n{_INCLUDE.sub(in_place, text)}'


def options(file: str, code: str) -> list[str]:
    """What compilers are told for elements of a type code."""
    return [f"-DELEMENT={ELEMENTS[code]}", *macros(file, code)]
