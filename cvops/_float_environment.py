"""The floating-point environment of a thread: how it rounds, and whether it takes subnormal numbers for zero.

Some libraries change it, XLA for one in each of its threads, and a new thread inherits that of the one that starts it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any


def _functions() -> tuple[Any, Any] | None:
    """What C calls fegetenv and fesetenv; None where the system keeps them from Python."""
    try:
        library = ctypes.PyDLL("ucrtbase" if os.name == "nt" else None)
        functions = library.fegetenv, library.fesetenv
    except (AttributeError, OSError, TypeError):
        return None
    for function in functions:
        function.argtypes = [ctypes.c_char_p]
    return functions


_of_c = _functions()
_BYTES = 64  # of a fenv_t: 32 are the most that a system has


def environment() -> Any:
    """That of the calling thread, for `adopt`."""
    found = ctypes.create_string_buffer(_BYTES)
    if _of_c is not None:
        _of_c[0](found)
    return found


def adopt(environment: Any) -> None:
    """Let the calling thread have this environment."""
    if _of_c is not None:
        _of_c[1](environment)
