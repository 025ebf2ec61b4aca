"""A warning, once in a process, for boxes that look like x, y, width and height where corners are wanted."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from ._jit import jit
from ._memory import Array

_FEWEST = 8  # with fewer boxes, a few inverted ones say nothing about the others
_untold = [True]  # emptied by the thread that warns, because only one thread can pop the one element


def check(boxes: Array, first: int = 0) -> None:
    """Warn if boxes, whose corners begin in column `first`, look like x, y, width and height."""
    if is_looked_for(len(boxes)) and looks_like_xywh(boxes, first):
        tell()


def is_looked_for(number: int) -> bool:
    """Whether so many boxes are worth a look, and nobody was warned yet."""
    return number >= _FEWEST and bool(_untold)


def check_in_parts(parts: Iterable[Array], number: int, first: int) -> None:
    """As `check`, for `number` boxes that come in parts."""
    if not is_looked_for(number):
        return
    upright = 0
    for boxes in parts:
        upright += count_upright(boxes, first, (number + 1) // 2 - upright)
        if 2 * upright >= number:
            return
    tell()


@jit(inline=True)
def looks_like_xywh(boxes, first):
    """Whether more than half of the boxes are inverted along an axis; False for very few boxes."""
    half = (len(boxes) + 1) // 2
    return len(boxes) >= _FEWEST and count_upright(boxes, first, half) < half


@jit
def count_upright(boxes, first, enough):
    """How many boxes are not inverted along any axis. It stops counting at `enough`, usually before the last box."""
    upright = 0
    for i in range(len(boxes)):
        if upright >= enough:
            break
        upright += not (boxes[i, first + 2] < boxes[i, first] or boxes[i, first + 3] < boxes[i, first + 1])
    return upright


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
