"""How the launchers of the RoI operators prepare their arguments."""

from __future__ import annotations

from cvops._checks import working_dtype

from ._device import Array, contiguous, converted


def in_working_precision(images: Array, rois: Array) -> tuple[Array, Array]:
    """Both contiguous, and `images` in float64 if either is: kernels compute in the precision of the images."""
    if working_dtype(images, rois) == "d":
        images = converted(images, "d")
    return contiguous(images), contiguous(rois)
