"""What the launchers of the RoI operators do to their arguments and results."""

from __future__ import annotations

from cvops._checks import working_dtype

from ._device import Array, contiguous, empty


def in_working_precision(images: Array, rois: Array) -> tuple[Array, Array]:
    """Both contiguous, `images` in float64 if either is: kernels compute in the precision of what they read."""
    if working_dtype(images, rois) == "d":
        images = images.astype("d", copy=False)
    return contiguous(images), contiguous(rois)


def cast(result: Array, like: Array) -> Array:
    """`result` in the dtype of `like`."""
    if result.dtype == like.dtype:
        return result
    converted = empty(result.shape, like.dtype)
    converted[...] = result
    return converted
