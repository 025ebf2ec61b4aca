"""Pooling of regions of interest (RoIs): the public functions and their gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _arrays
from ._arrays import backend_of, to_caller
from ._checks import (
    as_sampling_ratio,
    check_boxes_of_images,
    check_grad,
    check_images,
    check_rois,
    flag,
    image_shape,
    pair,
    positive,
    working_dtype,
)
from ._with_options import WithOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, FloatT, Integer, Ints, Number, Rois


def roi_align(
    input: ArrayT,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
    aligned: bool = False,
) -> ArrayT:
    """Pool each region of interest into bins by averaging bilinear samples: RoIAlign of Mask R-CNN [1]_.

    Parameters
    ----------
    input : array of shape (N, C, H, W), float64 | float32 | float16, on a GPU also bfloat16
        Feature maps. Contiguous and channels-last layouts are both read where they lie.
    boxes : array of shape (K, 5), float64 | float32 | float16 | bfloat16, or list of N arrays of shape (L_i, 4)
        Rows ``image index, x1, y1, x2, y2`` in pixels of the image, or the corners alone, one array for each image.
    output_size : int >= 1 or (int, int)
        Height and width of the output, in bins.
    spatial_scale : float > 0
        Cells of the feature map for one pixel of the image.
    sampling_ratio : int
        Samples along each axis of a bin; 0 or less means ``ceil(RoI size / output size)`` along each axis.
    aligned : bool
        Shift the corners by half a cell to the left and up, so that they count from the centres of cells, and let RoIs
        be smaller than one cell. Detectron2's choice; False is that of older models.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width)
        Of the dtype, library and device of `input`, the RoIs of a list image after image.

    Raises
    ------
    TypeError
        An argument is not an array or a number as above, or has another dtype.
    ValueError
        A shape or number does not fit, an image index is not an integer in [0, N) (on a GPU, where no values are read
        back, such a RoI is NaN), or arrays are on different devices.

    See Also
    --------
    MultiScaleRoIAlign : RoIs of all sizes, each on the map of a pyramid that suits it.

    Notes
    -----
    A sample less than one cell outside the map takes the value of the border; one further out counts as 0. A RoI
    inverted or empty along an axis has no samples if `aligned` and `sampling_ratio` <= 0, and is 0. A RoI with a corner
    that is NaN or infinite, or with more than 65 536 samples along an axis of a bin, is NaN. Corners are limited to
    2**30 cells.

    Coordinates, weights and sums are float64 if an argument is float64, else float32. The result is the same for any
    number of threads.

    On a GPU nothing waits for the device.

    References
    ----------
    .. [1] K. He et al., "Mask R-CNN", ICCV 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> ramp = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    >>> cvops.roi_align(ramp, np.array([[0, 1, 1, 5, 5]], np.float32), 2)
    array([[[[14., 16.],
             [26., 28.]]]], dtype=float32)
    """
    if _arrays.cpu is not None:
        few: ArrayT | None = _arrays.cpu.lean_roi_align(
            input, boxes, output_size, spatial_scale, sampling_ratio, aligned
        )
        if few is not None:
            return few
    with backend_of(input=input, **named_boxes(boxes)) as backend:
        features, rois = _features_and_rois(input, boxes, backend)
        size, samples = pair(output_size, "output_size"), as_sampling_ratio(sampling_ratio, "sampling_ratio")
        scale = positive(spatial_scale, "spatial_scale")
        return to_caller(backend.roi_align(features, rois, size, scale, samples, flag(aligned, "aligned")), input)


def roi_align_backward(
    grad: ArrayT,
    boxes: Rois,
    input_shape: Sequence[Integer],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
    aligned: bool = False,
) -> ArrayT:
    """Gradient of `roi_align` with respect to its input.

    Parameters
    ----------
    grad : array of shape (K, C, PH, PW), float64 | float32 | float16, on a GPU also bfloat16
        Gradient with respect to the output of `roi_align`, of any strides; its shape tells the output size.
    boxes, spatial_scale, sampling_ratio, aligned
        As given to `roi_align`.
    input_shape : (int, int, int, int)
        Shape (N, C, H, W) of the input of `roi_align`.

    Returns
    -------
    gradient : array of shape `input_shape`
        Of the dtype, library and device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`; also if the shapes of `grad`, `boxes` and `input_shape` do not fit together.

    Notes
    -----
    A RoI that `roi_align` makes NaN contributes nothing. There is no gradient for boxes. Deterministic: the same bits
    in every run and for any number of threads. On a GPU nothing waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 0, 2, 2]], np.float32)
    >>> cvops.roi_align_backward(np.ones((1, 1, 1, 1), np.float32), boxes, (1, 1, 3, 3), sampling_ratio=1)
    array([[[[0., 0., 0.],
             [0., 1., 0.],
             [0., 0., 0.]]]], dtype=float32)
    """
    with backend_of(grad=grad, **named_boxes(boxes)) as backend:
        native, rois, shape = _grad_and_rois(grad, boxes, input_shape, backend, position_sensitive=False)
        scale, samples = positive(spatial_scale, "spatial_scale"), as_sampling_ratio(sampling_ratio, "sampling_ratio")
        return to_caller(
            backend.roi_align_backward(native, rois, shape, scale, samples, flag(aligned, "aligned")), grad
        )


# fmt: off
@overload
def roi_pool(
    input: ArrayT, boxes: Rois, output_size: Ints, spatial_scale: Number = ..., *, return_argmax: Literal[False] = ...
) -> ArrayT: ...
@overload
def roi_pool(
    input: NDArray[FloatT], boxes: Rois, output_size: Ints, spatial_scale: Number = ..., *, return_argmax: Literal[True]
) -> tuple[NDArray[FloatT], NDArray[np.int32]]: ...
@overload
def roi_pool(
    input: ArrayT, boxes: Rois, output_size: Ints, spatial_scale: Number = ..., *, return_argmax: Literal[True]
) -> tuple[ArrayT, ArrayT]: ...
@overload
def roi_pool(
    input: NDArray[FloatT], boxes: Rois, output_size: Ints, spatial_scale: Number = ..., *, return_argmax: bool
) -> NDArray[FloatT] | tuple[NDArray[FloatT], NDArray[np.int32]]: ...
@overload
def roi_pool(
    input: ArrayT, boxes: Rois, output_size: Ints, spatial_scale: Number = ..., *, return_argmax: bool
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
# fmt: on
def roi_pool(
    input: Array,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    *,
    return_argmax: bool = False,
) -> Any:
    """Pool each region of interest into bins by their maximum: RoI pooling of Fast R-CNN [1]_.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale
        As in `roi_align`.
    return_argmax : bool
        Return also where the maxima are, which `roi_pool_backward` needs.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width)
        Of the dtype, library and device of `input`.
    argmax : array of the same shape, int32
        With ``return_argmax=True``: index ``y * W + x`` of the first maximum of the bin, in rows from the top; -1 where
        there is none.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`.

    Notes
    -----
    Corners are multiplied by the scale and rounded to whole cells, halves away from zero; the last cell is inside.
    Neighbouring bins share a cell where the size does not divide. A bin without cells is 0. A bin with a NaN is NaN,
    and its argmax the first NaN. A RoI with a corner that is NaN or infinite is NaN. The result is the same for any
    number of threads. On a GPU nothing waits for the device.

    References
    ----------
    .. [1] R. Girshick, "Fast R-CNN", ICCV 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> ramp = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    >>> cvops.roi_pool(ramp, np.array([[0, 1, 1, 4, 4]], np.float32), 2)
    array([[[[14., 16.],
             [26., 28.]]]], dtype=float32)
    """
    if _arrays.cpu is not None and return_argmax is False:
        few = _arrays.cpu.lean_roi_pool(input, boxes, output_size, spatial_scale)
        if few is not None:
            return few
    with backend_of(input=input, **named_boxes(boxes)) as backend:
        features, rois = _features_and_rois(input, boxes, backend)
        size, scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        if not flag(return_argmax, "return_argmax"):
            return to_caller(backend.roi_pool(features, rois, size, scale, False), input)
        if features.shape[2] * features.shape[3] >= 1 << 31:
            raise ValueError(
                f"`input` must have fewer than 2**31 pixels in a plane for int32 argmax, got {features.shape}"
            )
        pooled, argmax = backend.roi_pool(features, rois, size, scale, True)
        return to_caller(pooled, input), to_caller(argmax, input)


def roi_pool_backward(
    grad: ArrayT, boxes: Rois, argmax: Array, input_shape: Sequence[Integer], spatial_scale: Number = 1.0
) -> ArrayT:
    """Gradient of `roi_pool` with respect to its input.

    Parameters
    ----------
    grad : array of shape (K, C, PH, PW), float64 | float32 | float16, on a GPU also bfloat16
        Gradient with respect to the output of `roi_pool`, of any strides.
    boxes, spatial_scale
        As given to `roi_pool`.
    argmax : array of shape (K, C, PH, PW), int32
        What `roi_pool` returned with ``return_argmax=True``.
    input_shape : (int, int, int, int)
        Shape (N, C, H, W) of the input of `roi_pool`.

    Returns
    -------
    gradient : array of shape `input_shape`
        Of the dtype, library and device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `roi_align_backward`; also if `argmax` has another dtype, or not the shape of `grad`.

    Notes
    -----
    The gradient of a bin goes to its maximum alone; an `argmax` outside the map, as -1, takes none. Deterministic: the
    same bits in every run and for any number of threads. On a GPU nothing waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> features, boxes = np.array([[[[1.0, 5.0, 2.0]]]]), np.array([[0.0, 0, 0, 2, 0]])
    >>> pooled, argmax = cvops.roi_pool(features, boxes, 1, return_argmax=True)
    >>> cvops.roi_pool_backward(np.ones_like(pooled), boxes, argmax, features.shape)
    array([[[[0., 1., 0.]]]])
    """
    with backend_of(grad=grad, **named_boxes(boxes), argmax=argmax) as backend:
        native, rois, shape = _grad_and_rois(grad, boxes, input_shape, backend, position_sensitive=False)
        native_argmax = backend.asarray(argmax, "argmax")
        if native_argmax.shape != native.shape:
            raise ValueError(f"`argmax` must have the shape of `grad`, {native.shape}, got {native_argmax.shape}")
        if native_argmax.dtype != "int32":
            raise TypeError(f"`argmax` must be int32, got {native_argmax.dtype}")
        scale = positive(spatial_scale, "spatial_scale")
        return to_caller(backend.roi_pool_backward(native, rois, native_argmax, shape, scale), grad)


def ps_roi_align(
    input: ArrayT,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
) -> ArrayT:
    """Position-sensitive RoIAlign of Light-Head R-CNN [1]_: `roi_align` with channels of its own for each bin.

    Parameters
    ----------
    input : array of shape (N, C * PH * PW, H, W), float64 | float32 | float16, on a GPU also bfloat16
        Feature maps, channels in order (output channel, bin row, bin column).
    boxes, output_size, spatial_scale, sampling_ratio
        As in `roi_align`.

    Returns
    -------
    pooled : array of shape (K, C, PH, PW)
        Of the dtype, library and device of `input`.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`; also if the number of channels is not a multiple of PH * PW.

    Notes
    -----
    Output (k, c, ph, pw) is what `roi_align` with ``aligned=True`` makes of channel ``(c * PH + ph) * PW + pw``, to the
    last edge: a RoI without size and with adaptive sampling is 0. On a GPU nothing waits for the device.

    References
    ----------
    .. [1] Z. Li et al., "Light-Head R-CNN: In Defense of Two-Stage Object Detector", arXiv:1711.07264.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> features = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1) * np.ones((6, 6), np.float32)
    >>> cvops.ps_roi_align(features, np.array([[0, 1, 1, 5, 5]], np.float32), 2)
    array([[[[0., 1.],
             [2., 3.]]]], dtype=float32)
    """
    with backend_of(input=input, **named_boxes(boxes)) as backend:
        features, rois = _features_and_rois(input, boxes, backend)
        size, samples = pair(output_size, "output_size"), as_sampling_ratio(sampling_ratio, "sampling_ratio")
        scale = positive(spatial_scale, "spatial_scale")
        _check_channels(features, size)
        return to_caller(backend.ps_roi_align(features, rois, size, scale, samples), input)


def ps_roi_align_backward(
    grad: ArrayT,
    boxes: Rois,
    input_shape: Sequence[Integer],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
) -> ArrayT:
    """Gradient of `ps_roi_align` with respect to its input.

    Parameters
    ----------
    grad : array of shape (K, C, PH, PW), float64 | float32 | float16, on a GPU also bfloat16
        Gradient with respect to the output of `ps_roi_align`, of any strides.
    boxes, spatial_scale, sampling_ratio
        As given to `ps_roi_align`.
    input_shape : (int, int, int, int)
        Shape (N, C * PH * PW, H, W) of the input of `ps_roi_align`.

    Returns
    -------
    gradient : array of shape `input_shape`
        Of the dtype, library and device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `roi_align_backward`.

    Notes
    -----
    As for `roi_align_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 0, 2, 2]], np.float32)
    >>> cvops.ps_roi_align_backward(np.ones((1, 1, 1, 1), np.float32), boxes, (1, 1, 2, 2), sampling_ratio=1)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]], dtype=float32)
    """
    with backend_of(grad=grad, **named_boxes(boxes)) as backend:
        native, rois, shape = _grad_and_rois(grad, boxes, input_shape, backend, position_sensitive=True)
        scale, samples = positive(spatial_scale, "spatial_scale"), as_sampling_ratio(sampling_ratio, "sampling_ratio")
        return to_caller(backend.ps_roi_align_backward(native, rois, shape, scale, samples), grad)


def ps_roi_pool(input: ArrayT, boxes: Rois, output_size: Ints, spatial_scale: Number = 1.0) -> ArrayT:
    """Position-sensitive RoI pooling of R-FCN [1]_: the average of each bin, from channels of its own.

    Parameters
    ----------
    input : array of shape (N, C * PH * PW, H, W), float64 | float32 | float16, on a GPU also bfloat16
        Feature maps, channels in order (output channel, bin row, bin column).
    boxes, output_size, spatial_scale
        As in `roi_align`.

    Returns
    -------
    pooled : array of shape (K, C, PH, PW)
        Of the dtype, library and device of `input`.

    Raises
    ------
    TypeError, ValueError
        As `ps_roi_align`.

    Notes
    -----
    Corners are multiplied by the scale and rounded to whole cells, halves away from zero; the last cell is outside. A
    bin without cells is 0. The last row and the last column of a map are never read: so it is in torchvision, whose
    results this keeps. A RoI with a corner that is NaN or infinite is NaN. The result is the same for any number of
    threads. On a GPU nothing waits for the device.

    References
    ----------
    .. [1] J. Dai et al., "R-FCN: Object Detection via Region-based Fully Convolutional Networks", NIPS 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> features = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1) * np.ones((6, 6), np.float32)
    >>> cvops.ps_roi_pool(features, np.array([[0, 1, 1, 5, 5]], np.float32), 2)
    array([[[[0., 1.],
             [2., 3.]]]], dtype=float32)
    """
    with backend_of(input=input, **named_boxes(boxes)) as backend:
        features, rois = _features_and_rois(input, boxes, backend)
        size, scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        _check_channels(features, size)
        return to_caller(backend.ps_roi_pool(features, rois, size, scale), input)


def ps_roi_pool_backward(
    grad: ArrayT, boxes: Rois, input_shape: Sequence[Integer], spatial_scale: Number = 1.0
) -> ArrayT:
    """Gradient of `ps_roi_pool` with respect to its input.

    Parameters
    ----------
    grad : array of shape (K, C, PH, PW), float64 | float32 | float16, on a GPU also bfloat16
        Gradient with respect to the output of `ps_roi_pool`, of any strides.
    boxes, spatial_scale
        As given to `ps_roi_pool`.
    input_shape : (int, int, int, int)
        Shape (N, C * PH * PW, H, W) of the input of `ps_roi_pool`.

    Returns
    -------
    gradient : array of shape `input_shape`
        Of the dtype, library and device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `roi_align_backward`.

    Notes
    -----
    The gradient of what `ps_roi_pool` computes: the last row and column take none. (torchvision spreads the gradient
    over pixels that its forward has not read.) Deterministic: the same bits in every run and for any number of threads.
    On a GPU nothing waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 0, 2, 2]], np.float32)
    >>> cvops.ps_roi_pool_backward(np.ones((1, 1, 1, 1), np.float32), boxes, (1, 1, 3, 3))
    array([[[[0.25, 0.25, 0.  ],
             [0.25, 0.25, 0.  ],
             [0.  , 0.  , 0.  ]]]], dtype=float32)
    """
    with backend_of(grad=grad, **named_boxes(boxes)) as backend:
        native, rois, shape = _grad_and_rois(grad, boxes, input_shape, backend, position_sensitive=True)
        scale = positive(spatial_scale, "spatial_scale")
        return to_caller(backend.ps_roi_pool_backward(native, rois, shape, scale), grad)


class RoIAlign(WithOptions):
    """`roi_align` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale, sampling_ratio, aligned
        As in `roi_align`, which checks them at each call.

    Examples
    --------
    >>> import cvops
    >>> cvops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=2)
    RoIAlign(output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=False)
    """

    output_size: Ints
    spatial_scale: Number
    sampling_ratio: Integer
    aligned: bool

    def __init__(
        self, output_size: Ints, spatial_scale: Number, sampling_ratio: Integer, aligned: bool = False
    ) -> None:
        vars(self).update(output_size=output_size, spatial_scale=spatial_scale)
        vars(self).update(sampling_ratio=sampling_ratio, aligned=aligned)

    def __call__(self, input: ArrayT, rois: Rois) -> ArrayT:
        """Return what `roi_align` does."""
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


class RoIPool(WithOptions):
    """`roi_pool` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale
        As in `roi_pool`, which checks them at each call.

    Examples
    --------
    >>> import cvops
    >>> cvops.RoIPool((7, 7), spatial_scale=0.25)
    RoIPool(output_size=(7, 7), spatial_scale=0.25)
    """

    output_size: Ints
    spatial_scale: Number

    def __init__(self, output_size: Ints, spatial_scale: Number) -> None:
        vars(self).update(output_size=output_size, spatial_scale=spatial_scale)

    def __call__(self, input: ArrayT, rois: Rois) -> ArrayT:
        """Return what `roi_pool` does."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class PSRoIAlign(WithOptions):
    """`ps_roi_align` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale, sampling_ratio
        As in `ps_roi_align`, which checks them at each call.

    Examples
    --------
    >>> import cvops
    >>> cvops.PSRoIAlign(7, spatial_scale=0.0625, sampling_ratio=-1)
    PSRoIAlign(output_size=7, spatial_scale=0.0625, sampling_ratio=-1)
    """

    output_size: Ints
    spatial_scale: Number
    sampling_ratio: Integer

    def __init__(self, output_size: Ints, spatial_scale: Number, sampling_ratio: Integer) -> None:
        vars(self).update(output_size=output_size, spatial_scale=spatial_scale, sampling_ratio=sampling_ratio)

    def __call__(self, input: ArrayT, rois: Rois) -> ArrayT:
        """Return what `ps_roi_align` does."""
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)


