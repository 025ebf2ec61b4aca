"""Parameters of layers: NumPy arrays by torchvision's names, which go out and in as state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._arrays import backend_of
from ._checks import FLOATS, check_dtype, kind, strings

if TYPE_CHECKING:
    from ._types import Array, Floats


class Parameters:
    """What layers with parameters have in common."""

    def __init__(self, parameters: dict[str, Floats]) -> None:
        self._parameters = parameters
        self._uploaded: dict[Any, Any] = {}  # on GPUs, by (name, dtype, device)

    def state_dict(self) -> dict[str, Floats]:
        """Return copies of the parameters.

        Returns
        -------
        state_dict : dict of str to numpy.ndarray
            By torchvision's names, in its order.
        """
        return {name: array.copy() for name, array in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Array], prefix: str = "") -> None:
        """Replace all parameters by copies of the arrays in a state dict.

        Parameters
        ----------
        state_dict : mapping of str to array, float64 | float32 | float16
            Arrays of any library, by the names that `state_dict` returns.
        prefix : str
            What stands before these names. Names that begin otherwise belong to something else and are left alone.

        Raises
        ------
        TypeError
            `state_dict` is no mapping, or a value is not an array of such a dtype.
        ValueError
            Names are missing or unexpected (both are listed), or a shape does not fit. No parameter has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"`state_dict` must be a dict of arrays by name, got {kind(state_dict)}")
        if not isinstance(prefix, str):
            raise TypeError(f"`prefix` must be a str, got {kind(prefix)}")
        strings(state_dict, "state_dict")
        names: dict[str, str] = {}  # parameter -> its name in the state dict
        for name in state_dict:
            if name.startswith(prefix):
                parameter = self._current_name(name.removeprefix(prefix))
                if parameter in names:
                    older, newer = sorted((names[parameter], name), key=len)
                    raise ValueError(f"`state_dict` must hold `{older}` or `{newer}`, got both")
                names[parameter] = name
        missing = [prefix + parameter for parameter in self._parameters if parameter not in names]
        unexpected = [name for parameter, name in names.items() if parameter not in self._parameters]
        if missing or unexpected:
            raise ValueError(
                f"`state_dict` does not fit: missing {', '.join(missing) or 'none'};"
                f" unexpected {', '.join(unexpected) or 'none'}"
            )
        loaded = {}
        for parameter, old in self._parameters.items():
            name = names[parameter]
            with backend_of(**{name: state_dict[name]}) as backend:
                array = backend.asarray(state_dict[name], name)
                check_dtype(array, name, FLOATS)
                if array.shape != old.shape:
                    raise ValueError(f"`{name}` must have shape {old.shape}, got {array.shape}")
                loaded[parameter] = backend.to_host(array)
        self._parameters, self._uploaded = loaded, {}

    def _native(self, name: str, dtype: Any, backend: Any) -> Any:
        """The parameter in `dtype` on the current device; a copy on a GPU is made once and kept."""
        device = backend.current_gpu()
        if device is None:
            return self._parameters[name].astype(dtype, copy=False)
        key = name, str(dtype), device
        if key not in self._uploaded:
            self._uploaded[key] = backend.upload(self._parameters[name].astype(dtype, copy=False))
        return self._uploaded[key]

    def _current_name(self, name: str) -> str:
        """The name of a parameter that an older state dict calls `name`."""
        return name


def generator(rng: Any) -> Any:
    """`rng` as a numpy.random.Generator: a new one for None."""
    import numpy as np

    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"`rng` must be a numpy.random.Generator, got {kind(rng)}")
    return rng


def uniform(rng: Any, bound: float, shape: tuple[int, ...]) -> Any:
    """Random float32 from -bound to bound."""
    return rng.uniform(-bound, bound, shape).astype("f")
