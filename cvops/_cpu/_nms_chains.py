"""Chains of blocks: kept boxes by the place where a candidate that they suppress looks for them.

Chain c begins with block c, and further blocks follow as it grows; so a candidate knows where to look first without
reading anything. The boxes of a chain lie in rank order: the best of them suppress most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import overload

from ._jit import intrinsic, jit
from ._nms_all import LANES, overlaps, put


@jit
def make_chains(number, capacity, boxes):
    """(blocks; (boxes, last block) of each chain; the block after each; how many blocks are used) of empty chains."""
    chains = np.empty((number, 2), np.int32)
    for chain in range(number):
        chains[chain, 0] = 0
    return np.empty((capacity, 5, LANES), boxes.dtype), chains, np.empty(capacity, np.int32), np.int64(number)


@jit(inline=True)
def append(blocks, chains, after, used, chain, x1, y1, x2, y2, area):
    """Make a box the last of a chain; returns how many blocks are used now."""
    boxes, block = np.int64(chains[chain, 0]), np.int64(chains[chain, 1])
    if boxes == 0:
        block = chain
    elif boxes % LANES == 0:
        after[block] = used
        block = used
        used += 1
    put(blocks, block, boxes % LANES, x1, y1, x2, y2, area)
    chains[chain, 0], chains[chain, 1] = boxes + 1, block
    return used


@jit(inline=True)
def look_through(blocks, chains, after, chain, x1, y1, x2, y2, area, threshold):
    """How many blocks of a chain are looked at, negative if the candidate overlaps a box by more than the threshold.

    One number, and a return from within: with a pair of them a search took a fifth longer.
    """
    boxes, block, looked_at = np.int64(chains[chain, 0]), chain, 0
    while boxes > 0:
        looked_at += 1
        if overlaps(blocks[block], x1, y1, x2, y2, area, threshold):
            return -looked_at
        boxes -= LANES
        if boxes > 0:
            block = np.int64(after[block])
    return looked_at


@intrinsic
def _fetch_line(typingctx: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address], signature)
        line = builder.bitcast(builder.gep(data, [arguments[1]]), address)
        builder.call(prefetch, [line, number(0), number(3), number(1)])  # data that is to be read, and kept near
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def fetch(blocks: Any, block: Any) -> None:
    """Let the processor read a block that will be looked at soon. Without a compiler there is nothing to do."""


def _compiled_fetch(blocks: Any, block: Any) -> Any:
    in_line = 512 // blocks.dtype.bitwidth
    lines = 5 * LANES // in_line

    def fetch(blocks: Any, block: Any) -> None:
        for i in range(lines):
            _fetch_line(blocks, (block * lines + i) * in_line)

    return fetch


overload(fetch, inline="always")(_compiled_fetch)
