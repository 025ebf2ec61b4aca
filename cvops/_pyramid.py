"""Feature pyramids: the network that makes them of the maps of a backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._arrays import backend_of, to_caller
from ._checks import check_same_dtype, count, flag, kind, working_dtype
from ._parameters import Parameters, generator, uniform

if TYPE_CHECKING:
    import numpy as np

    from ._types import ArrayT, Integer


class FeaturePyramidNetwork(Parameters):
    """Feature maps of several scales, each enriched by the coarser ones: a feature pyramid network [1]_.

    Called with a dict of maps, from fine to coarse; returns a dict of as many maps of `out_channels` channels, and
    those of the extra block. Its parameters are those of torchvision's class of this name.

    Parameters
    ----------
    in_channels_list : sequence of int >= 1
        Channels of each map, in their order.
    out_channels : int >= 1
        Channels of each result.
    extra_blocks : LastLevelMaxPool | LastLevelP6P7, optional
        What adds coarser maps.
    rng : numpy.random.Generator, optional
        Source of the initial weights, uniform (Kaiming). By default a new one. Biases begin with 0.
    exact : bool, default False
        Whether to compute every 3x3 convolution directly on the CPU: more slowly; see the notes.

    Raises
    ------
    TypeError, ValueError
        A number of channels is not an integer or is too small, or `extra_blocks` is something else.

    See Also
    --------
    MultiScaleRoIAlign : to pool boxes from the result.

    Notes
    -----
    A 1x1 convolution brings each map to `out_channels`. From coarse to fine, each is added to the next finer one,
    enlarged to its size by repeating the nearest pixel. A 3x3 convolution of each sum is its result.

    On the CPU, where it computes in float32, and from 16 channels and 256 pixels up, that is Winograd's method [2]_,
    which takes about half the time of the direct sum. The error of both is up to 3e-6 of the largest result. Pixels are
    computed in tiles of 4x4: a NaN, an infinity or a number beyond 1e36 can make all pixels of its tile, and of those
    next to it, NaN or infinite. With `exact` the direct sum is computed, where it reaches the eight neighbours.

    Parameters are float32 `numpy.ndarray` under torchvision's names: ``inner_blocks.0.0.weight``,
    ``layer_blocks.0.0.bias``, ``extra_blocks.p6.weight``, ... `load_state_dict` also takes the names of older
    checkpoints, ``inner_blocks.0.weight``. They are used in the dtype of the maps; 16-bit maps are computed in float32.
    A call on a GPU uploads them once for each GPU and dtype, and keeps the copies until `load_state_dict`; a CUDA graph
    reads these copies, and has to be captured anew then. Nothing waits for the device. For torch tensors a convolution
    is torch's own, which by default shortens float32 to TF32: results are then off by about 1e-3 of the largest. They
    are not with ``torch.backends.cudnn.allow_tf32 = False``.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    .. [2] A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> maps = {"fine": np.ones((1, 8, 12, 16), np.float32), "coarse": np.ones((1, 16, 6, 8), np.float32)}
    >>> pyramid = cvops.FeaturePyramidNetwork([8, 16], 4, cvops.LastLevelMaxPool())
    >>> {name: map.shape for name, map in pyramid(maps).items()}
    {'fine': (1, 4, 12, 16), 'coarse': (1, 4, 6, 8), 'pool': (1, 4, 3, 4)}
    """

    def __init__(
        self,
        in_channels_list: Sequence[Integer],
        out_channels: Integer,
        extra_blocks: LastLevelMaxPool | LastLevelP6P7 | None = None,
        *,
        rng: np.random.Generator | None = None,
        exact: bool = False,
    ) -> None:
        if extra_blocks is not None and not isinstance(extra_blocks, LastLevelMaxPool | LastLevelP6P7):
            raise TypeError(f"`extra_blocks` must be LastLevelMaxPool, LastLevelP6P7 or None, got {kind(extra_blocks)}")
        if not isinstance(in_channels_list, (tuple, list)):
            raise TypeError(f"`in_channels_list` must be a list of integers, got {kind(in_channels_list)}")
        self._in_channels = [count(channels, "in_channels_list", 1) for channels in in_channels_list]
        if not self._in_channels:
            raise ValueError("`in_channels_list` must hold at least one number, got none")
        self._extra_blocks = extra_blocks
        self._exact = flag(exact, "exact")
        self._out_channels = outputs = count(out_channels, "out_channels", 1)
        rng = generator(rng)
        parameters: dict[str, Any] = {}
        for level, channels in enumerate(self._in_channels):
            parameters |= _convolution(f"inner_blocks.{level}.0", outputs, channels, 1, rng)
        for level in range(len(self._in_channels)):
            parameters |= _convolution(f"layer_blocks.{level}.0", outputs, outputs, 3, rng)
        if isinstance(extra_blocks, LastLevelP6P7):
            source = outputs if extra_blocks.in_channels == extra_blocks.out_channels else self._in_channels[-1]
            if extra_blocks.in_channels != source:
                raise ValueError(
                    f"`extra_blocks` must be a LastLevelP6P7 of in_channels {source}, got {extra_blocks.in_channels}"
                )
            for name, channels in (("p6", extra_blocks.in_channels), ("p7", extra_blocks.out_channels)):
                parameters |= _convolution(f"extra_blocks.{name}", extra_blocks.out_channels, channels, 3, rng)
        super().__init__(parameters)

    def __repr__(self) -> str:
        extra = "" if self._extra_blocks is None else f", {self._extra_blocks!r}"
        exact = ", exact=True" if self._exact else ""
        return f"FeaturePyramidNetwork({self._in_channels}, {self._out_channels}{extra}{exact})"

    def __call__(self, maps: Mapping[str, ArrayT]) -> dict[str, ArrayT]:
        """Return the pyramid of `maps`.

        Parameters
        ----------
        maps : mapping of str to array of shape (N, C, H, W), float64 | float32 | float16
            From fine to coarse, C as in `in_channels_list`; N and the dtype are the same in all of them.

        Returns
        -------
        pyramid : dict of str to array of shape (N, out_channels, H, W)
            Under the names of `maps`, in their order, then those of the extra block: ``pool``, or ``p6`` and ``p7``.
            Arrays of the library, of the dtype and on the device of the first map.

        Raises
        ------
        TypeError
            `maps` is no mapping, or a map is not an array or has another dtype.
        ValueError
            The number of maps or a shape does not fit, or the maps are on different devices.
        """
        if not isinstance(maps, Mapping):
            raise TypeError(f"`maps` must be a dict of arrays by name, got {kind(maps)}")
        if len(maps) != len(self._in_channels):
            raise ValueError(f"`maps` must hold {len(self._in_channels)} maps, got {len(maps)}")
        taken = [name for name in (self._extra_blocks.names if self._extra_blocks else ()) if name in maps]
        if taken:
            raise ValueError(f"`maps` must not hold {', '.join(taken)}, which the extra block adds")
        arguments = {f"maps[{name!r}]": array for name, array in maps.items()}
        with backend_of(**arguments) as backend:
            arrays = {name: backend.asarray(array, name) for name, array in arguments.items()}
            check_same_dtype(arrays)
            first, *_ = native = list(arrays.values())
            for (name, array), channels in zip(arrays.items(), self._in_channels, strict=True):
                if array.ndim != 4 or array.shape[:2] != (len(first), channels) or 0 in array.shape[2:]:
                    raise ValueError(f"`{name}` must have shape ({len(first)}, {channels}, H, W), got {array.shape}")
            working, like = working_dtype(first), next(iter(maps.values()))
            native = [array.astype(working, copy=False) for array in native]

            def convolve(name: str, array: Any, stride: int = 1) -> Any:
                weight, bias = (self._native(f"{name}.{part}", working, backend) for part in ("weight", "bias"))
                padding = weight.shape[2] // 2
                return backend.conv2d(array, weight, bias, (stride, stride), (padding, padding), self._exact)

            results: list[Any] = []
            merged = None
            for level in reversed(range(len(native))):
                lateral = convolve(f"inner_blocks.{level}.0", native[level])
                merged = lateral if merged is None else _add_enlarged(lateral, merged, backend)
                results.insert(0, convolve(f"layer_blocks.{level}.0", merged))
            names = [*maps]
            if self._extra_blocks is not None:
                names += self._extra_blocks.names
                results += self._extra_blocks._results(results[-1], native[-1], convolve, backend.xp)
            with backend.ignore_fp_errors():
                results = [_finished(result, first.dtype, backend) for result in results]
            return {name: to_caller(result, like) for name, result in zip(names, results, strict=True)}

    def _current_name(self, name: str) -> str:
        return re.sub(r"^(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)$", r"\1.\2.0.\3", name)


class LastLevelMaxPool:
    """Extra block of a `FeaturePyramidNetwork`: every second row and column of the coarsest result, as ``pool``.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> pyramid = cvops.FeaturePyramidNetwork([8], 4, cvops.LastLevelMaxPool())
    >>> pyramid({"map": np.ones((1, 8, 9, 16), np.float32)})["pool"].shape
    (1, 4, 5, 8)
    """

    names = ("pool",)

    def __repr__(self) -> str:
        return "LastLevelMaxPool()"

    def _results(self, coarsest_result: Any, coarsest_map: Any, convolve: Any, xp: Any) -> list[Any]:
        return [coarsest_result[:, :, ::2, ::2]]


class LastLevelP6P7:
    """Extra block of a `FeaturePyramidNetwork`: two coarser maps, ``p6`` and ``p7``, by 3x3 convolutions of stride 2.

    Parameters
    ----------
    in_channels : int >= 1
        If equal to `out_channels`, p6 is computed from the coarsest result, else from the coarsest map given, of which
        it then is the number of channels.
    out_channels : int >= 1
        Channels of p6 and p7.

    Raises
    ------
    TypeError, ValueError
        A number is not an integer or is too small.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> pyramid = cvops.FeaturePyramidNetwork([8], 4, cvops.LastLevelP6P7(4, 4))
    >>> {name: map.shape for name, map in pyramid({"p5": np.ones((1, 8, 9, 16), np.float32)}).items()}
    {'p5': (1, 4, 9, 16), 'p6': (1, 4, 5, 8), 'p7': (1, 4, 3, 4)}
    """

    names = ("p6", "p7")

    def __init__(self, in_channels: Integer, out_channels: Integer) -> None:
        self.in_channels = count(in_channels, "in_channels", 1)
        self.out_channels = count(out_channels, "out_channels", 1)

    def __repr__(self) -> str:
        return f"LastLevelP6P7({self.in_channels}, {self.out_channels})"

    def _results(self, coarsest_result: Any, coarsest_map: Any, convolve: Any, xp: Any) -> list[Any]:
        source = coarsest_result if self.in_channels == self.out_channels else coarsest_map
        p6 = convolve("extra_blocks.p6", source, 2)
        return [p6, convolve("extra_blocks.p7", xp.maximum(p6, 0), 2)]


def _convolution(name: str, outputs: int, channels: int, size: int, rng: Any) -> dict[str, Any]:
    """The initial weight (Kaiming uniform) and bias of a square convolution, by name."""
    shape = (outputs, channels, size, size)
    weight = uniform(rng, (3 / math.prod(shape[1:])) ** 0.5, shape)
    return {f"{name}.weight": weight, f"{name}.bias": weight[:, 0, 0, 0] * 0}


def _add_enlarged(fine: Any, coarse: Any, backend: Any) -> Any:
    """`fine` plus `coarse` at its size: a new array if it has to be, else `fine` itself."""
    xp = backend.xp
    rows, columns = (_nearest(fine.shape[axis], coarse.shape[axis], xp) for axis in (2, 3))
    with backend.ignore_fp_errors():
        fine += xp.take(xp.take(coarse, columns, 3), rows, 2)
    return fine


def _nearest(size: int, source: int, xp: Any) -> Any:
    """Index of the source for each index of the size, rounded as torch does: the ratio is a float32."""
    if size in (source, 2 * source):
        return xp.arange(size) * source // size
    scaled = xp.floor(xp.arange(size, dtype="f") * xp.float32(source / size))
    return xp.minimum(scaled.astype("q"), source - 1)


def _finished(result: Any, dtype: Any, backend: Any) -> Any:
    """A result in the dtype of the maps, contiguous."""
    if result.dtype == dtype and result.flags.c_contiguous:
        return result
    return backend.copy(result.astype(dtype, copy=False))
