"""What is compiled: the text of each module and what the kernels call the element types. No GPU needed to import it."""

from __future__ import annotations

from pathlib import Path

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
# Text that several files start with, after numeric.cuh.
SHARED = {"nms": ("nms.cuh",), "roi_align": ("roi.cuh",), "roi_pool": ("roi.cuh",), "ps_roi": ("roi.cuh",)}


def source(file: str) -> str:
    """What kernels share, then `kernels/<file>.cu`; `#line` lets errors of the compiler name the real file.

    One text, because CuPy keys its cache by the text that it compiles and would not notice an edited include.
    """
    names = "numeric.cuh", *SHARED.get(file, ()), f"{file}.cu"
    return "".join(f'#line 1 "{name}"\n{(KERNELS / name).read_text()}' for name in names)
