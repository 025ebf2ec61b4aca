"""How convolutions divide their output pixels into tiles, the columns of which fit into a GPU's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

# Bytes of the columns of a tile: they stay in the cache of an H200, which holds 50 MB. With fewer, a product of a few
# hundred outputs would be too small to keep it busy.
COLUMN_BYTES = 32 << 20


def tiles(images: int, plane: int, pixel_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of images, and of their `plane` output pixels: whole images wherever one fits, in order."""
    most = max(1, COLUMN_BYTES // pixel_bytes)
    step, pixels = (even(images, most // plane), plane) if plane <= most else (1, even(plane, most))
    for image in range(0, images, step):
        for first in range(0, plane, pixels):
            yield image, min(image + step, images), first, min(first + pixels, plane)


def even(count: int, most: int) -> int:
    """The size of the parts into which `count` falls when none may be larger than `most`; the last may be smaller."""
    return math.ceil(count / math.ceil(count / most))