class PSRoIPool(WithOptions):
    """`ps_roi_pool` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale
        As in `ps_roi_pool`, which checks them at each call.

    Examples
    --------
    >>> import cvops
    >>> cvops.PSRoIPool(7, spatial_scale=0.0625)
    PSRoIPool(output_size=7, spatial_scale=0.0625)
    """

    output_size: Ints
    spatial_scale: Number

    def __init__(self, output_size: Ints, spatial_scale: Number) -> None:
        vars(self).update(output_size=output_size, spatial_scale=spatial_scale)

    def __call__(self, input: ArrayT, rois: Rois) -> ArrayT:
        """Return what `ps_roi_pool` does."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)


def named_boxes(boxes: Any) -> dict[str, Any]:
    """The arrays of `boxes`, which may be a list of them, by the names that errors give them."""
    if isinstance(boxes, (list, tuple)):
        return {f"boxes[{i}]": array for i, array in enumerate(boxes)}
    return {"boxes": boxes}


def rois_of(boxes: Any, images: int, like: Any, backend: Any) -> Any:
    """`boxes` as RoIs (K, 5) that the backend takes, checked. `like` is an array whose precision a list takes part in.

    A list stays one on the CPU, which need not have all RoIs at once.
    """
    if not isinstance(boxes, (list, tuple)):
        rois = backend.asarray(boxes, "boxes")
        check_rois(rois, "boxes", 5)
        return rois
    check_boxes_of_images(boxes, images)
    natives = [backend.asarray(array, name) for name, array in named_boxes(boxes).items()]
    for i, native in enumerate(natives):
        check_rois(native, f"boxes[{i}]", 4)
    # In working precision, because float16 would not hold the index of every image.
    return backend.rois_of_images(natives, working_dtype(like, *natives))


def _features_and_rois(input: Any, boxes: Any, backend: Any) -> tuple[Any, Any]:
    """(native input, native RoIs), checked."""
    features = backend.asarray(input, "input")
    check_images(features, "input")
    return features, rois_of(boxes, len(features), features, backend)


def _grad_and_rois(
    grad: Any, boxes: Any, input_shape: Any, backend: Any, *, position_sensitive: bool
) -> tuple[Any, Any, tuple[int, int, int, int]]:
    """(native gradient, native RoIs, input shape), checked."""
    native = backend.asarray(grad, "grad")
    shape = image_shape(input_shape, "input_shape")
    rois = rois_of(boxes, shape[0], native, backend)
    bins = math.prod(native.shape[2:]) if position_sensitive else 1
    check_grad(native, "grad", len(rois), shape[1] / max(bins, 1))
    return native, rois, shape


def _check_channels(features: Any, size: tuple[int, int]) -> None:
    if features.shape[1] % (size[0] * size[1]):
        text = f"`input` must have a multiple of {size[0]} * {size[1]} channels, got {features.shape}"
        raise ValueError(text)
