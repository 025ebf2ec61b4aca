"""The one way to compile a CPU kernel, and the cache of compiled kernels.

What is private in Numba and used here: that a dispatcher asks its `_cache`, that C code calls its `_compile_for_args`,
how a compilation is taken apart and put together, and what the result calls. `_KNOWS_NUMBA` tells whether all of it is
there. If a later Numba has changed it, Numba's own cache serves, with its weaknesses.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import pkgutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import numpy as np

from .. import _process

try:
    from numba.core.caching import _Cache as _NumbaCache
    from numba.core.compiler import CompileResult
    from numba.core.dispatcher import Dispatcher
    from numba.core.runtime import rtsys
    from numba.core.serialize import dumps
    from numba.misc.appdirs import AppDirs

    _USED = CompileResult._reduce, CompileResult._rebuild, Dispatcher._compile_for_args, rtsys.initialize
    _KNOWS_NUMBA = all(map(callable, _USED))
except (ImportError, AttributeError):
    _KNOWS_NUMBA, _NumbaCache = False, object

_OPTIONS: dict[str, Any] = {
    "nogil": True,  # kernels touch no Python object, so the threads of `_threads` run at once
    "error_model": "numpy",  # 0 / 0 is NaN and 1 / 0 is inf, as the semantics say; no exception paths in loops
}


# What Numba imports when it first sees an array is imported now, while no fork can come in between.
numba.typeof(np.empty(0))


def jit(function: Callable[..., Any] | None = None, *, contract: bool = False, inline: bool = False) -> Any:
    """Compile `function` at its first call and keep the machine code on disk.

    `inline` puts it into every function that calls it, as if it was written there: for short ones that take many
    arrays, whose handing over would take longer than what they do.

    `contract` lets a * b + c become one fused instruction. Kernels that decide something by a comparison must not ask
    for it: the decision would depend on the processor. No other fast-math flag is ever right here, because all of
    them give up NaN or the order of a sum.
    """
    if function is None:
        return lambda function: jit(function, contract=contract, inline=inline)
    if numba.config.DISABLE_JIT:
        return _interpreted(function)
    options = _OPTIONS | {"fastmath": {"contract"} if contract else False, "inline": "always" if inline else "never"}
    if not _KNOWS_NUMBA:
        return _with_cache_of_numba(function, options)
    dispatcher = numba.njit(function, **options)
    dispatcher._cache = _Cache(function)
    dispatcher._compile_for_args = functools.partial(_process.apart, dispatcher._compile_for_args)
    # What compiled functions call takes no arguments from Python, and what would is a fifth of a compilation.
    inner = numba.njit(function, **options, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    inner._cache = _Cache(function, "inner")
    dispatcher.get_call_template, dispatcher.get_overload = inner.get_call_template, inner.get_overload
    dispatcher.inner = inner
    return dispatcher


def jit_for(*arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `jit`, compiled for arguments of these Numba types alone: others are a TypeError of Numba's.

    A type of read-only arrays takes writable ones too: there is one compilation for both, and no view to be made before
    the call in order that the kernel cannot write.
    """

    def compile_later(function: Callable[..., Any]) -> Any:
        dispatcher = jit(function)
        if numba.config.DISABLE_JIT or not _KNOWS_NUMBA:
            return _with_dimensions(dispatcher, arguments)

        def compile_once() -> None:
            if not dispatcher.signatures:  # else another thread was here first
                dispatcher.compile(arguments)
            dispatcher.disable_compile()  # from now on Numba looks for a conversion where types differ

        def compile_for_args(*values: Any) -> Any:
            _check_dimensions(function, values, arguments)  # a wrong call shall not wait for a compilation
            _process.apart(compile_once)
            return dispatcher  # which is called then

        dispatcher._compile_for_args = compile_for_args
        return dispatcher

    return compile_later


