"""What concerns the process and not one operator: threads, and compilation ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ._checks import count, one_of, strings
from ._process import load

if TYPE_CHECKING:
    from ._types import Device, Integer, WarmupDtype

_BACKENDS = {"cpu": "cvops._cpu", "cuda": "cvops_cuda"}
_DTYPES = ("float64", "float32", "float16")


def get_num_threads() -> int:
    """Return how many threads one call on CPU arrays may use.

    Returns
    -------
    threads : int
        What `set_num_threads` set; else the environment variable ``CVOPS_NUM_THREADS``; else the number of processors
        that this process may use.

    Examples
    --------
    >>> import cvops
    >>> cvops.get_num_threads() >= 1
    True
    """
    threads: int = _load_threads().get_num_threads()
    return threads


def set_num_threads(threads: Integer) -> None:
    """Set how many threads every later call on CPU arrays may use; results do not depend on it.

    Parameters
    ----------
    threads : int >= 1
        The caller's thread included: 1 means that no other thread is used.

    Raises
    ------
    TypeError, ValueError
        `threads` is not an integer, or is less than 1.

    Notes
    -----
    In worker processes of a data loader 1 is the right number. The threads of NumPy's BLAS are another matter: cvops
    calls none of its products.

    Examples
    --------
    >>> import cvops
    >>> cvops.set_num_threads(2)
    >>> cvops.get_num_threads()
    2
    """
    threads = count(threads, "threads", 1)
    _load_threads().set_num_threads(threads)


def warmup(
    device: Device = "cpu", dtypes: Iterable[WarmupDtype] = ("float32",), operators: Iterable[str] | None = None
) -> None:
    """Compile the kernels ahead of the first calls and leave them in the cache on disk.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        The backend to compile for; "cuda" compiles for the current GPU.
    dtypes : iterable of {"float64", "float32", "float16"}
        The working precisions to compile for.
    operators : iterable of str, optional
        Names of operators, such as ``["nms", "box_iou"]``. By default all that have kernels.

    Raises
    ------
    ValueError
        A device, dtype or operator is unknown.
    ImportError
        `device` is "cuda" and CuPy is missing.

    Examples
    --------
    >>> import cvops
    >>> cvops.warmup(operators=["nms"])
    """
    for step in warmup_steps(device, dtypes, operators):
        step.compile()


class Step(NamedTuple):
    """One operator to compile for one dtype, by a call of `compile`."""

    operator: str
    dtype: str
    compile: Callable[[], None]


def warmup_steps(device: str, dtypes: Iterable[str], operators: Iterable[str] | None) -> list[Step]:
    """Check the arguments of `warmup`, and return what it has to do."""
    one_of(device, "device", list(_BACKENDS))
    from . import _warmup

    names = list(_warmup.CALLS) if operators is None else _names(operators, "operators", list(_warmup.CALLS))
    asarray = load(_BACKENDS[device]).xp.asarray
    return [
        Step(name, dtype, functools.partial(_warmup.CALLS[name], dtype, asarray))
        for dtype in _names(dtypes, "dtypes", list(_DTYPES))
        for name in names
    ]


def _load_threads() -> Any:
    return load("cvops._cpu._threads")


def _names(given: Iterable[str], argument: str, known: list[str]) -> list[str]:
    return [one_of(name, argument, known) for name in strings(given, argument, or_one=True)]
