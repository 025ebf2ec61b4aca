"""Feature pyramids: pooling from the level that suits the size of each box, and the network that makes them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import backend_of, to_caller
from ._checks import (
    check_grad,
    check_images,
    check_same_dtype,
    count,
    flag,
    image_size,
    kind,
    numbers,
    pair,
    positive,
    ratio,
    strings,
    working_dtype,
)
from ._parameters import Parameters, generator, uniform
from ._roi import named_boxes, rois_of

if TYPE_CHECKING:
    import numpy as np

    from ._types import Array, ArrayT, Integer, Ints, Number, Rois


@dataclass(frozen=True, repr=False)
class MultiScaleRoIAlign:
    """Pool each box from one map of a feature pyramid, chosen by the size of the box [1]_: roi_align for an FPN.

    Parameters
    ----------
    featmap_names : sequence of str
        Names of the maps to pool from, in any order.
    output_size : int >= 1 or (int, int)
        Height and width of the output, in bins.
    sampling_ratio : int
        Samples along each axis of a bin; 0 or less means ``ceil(RoI size / output size)`` along each axis.
    canonical_scale, canonical_level : int
        A box of ``canonical_scale`` x ``canonical_scale`` pixels is pooled from level ``canonical_level``, the one of
        scale ``2 ** -canonical_level``.
    aligned : bool
        As in `roi_align`.
    scales : sequence of float, optional
        Cells per pixel of each map, in the order of `featmap_names`. By default every call takes them from the sizes
        of the maps and of the images, as powers of 2.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> pool = cvops.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    >>> features = {"p2": np.zeros((1, 8, 64, 64), np.float32), "p3": np.zeros((1, 8, 32, 32), np.float32)}
    >>> boxes = [np.array([[0, 0, 20, 30], [5, 5, 250, 250]], np.float32)]
    >>> pool(features, boxes, image_shapes=[(256, 256)]).shape
    (2, 8, 7, 7)

    Notes
    -----
    The level of a box is ``floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6)``, no finer or coarser
    than the levels there are; if just that level is missing, it is the next coarser one. A box whose area is zero,
    negative or NaN is pooled from the finest level. Of maps of one scale the first named takes the boxes. All levels
    are pooled in one go into one result. The result is the same for any number of threads. On a GPU: one launch for up
    to four maps, two for their gradients; nothing waits for the device.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    featmap_names: Sequence[str]
    output_size: Ints
    sampling_ratio: Integer
    _: KW_ONLY
    canonical_scale: Number = 224
    canonical_level: Integer = 4
    aligned: bool = False
    scales: Sequence[Number] | None = None

    def __repr__(self) -> str:
        required = f"featmap_names={self.featmap_names!r}, output_size={pair(self.output_size, 'output_size')}"
        options = [
            f", {option.name}={getattr(self, option.name)!r}"
            for option in fields(self)
            if option.kw_only and getattr(self, option.name) != option.default
        ]
        return f"MultiScaleRoIAlign({required}, sampling_ratio={self.sampling_ratio}{''.join(options)})"

    def __call__(
        self, features: Mapping[str, ArrayT], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> ArrayT:
        """Pool every box.

        Parameters
        ----------
        features : dict of arrays of shape (N, C, H, W), float64 | float32 | float16
            The maps, all of one dtype, N and C. Those that `featmap_names` does not name are left alone.
        boxes : list of N arrays of shape (L_i, 4), float64 | float32 | float16, or array of shape (K, 5)
            Corners ``x1, y1, x2, y2`` in pixels of the images, or these after the image index.
        image_shapes : list of (int, int)
            Height and width of each image, before any padding to the shape of the batch. Not used if `scales` is given.

        Returns
        -------
        pooled : array of shape (K, C, output height, output width)
            The boxes of the first image, of the second, ...; of the dtype, library and device of the maps.

        Raises
        ------
        KeyError
            `features` lacks a map.
        TypeError, ValueError
            As `roi_align`; also if the maps do not fit together, or there is no image shape.
        """
        given = self._maps(features)
        with backend_of(**given, **named_boxes(boxes)) as backend:
            pyramid = self._pyramid(given, boxes, image_shapes, backend)
            pooled = backend.multiscale_roi_align(
                pyramid.maps,
                pyramid.rois,
                pair(self.output_size, "output_size"),
                pyramid.scales,
                pyramid.area_limits,
                ratio(self.sampling_ratio, "sampling_ratio"),
                flag(self.aligned, "aligned"),
            )
            return to_caller(pooled, features[pyramid.names[0]])

    def backward(
        self, grad: ArrayT, features: Mapping[str, Array], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> dict[str, ArrayT]:
        """Gradients with respect to the maps, given the gradient with respect to the pooled boxes.

        Parameters
        ----------
        grad : array of shape (K, C, PH, PW), float64 | float32 | float16
            Of any strides.
        features, boxes, image_shapes
            As in the call. Of the maps only the shapes and the dtype matter.

        Returns
        -------
        gradients : dict of arrays
            For each name in `featmap_names` an array of the shape of the map and the dtype of `grad`.

        Raises
        ------
        KeyError, TypeError, ValueError
            As the call; also if the shape of `grad` does not fit.

        Notes
        -----
        Deterministic: the same bits in every run and for any number of threads.
        """
        given = self._maps(features)
        with backend_of(**given, **named_boxes(boxes), grad=grad) as backend:
            pyramid = self._pyramid(given, boxes, image_shapes, backend)
            native = backend.asarray(grad, "grad")
            size = pair(self.output_size, "output_size")
            check_grad(native, "grad", len(pyramid.rois), pyramid.maps[0].shape[1], size)
            gradients = backend.multiscale_roi_align_backward(
                native,
                pyramid.rois,
                [array.shape for array in pyramid.maps],
                pyramid.scales,
                pyramid.area_limits,
                ratio(self.sampling_ratio, "sampling_ratio"),
                flag(self.aligned, "aligned"),
            )
            by_name = dict(zip(pyramid.names, gradients, strict=True))
            return {name: to_caller(by_name[name], grad) for name in self.featmap_names}

    def _maps(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """The maps to pool from, by the names that errors give them."""
        names = strings(self.featmap_names, "featmap_names")
        if not isinstance(features, Mapping):
            raise TypeError(f"`features` must be a dict of arrays by name, got {kind(features)}")
        missing = [name for name in names if name not in features]
        if missing or not names:
            raise KeyError(f"`features` must have {missing or 'a map to pool from'}, got {list(features)}")
        return {f"features[{name!r}]": features[name] for name in names}

    def _pyramid(
        self, given: dict[str, Any], boxes: Any, image_shapes: Sequence[Sequence[Integer]], backend: Any
    ) -> _Pyramid:
        maps = [backend.asarray(array, name) for name, array in given.items()]
        for name, array in zip(given, maps, strict=True):
            check_images(array, name)
            if array.shape[:2] != maps[0].shape[:2]:
                one = next(iter(given))
                raise ValueError(f"`{one}` and `{name}` must agree in N and C, got {maps[0].shape} and {array.shape}")
            if array.dtype != maps[0].dtype:
                raise TypeError(f"`{name}` must be {maps[0].dtype} as `{next(iter(given))}`, got {array.dtype}")
        rois = rois_of(boxes, len(maps[0]), maps[0], backend)
        dtype = working_dtype(maps[0], rois)

        scales = self._scales([array.shape[2] for array in maps], image_shapes)
        order = sorted(range(len(maps)), key=lambda i: -scales[i])  # maps of one scale stay in the order of their names
        scales = [scales[i] for i in order]
        canonical_scale = positive(self.canonical_scale, "canonical_scale")
        canonical_level = count(self.canonical_level, "canonical_level", -(2**31))
        # Maps of one scale have one limit, so that no area lies between them; no area reaches NaN.
        limits = [
            _least_area(math.floor(-math.log2(scale)) + 1, canonical_scale, canonical_level, dtype)
            if scale > scales[-1]
            else math.nan
            for scale in scales[:-1]
        ]
        return _Pyramid(
            [self.featmap_names[i] for i in order],
            [maps[i] for i in order],
            backend.asarray(rois.astype(dtype, copy=False), "boxes"),
            scales,
            limits,
        )

    def _scales(self, heights: list[int], image_shapes: Sequence[Sequence[Integer]]) -> list[float]:
        """Cells per pixel of maps with these heights, in the order of `featmap_names`."""
        if self.scales is not None:
            scales = [positive(scale, "scales") for scale in numbers(self.scales, "scales")]
            if len(scales) != len(heights):
                text = f"`scales` must have one number for each of {list(self.featmap_names)}, got {len(scales)}"
                raise ValueError(text)
            return scales
        if not isinstance(image_shapes, (tuple, list)):
            raise TypeError(f"`image_shapes` must be a list of (height, width), got {kind(image_shapes)}")
        if not image_shapes:
            raise ValueError("`image_shapes` must have at least one (height, width)")
        tallest = max(image_size(shape, "image_shapes")[0] for shape in image_shapes)
        return [2.0 ** round(math.log2(height / tallest)) for height in heights]


class _Pyramid(NamedTuple):
    """Native arguments of a call, checked, from the finest map to the coarsest."""

    names: list[str]
    maps: list[Any]
    rois: Any
    scales: list[float]
    area_limits: list[float]  # smallest area of a box that is pooled from the second map, from the third, ...


@functools.lru_cache(maxsize=256)
def _least_area(level: int, canonical_scale: float, canonical_level: int, dtype: str) -> float:
    """Return the smallest area of a box of this level, by the formula of the class computed in this precision.

    Comparing areas with it decides as the formula does, rounding included, on every processor.
    """
    import numpy as np

    real, bits = (np.float64, np.int64) if dtype == "d" else (np.float32, np.int32)

    def level_of(area: Any) -> Any:
        with np.errstate(all="ignore"):
            side = np.sqrt(area) / real(canonical_scale)
            octaves = real(math.log2(side)) if side > 0 else real(-math.inf)
            return np.floor((real(canonical_level) + octaves) + real(1e-6))

    low, high = 1, int(real(math.inf).view(bits))  # positive floats are in the order of their bits
    while low < high:
        middle = (low + high) // 2
        if level_of(bits(middle).view(real)) >= level:
            high = middle
        else:
            low = middle + 1
    return float(bits(low).view(real))


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

    Parameters are float32 `numpy.ndarray` under torchvision's names: ``inner_blocks.0.0.weight``,
    ``layer_blocks.0.0.bias``, ``extra_blocks.p6.weight``, ... `load_state_dict` also takes the names of older
    checkpoints, ``inner_blocks.0.weight``. They are used in the dtype of the maps; 16-bit maps are computed in float32.
    A call on a GPU uploads them once for each GPU and dtype, and keeps the copies until `load_state_dict`. There a
    convolution is one launch, and two more for each tile of its output, one of them a product by cuBLAS; nothing waits.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

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
    ) -> None:
        if extra_blocks is not None and not isinstance(extra_blocks, LastLevelMaxPool | LastLevelP6P7):
            raise TypeError(f"`extra_blocks` must be LastLevelMaxPool, LastLevelP6P7 or None, got {kind(extra_blocks)}")
        if not isinstance(in_channels_list, (tuple, list)):
            raise TypeError(f"`in_channels_list` must be a list of integers, got {kind(in_channels_list)}")
        self._in_channels = [count(channels, "in_channels_list", 1) for channels in in_channels_list]
        if not self._in_channels:
            raise ValueError("`in_channels_list` must hold at least one number, got none")
        self._extra_blocks = extra_blocks
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
        return f"FeaturePyramidNetwork({self._in_channels}, {self._out_channels}{extra})"

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
                return backend.conv2d(array, weight, bias, (stride, stride), (padding, padding))

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
            with backend.quiet():
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
    with backend.quiet():
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
