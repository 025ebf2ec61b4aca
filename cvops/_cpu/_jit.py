"""The one way to compile a CPU kernel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

_OPTIONS: dict[str, Any] = {
    "nogil": True,  # kernels touch no Python object, so the threads of `_threads` run at once
    "error_model": "numpy",  # 0 / 0 is NaN and 1 / 0 is inf, as the semantics say; no exception paths in loops
}


def jit(function: Callable[..., Any] | None = None, *, contract: bool = False) -> Any:
    """Compile `function` at its first call and keep the machine code on disk.

    `contract` lets a * b + c become one fused instruction. Kernels that decide something by a comparison must not ask
    for it: the decision would depend on the processor. No other fast-math flag is ever right here, because all of
    them give up NaN or the order of a sum.
    """
    if function is None:
        return lambda function: jit(function, contract=contract)
    options = _OPTIONS | {"fastmath": {"contract"} if contract else False}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # Numba found no folder that it may write to
        _warn_no_cache()
        return numba.njit(function, **options)


def cache_folder() -> str | None:
    """Where the machine code of the kernels is kept, or None where no folder can be written to."""
    try:
        dispatcher: Any = numba.njit(_warn_no_cache, cache=True)
        return str(dispatcher._cache.cache_path)
    except RuntimeError:
        return None


_warned = False


def _warn_no_cache() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "cvops found no writable folder for its compiled kernels and compiles them anew in every process (seconds)."
            " Set NUMBA_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )


if hasattr(os, "register_at_fork"):
    # A fork during another thread's compilation would leave the child with a lock that nobody will ever release.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
