"""The IoU matrices of two sets of boxes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import cvops
from tests.data import clustered

from . import peers
from .harness import Row, all_close

SIZES = {
    "box_iou": [100, 2_000],
    "generalized_box_iou": [1_000],
    "distance_box_iou": [1_000],
    "complete_box_iou": [1_000],
}


def rows(quick: bool) -> Iterator[Row]:
    for operator, sizes in SIZES.items():
        for n in sizes[:1] if quick else sizes:
            boxes1, boxes2 = clustered(n)[0], clustered(n, seed=1)[0]
            yield Row(
                table="boxes",
                name=f"{operator}, {n:,} x {n:,}",
                inputs=f"clustered({n}, seed=0) and seed=1",
                sides={"cvops": partial(getattr(cvops, operator), boxes1, boxes2)}
                | peers.sides({"torchvision": partial(peers.with_torchvision, operator)}, boxes1, boxes2),
                check=all_close,
            )
