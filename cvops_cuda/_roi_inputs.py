"""How the arguments of the RoI operators are prepared."""

from __future__ import annotations

from collections.abc import Sequence

from cvops._checks import working_dtype

from ._device import Array, contiguous, converted, xp


def rois_of_images(boxes: Sequence[Array], dtype: str) -> Array:
    """Boxes (L_i, 4) of each image as RoIs (K, 5)."""
    rois, end = xp.empty((sum(map(len, boxes)), 5), dtype), 0
    for i, of_image in enumerate(boxes):
        begin, end = end, end + len(of_image)
        rois[begin:end, 0] = i
        rois[begin:end, 1:] = of_image
    return rois


def in_working_precision(images: Array, rois: Array) -> tuple[Array, Array]:
    """Both contiguous, and `images` in float64 if either is: kernels compute in the precision of the images."""
    if working_dtype(images, rois) == "d":
        images = converted(images, "d")
    return contiguous(images), contiguous(rois)
