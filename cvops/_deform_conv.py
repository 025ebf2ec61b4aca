"""Deformable convolution: the public functions, and the layer that holds a weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

from ._arrays import backend_of, to_caller
from ._checks import (
    FLOATS,
    check_dtype,
    check_floats,
    check_same_dtype,
    check_shape,
    count,
    flag,
    one_of,
    pair,
    strings,
)
from ._parameters import Parameters, generator, uniform

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, Floats, FloatT, Gradient, Gradients, Integer, Ints, SomeGradients

GRADIENTS: tuple[Gradient, ...] = ("input", "offset", "weight", "bias", "mask")
_OFFSET = "N, 2 * G * kh * kw, OH, OW"


def deform_conv2d(
    input: ArrayT,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
) -> ArrayT:
    """Convolution whose taps read at offsets from their regular places [1]_, weighted by a mask in version 2 [2]_.

    Parameters
    ----------
    input : array of shape (N, C, H, W), float64 | float32 | float16
        Images or feature maps.
    offset : array of shape (N, 2 * G * kh * kw, OH, OW), float64 | float32 | float16
        How far from its regular place each tap reads, in input pixels, as (y, x) pairs: channel
        ``2 * (g * kh * kw + i * kw + j)`` is y of tap (i, j) for the g-th of G groups of C / G input channels, and the
        channel after it is x. G follows from the shape.
    weight : array of shape (O, C / groups, kh, kw), dtype of `input`
        The number of groups follows from the shape.
    bias : array of shape (O,), dtype of `input`, optional
        Added to each output channel.
    stride, dilation : int >= 1 or two of them, height first
        Steps in input pixels from one output pixel to the next, and from one tap to the next.
    padding : int >= 0 or two of them, height first
        Rows and columns of zeros around the input.
    mask : array of shape (N, G * kh * kw, OH, OW), float64 | float32 | float16, optional
        Factors of the samples, in the order of `offset`.

    Returns
    -------
    output : array of shape (N, O, OH, OW), dtype of `input`
        With ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, likewise OW. An array of the library
        and on the device of `input`.

    Raises
    ------
    TypeError
        An argument is not an array or has another dtype, or an option is not an integer.
    ValueError
        Shapes do not fit each other, groups do not divide the channels, an option is too small, the output would be
        empty, or the arrays are on different devices.

    See Also
    --------
    deform_conv2d_backward : its gradients.
    DeformConv2d : the same with a weight of its own.

    Notes
    -----
    Tap (i, j) of output pixel (oy, ox) reads at ``y = oy * stride - padding + i * dilation + dy``, likewise x,
    bilinearly between four pixels, of which those outside the input are 0. It reads 0 where ``y <= -1``, ``y >= H``,
    ``x <= -1`` or ``x >= W``, and so for an infinite offset. A NaN offset or mask makes the outputs NaN that it is for.

    Computed in float64 if any argument is float64, else in float32. The result is the same for any number of threads.

    On a GPU nothing waits for the device. Products are cuBLAS's, or for torch tensors torch's, which shortens float32
    to TF32 only if ``torch.backends.cuda.matmul.allow_tf32`` is set. float16 and bfloat16 are multiplied by tensor
    cores: samples are rounded to that dtype, sums are float32.

    References
    ----------
    .. [1] J. Dai et al., "Deformable Convolutional Networks", ICCV 2017.
    .. [2] X. Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> offset = np.zeros((1, 2, 3, 3), np.float32)
    >>> offset[:, 1] = 0.5  # half a pixel to the right
    >>> cvops.deform_conv2d(image, offset, np.ones((1, 1, 1, 1), np.float32))
    array([[[[0.5, 1.5, 1. ],
             [3.5, 4.5, 2.5],
             [6.5, 7.5, 4. ]]]], dtype=float32)
    """
    arguments = _given(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    with backend_of(**arguments) as backend:
        native = {name: backend.asarray(array, name) for name, array in arguments.items()}
        return to_caller(_forward(backend, native, stride, padding, dilation), input)


# fmt: off
@overload
def deform_conv2d_backward(
    grad: NDArray[FloatT], input: Array, offset: Array, weight: Array, bias: Array | None = ..., stride: Ints = ...,
    padding: Ints = ..., dilation: Ints = ..., mask: Array | None = ...,
) -> Gradients[NDArray[FloatT]]: ...
@overload
def deform_conv2d_backward(
    grad: ArrayT, input: Array, offset: Array, weight: Array, bias: Array | None = ..., stride: Ints = ...,
    padding: Ints = ..., dilation: Ints = ..., mask: Array | None = ...,
) -> Gradients[ArrayT]: ...
@overload
def deform_conv2d_backward(
    grad: NDArray[FloatT], input: Array, offset: Array, weight: Array, bias: Array | None = ..., stride: Ints = ...,
    padding: Ints = ..., dilation: Ints = ..., mask: Array | None = ...,
    *, wanted: Iterable[Gradient],
) -> SomeGradients[NDArray[FloatT]]: ...
@overload
def deform_conv2d_backward(
    grad: ArrayT, input: Array, offset: Array, weight: Array, bias: Array | None = ..., stride: Ints = ...,
    padding: Ints = ..., dilation: Ints = ..., mask: Array | None = ...,
    *, wanted: Iterable[Gradient],
) -> SomeGradients[ArrayT]: ...
# fmt: on
def deform_conv2d_backward(
    grad: Array,
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
    *,
    wanted: Iterable[Gradient] = GRADIENTS,
) -> Any:
    """Gradients of `deform_conv2d` for all of its arrays.

    Parameters
    ----------
    grad : array of shape (N, O, OH, OW), float64 | float32 | float16
        Gradient of the output, of any strides.
    input, offset, weight, bias, stride, padding, dilation, mask
        As they were given to `deform_conv2d`.
    wanted : iterable of {"input", "offset", "weight", "bias", "mask"}
        Which gradients to compute. No work is done for the others.

    Returns
    -------
    input, offset, weight, bias, mask : arrays of the shapes of the arguments, dtype of `grad`
        None for what is not wanted, and for `bias` and `mask` where there is none. Arrays of the library and on the
        device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`; `grad` has not the shape of the output; `wanted` holds another name.

    Notes
    -----
    Where a sample lies exactly on a row or column of pixels, the derivative by the offset is the one towards larger
    coordinates. A sample outside the input has no gradient for input, offset and mask. One with a NaN offset has none
    for the input, and NaN for offset, mask and weight.

    Every sum is taken in a fixed order: the same bits on every run and for any number of threads. On a GPU nothing
    waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> image = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> offset = np.zeros((1, 2, 3, 3), np.float32)
    >>> weight = np.full((1, 1, 1, 1), 2, np.float32)
    >>> grad = np.ones((1, 1, 3, 3), np.float32)
    >>> gradients = cvops.deform_conv2d_backward(grad, image, offset, weight, wanted=["input", "weight"])
    >>> gradients[0]
    array([[[[2., 2., 2.],
             [2., 2., 2.],
             [2., 2., 2.]]]], dtype=float32)
    >>> gradients[2]
    array([[[[36.]]]], dtype=float32)
    """
    names = tuple(one_of(name, "wanted", GRADIENTS) for name in strings(wanted, "wanted", or_one=True))
    arguments = _given(grad=grad, input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    with backend_of(**arguments) as backend:
        native = {name: backend.asarray(array, name) for name, array in arguments.items()}
        check_floats({"grad": native["grad"]})
        steps = _check(native, stride, padding, dilation)
        shape = (len(native["input"]), len(native["weight"]), *native["offset"].shape[2:])
        check_shape(native["grad"], "grad", shape, "N, O, OH, OW")
        gradients = backend.deform_conv2d_backward(
            native["grad"], native["input"], native["offset"], native["weight"], native.get("bias"), *steps,
            native.get("mask"), names,
        )  # fmt: skip
        return tuple(None if gradient is None else to_caller(gradient, grad) for gradient in gradients)


class DeformConv2d(Parameters):
    """Deformable convolution with a weight and a bias of its own: see `deform_conv2d`.

    Called with (input, offset, mask=None). For training, see `deform_conv2d_backward`.

    Parameters
    ----------
    in_channels, out_channels : int >= 1
        C and O.
    kernel_size : int >= 1 or two of them, height first
        kh and kw.
    stride, padding, dilation
        As in `deform_conv2d`.
    groups : int >= 1
        Groups of channels and outputs; divides both.
    bias : bool
        Whether to have one.
    rng : numpy.random.Generator, optional
        Source of the initial weight and bias, uniform from ``-1 / sqrt(fan_in)`` to that with
        ``fan_in = C / groups * kh * kw``. By default a new one.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer, is too small, or `groups` does not divide the channels.

    Notes
    -----
    `weight` and `bias` are float32 `numpy.ndarray` and are used in the dtype of the input. A call on a GPU uploads them
    once for each GPU and dtype, and keeps the copies until `load_state_dict`; a CUDA graph reads these copies, and has
    to be captured anew then.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> layer = cvops.DeformConv2d(4, 8, kernel_size=3, padding=1)
    >>> layer(np.ones((1, 4, 5, 5), np.float32), np.zeros((1, 18, 5, 5), np.float32)).shape
    (1, 8, 5, 5)
    """

    def __init__(
        self,
        in_channels: Integer,
        out_channels: Integer,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: Integer = 1,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        channels, outputs = count(in_channels, "in_channels", 1), count(out_channels, "out_channels", 1)
        groups = count(groups, "groups", 1)
        if channels % groups or outputs % groups:
            raise ValueError(f"`groups` must divide the channels {channels} and {outputs}, got {groups}")
        self._channels, self._groups = channels, groups
        shape = (outputs, channels // groups, *pair(kernel_size, "kernel_size"))
        self._steps = pair(stride, "stride"), pair(padding, "padding", 0), pair(dilation, "dilation")
        rng = generator(rng)
        bound = math.prod(shape[1:]) ** -0.5
        parameters = {"weight": uniform(rng, bound, shape)}
        if flag(bias, "bias"):
            parameters["bias"] = uniform(rng, bound, (outputs,))
        super().__init__(parameters)

    @property
    def weight(self) -> Floats:
        """The weight, a `numpy.ndarray`."""
        return self._parameters["weight"]

    @property
    def bias(self) -> Floats | None:
        """The bias, a `numpy.ndarray`, or None."""
        return self._parameters.get("bias")

    def __repr__(self) -> str:
        stride, padding, dilation = self._steps
        text = f"{self._channels}, {len(self.weight)}, kernel_size={self.weight.shape[2:]}, stride={stride}"
        text += f", padding={padding}" if padding != (0, 0) else ""
        text += f", dilation={dilation}" if dilation != (1, 1) else ""
        text += f", groups={self._groups}" if self._groups != 1 else ""
        text += ", bias=False" if self.bias is None else ""
        return f"DeformConv2d({text})"

    def __call__(self, input: ArrayT, offset: Array, mask: Array | None = None) -> ArrayT:
        """Return the deformable convolution of `input`.

        Parameters
        ----------
        input, offset, mask
            As in `deform_conv2d`.

        Returns
        -------
        output : array of shape (N, O, OH, OW), dtype of `input`
            An array of the library of `input`.

        Raises
        ------
        TypeError, ValueError
            As `deform_conv2d`; `input` has not the channels of the layer.
        """
        arguments = _given(input=input, offset=offset, mask=mask)
        with backend_of(**arguments) as backend:
            native = {name: backend.asarray(array, name) for name, array in arguments.items()}
            images = native["input"]
            check_dtype(images, "input", FLOATS)
            if images.ndim != 4 or images.shape[1] != self._channels:
                raise ValueError(f"`input` must have shape (N, {self._channels}, H, W), got {images.shape}")
            native |= {name: self._native(name, images.dtype, backend) for name in self._parameters}
            return to_caller(_forward(backend, native, *self._steps), input)


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None, unless they must be given."""
    return {name: array for name, array in arguments.items() if array is not None or name not in ("bias", "mask")}


def _forward(backend: Any, native: dict[str, Any], stride: Any, padding: Any, dilation: Any) -> Any:
    """The deformable convolution of arrays of the backend, when they fit each other."""
    steps = _check(native, stride, padding, dilation)
    return backend.deform_conv2d(
        native["input"], native["offset"], native["weight"], native.get("bias"), *steps, native.get("mask")
    )


def _check(
    native: dict[str, Any], stride: Any, padding: Any, dilation: Any
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(stride, padding, dilation) as pairs, when the arguments of `deform_conv2d` fit each other."""
    steps = pair(stride, "stride"), pair(padding, "padding", 0), pair(dilation, "dilation")
    input, offset, weight = native["input"], native["offset"], native["weight"]
    check_same_dtype({name: native[name] for name in ("input", "weight", "bias") if name in native})
    check_floats({name: native[name] for name in ("offset", "mask") if name in native})
    for name, letters in (("input", "N, C, H, W"), ("weight", "O, C / groups, kh, kw"), ("offset", _OFFSET)):
        if native[name].ndim != 4:
            raise ValueError(f"`{name}` must have shape ({letters}), got {native[name].shape}")
    if 0 in weight.shape:
        raise ValueError(f"`weight` must have no empty dimension, got shape {weight.shape}")
    images, channels, *size = input.shape
    outputs, group_channels, *kernel = weight.shape
    if channels == 0 or channels % group_channels or outputs % (channels // group_channels):
        raise ValueError(
            "`weight` must have shape (O, C / groups, kh, kw) where groups divide O and C,"
            f" got {weight.shape} for C = {channels}"
        )
    out = []
    for axis, length, k, s, p, d in zip(("height", "width"), size, kernel, *steps, strict=True):
        out.append((length + 2 * p - d * (k - 1) - 1) // s + 1)
        if out[-1] < 1:
            raise ValueError(
                f"`input` must be larger for an output of {axis} >= 1, got {length} with kernel {k}, stride {s},"
                f" padding {p}, dilation {d}"
            )
    taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * taps)
    if groups == 0 or offset.shape[1] % (2 * taps) or channels % groups:
        raise ValueError(
            f"`offset` must have shape ({_OFFSET}) = ({images}, {2 * taps} * G, {out[0]}, {out[1]}) where G divides"
            f" C = {channels}, got {offset.shape}"
        )
    check_shape(offset, "offset", (images, 2 * groups * taps, *out), _OFFSET)
    if "mask" in native:
        check_shape(native["mask"], "mask", (images, groups * taps, *out), "N, G * kh * kw, OH, OW")
    if "bias" in native:
        check_shape(native["bias"], "bias", (outputs,), "O,")
    return steps
