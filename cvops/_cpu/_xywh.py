"""A word to whoever gives x, y, width and height where corners are wanted: once in a process."""

from __future__ import annotations

import sys
import warnings

from ._jit import jit
from ._memory import Array

_FEWEST = 8  # boxes that say something about all
_untold = [True]  # emptied by the one who tells: the end of a list is taken by one thread alone


def check(boxes: Array, first: int = 0) -> None:
    """Warn if boxes, whose corners begin in column `first`, look like x, y, width and height."""
    if len(boxes) >= _FEWEST and _untold and looks_like_xywh(boxes, first):
        tell()


@jit
def looks_like_xywh(boxes, first):
    """Whether more than half of the boxes, of which there are some, are inverted along an axis."""
    upright = 0
    for i in range(len(boxes)):
        upright += not (boxes[i, first + 2] < boxes[i, first] or boxes[i, first + 3] < boxes[i, first + 1])
        if 2 * upright >= len(boxes):  # mostly after half of them
            return False
    return len(boxes) >= _FEWEST


def tell() -> None:
    """Warn the first caller outside of cvops, unless somebody was warned before."""
    try:
        _untold.pop()
    except IndexError:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "cvops":
        level, frame = level + 1, frame.f_back
    text = "`boxes` looks like xywh: more than half have x2 < x1 or y2 < y1, and corners x1, y1, x2, y2 are wanted;"
    warnings.warn(f'{text} cvops.box_convert(boxes, "xywh", "xyxy") makes them', UserWarning, stacklevel=level)
