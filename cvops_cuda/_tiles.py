"""How convolutions divide their output pixels into tiles, so that the columns of each tile take little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

# Numbers in the columns of a tile. In 16 bits they stay in the cache of an H200, which holds 50 MB. In 32 bits they do
# not, but they are read in a tenth of the time of their product, and a smaller one would leave the GPU half idle: with
# 256 outputs and 2304 columns, this is 7281 pixels, 114 of the squares of 128 x 128 that 132 processors share.
MOST_COLUMNS = 16 << 20


def tiles(images: int, plane: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield tiles (first image, last + 1, first pixel, last + 1): whole images if one fits, or a part of one image.

    An image has `plane` output pixels, and a pixel has `columns` columns.
    """
    most = max(1, MOST_COLUMNS // columns)
    step, pixels = (even(images, most // plane), plane) if plane <= most else (1, even(plane, most))
    for image in range(0, images, step):
        for first in range(0, plane, pixels):
            yield image, min(image + step, images), first, min(first + pixels, plane)


def even(count: int, most: int) -> int:
    """The size of the fewest equal parts of `count` that are not larger than `most`; the last part may be smaller."""
    return math.ceil(count / math.ceil(count / most))