def _with_dimensions(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """`function`, with a TypeError for arrays of other dimensions than these types have, where Numba does not ask."""

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        _check_dimensions(function, values, arguments)
        return function(*values)

    return call


def _check_dimensions(function: Callable[..., Any], values: tuple[Any, ...], arguments: tuple[Any, ...]) -> None:
    for value, wanted in zip(values, arguments, strict=True):
        if not isinstance(value, tuple) and np.ndim(value) != getattr(wanted, "ndim", 0):
            raise TypeError(f"{function.__name__} takes {wanted}, got {np.ndim(value)} dimensions")


def intrinsic(function: Callable[..., Any]) -> Any:
    """As numba.extending.intrinsic; where nothing is compiled, calls of it say so."""
    return _compiled_only if numba.config.DISABLE_JIT else numba.extending.intrinsic(function)


def _interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for NUMBA_DISABLE_JIT: as Python runs it, but as silent as machine code; an error where it cannot."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            with np.errstate(all="ignore"):
                return function(*args)
        except _OnlyCompiledError:
            raise
        except Exception as error:  # of numbers that Python does not let overflow, for instance
            raise _OnlyCompiledError from error

    return call


def _compiled_only(*args: Any) -> Any:
    raise _OnlyCompiledError


class _OnlyCompiledError(RuntimeError):
    def __init__(self) -> None:
        super().__init__("NUMBA_DISABLE_JIT is set, but this computation works as machine code only: unset it")


# ------------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> str | None:
    """Where the machine code of the kernels is kept, or None where no folder can be read or written."""
    if not _KNOWS_NUMBA:
        try:
            return str(numba.njit(_warn, cache=True)._cache.cache_path)
        except RuntimeError:
            return None
    return next(reversed(_folders()[0]), None)


class _Cache(_NumbaCache):
    """The compilations of one function on disk: a file for each signature, processor, and version of what compiles.

    A file tells by itself whether it is whole and of these sources. What cannot be read is compiled, what cannot be
    saved is not, and either is worth a warning but no error.
    """

    def __init__(self, function: Callable[..., Any], kind: str = "") -> None:
        self._function, self._kind = function, kind

    @property
    def cache_path(self) -> str | None:
        return cache_folder()

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return what was compiled for `signature`, or None."""
        # All that machine code calls. Numba's `target.refresh()` imports what compiles, too, and with that SciPy, where
        # it is installed: half of the first call of a process.
        rtsys.initialize(target)
        name, origin = self._name_and_origin(signature, target)
        for folder in _folders()[0]:
            path = os.path.join(folder, name)
            try:
                data = _read(path, origin)
                if data is not None:
                    return CompileResult._rebuild(target, *pickle.loads(data))
            except FileNotFoundError:
                pass
            except Exception as error:
                _warn(f"cannot read {path} in its cache of compiled kernels ({_text(error)}) and compiles that anew.")
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Save what was compiled for `signature`, where something can be saved."""
        folders, writable = _folders()
        if not writable:
            _warn(
                "found no writable folder for its compiled kernels and compiles them anew in every process (seconds)."
                " Set NUMBA_CACHE_DIR to a writable folder."
            )
            return
        name, origin = self._name_and_origin(signature, compiled.target_context)
        path = os.path.join(folders[-1], name)
        try:
            _write(path, origin, dumps(compiled._reduce()))
        except Exception as error:
            _warn(f"cannot save {path} in its cache of compiled kernels ({_text(error)}): later processes compile it.")

    def enable(self) -> None:
        """Nothing: the cache is always used."""

    def disable(self) -> None:
        """Nothing: the cache is always used."""

    def flush(self) -> None:
        """Nothing: entries of other sources are overwritten."""

    def _name_and_origin(self, signature: Any, target: Any) -> tuple[str, bytes]:
        """The name of the file, and what the machine code was made from: sources, too, which do not alter the name."""
        function = self._function
        closure = dumps(tuple(cell.cell_contents for cell in function.__closure__ or ()))
        key = repr((
            numba.__version__, llvmlite.__version__, _PYTHON, self._kind, tuple(map(str, signature)),
            target.codegen().magic_tuple(), hashlib.sha256(closure).hexdigest(),
        ))  # fmt: skip
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        file = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}-{digest}.nbc"
        return file.replace("<", "").replace(">", ""), f"{_stamp()} {key}".encode()


_KNOWS_NUMBA = _KNOWS_NUMBA and not getattr(_Cache, "__abstractmethods__", None)

_PYTHON = f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}"
_MAGIC = b"cvops kernel\n"


def _read(path: str, origin: bytes) -> bytes | None:
    """The data of the file, or None if it was made from something else than `origin`; ValueError if it is damaged."""
    with open(path, "rb") as file:
        content = file.read()
    magic, digests, data = content[: len(_MAGIC)], content[len(_MAGIC) :][:64], content[len(_MAGIC) + 64 :]
    if magic != _MAGIC or hashlib.sha256(digests[32:] + data).digest() != digests[:32]:
        raise ValueError("damaged")
    return data if digests[32:] == hashlib.sha256(origin).digest() else None


def _write(path: str, origin: bytes, data: bytes) -> None:
    """Put the file there as a whole: other processes see the old one or the new one."""
    made_from = hashlib.sha256(origin).digest()
    new = f"{path}.{uuid.uuid4().hex[:16]}"
    try:
        with open(new, "xb") as file:
            file.write(_MAGIC + hashlib.sha256(made_from + data).digest() + made_from + data)
        os.replace(new, path)
    except BaseException:
        if os.path.exists(new):
            os.unlink(new)
        raise


@functools.cache
def _folders() -> tuple[list[str], bool]:
    """The folders to read from, in this order, and whether the last can be written to.

    They are Numba's: NUMBA_CACHE_DIR, then beside the sources, then one of the user; none after the first that can be
    written to.
    """
    sources = os.path.dirname(os.path.abspath(__file__))
    name = f"{os.path.basename(sources)}_{hashlib.sha1(sources.encode()).hexdigest()}"
    candidates = [os.path.join(sources, "__pycache__"), os.path.join(AppDirs("numba", False).user_cache_dir, name)]
    if numba.config.CACHE_DIR:
        candidates.insert(0, os.path.join(numba.config.CACHE_DIR, name))
    folders = []
    for folder in candidates:
        try:
            os.makedirs(folder, exist_ok=True)
            folders.append(folder)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folders, True
    return folders, False


@functools.cache
def _stamp() -> str:
    """A digest of all sources of the backend: a kernel may use helpers, constants and options of any of its files."""
    digest = hashlib.sha256()
    package = __name__.rpartition(".")[0]
    for module in sorted(module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)):
        try:
            source = pkgutil.get_data(package, f"{module}.py")
        except OSError:  # installed without its sources
            source = pkgutil.get_data(package, f"{module}.pyc")
        digest.update(module.encode() + hashlib.sha256(source or b"").digest())
    return digest.hexdigest()


def _with_cache_of_numba(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # Numba found no folder that it may write to
        _warn(
            "found no writable folder for its compiled kernels and compiles them anew in every process (seconds)."
            " Set NUMBA_CACHE_DIR to a writable folder."
        )
        return numba.njit(function, **options)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


_warned = False


def _warn(what: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"cvops {what}", RuntimeWarning, stacklevel=2)
