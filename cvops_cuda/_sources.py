"""What is compiled: the text of each module and what the kernels call the element types. No GPU needed to import it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Type code of the working precision -> element type of the module.
ELEMENTS = {"f": "float", "d": "double"}
# Numbers under which kernels know the dtype of an array that they convert as they read it: `enum` in numeric.cuh.
DTYPE_CODES = {
    np.dtype(name): code
    for code, name in enumerate(
        ("float64", "float32", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    )
}
KERNELS = Path(__file__).parent / "kernels"


def source(file: str) -> str:
    """What all kernels share, then `kernels/<file>.cu`; `#line` lets errors of the compiler name the real file.

    One text, because CuPy keys its cache by the text that it compiles and would not notice an edited include.
    """
    return "".join(f'#line 1 "{name}"\n{(KERNELS / name).read_text()}' for name in ("numeric.cuh", f"{file}.cu"))
