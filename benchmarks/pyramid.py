"""FeaturePyramidNetwork on the maps of a ResNet-50 for an image of 800 x 1344."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

import cvops

from . import peers
from .harness import Row, all_close_to_largest

CHANNELS = [256, 512, 1024, 2048]


def rows(quick: bool) -> Iterator[Row]:
    height, width = (100, 168) if quick else (800, 1344)
    rng = np.random.default_rng(0)
    maps = {
        f"p{level}": rng.uniform(0, 1, (1, channels, height >> level, width >> level)).astype(np.float32)
        for level, channels in enumerate(CHANNELS, start=2)
    }
    network = cvops.FeaturePyramidNetwork(CHANNELS, 256, cvops.LastLevelMaxPool(), rng=rng)
    yield Row(
        table="FeaturePyramidNetwork, 256 channels",
        name=f"ResNet-50, {height} x {width}",
        inputs="uniform maps and Kaiming weights, seed=0",
        sides={"cvops": partial(finest, network, maps)}
        | peers.sides(peers.FEATURE_PYRAMID_NETWORK, maps, network.state_dict()),
        check=all_close_to_largest,
    )


def finest(network: cvops.FeaturePyramidNetwork, maps: dict[str, np.ndarray]) -> object:
    """Compute the whole pyramid; the finest map, to which all others contribute, is what is compared."""
    return network(maps)["p2"]
