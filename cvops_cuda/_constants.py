"""Numbers that launchers and kernels share; they stand nowhere else. No GPU needed to import it.

The kernel file of a family has them as macros: CHUNK is CVOPS_CHUNK there. They decide how work is divided and how much
memory it takes, and change no result.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cvops._boxes import COMPLETE, DISTANCE, GENERALIZED, IOU

WARP = 32  # threads

BOXES = SimpleNamespace(
    COLUMNS=256,  # pairs of a block
    ROWS=8,
    IOU=IOU,
    GENERALIZED=GENERALIZED,
    DISTANCE=DISTANCE,
    COMPLETE=COMPLETE,
)
CONV = SimpleNamespace(
    THREADS=256,  # of a block
    CHANNELS=8,  # of a block of conv_columns
    PIXELS=1024,  # of a block of conv_bias
)
DEFORM_CONV = SimpleNamespace(
    THREADS=256,  # of a block
    PIXELS=16,  # output pixels that a block looks at
    TAPS=16,  # that a block looks at, at most
    EDGE=32,  # side of the square that a block transposes
    CONTRIBUTION_BYTES={4: 16, 8: 32},  # by the size of a number in working precision, as all such
)
NMS = SimpleNamespace(
    BLOCK_THREADS=1024,  # of the one block that decides about as many boxes
    RANK_THREADS=256,  # of a block that ranks boxes
    RANK_OTHERS=1024,  # boxes with which such a block compares its own
    CHUNK=512,  # boxes of a block that searches, one for each thread
    SUPPRESSORS=64,  # boxes with which a block of nms_mask compares a chunk
    NEAR_THREADS=256,  # of a block of nms_near, a warp for each box
    COMPACT_THREADS=1024,  # of a block of nms_compact
    SIZE_BUCKET_PAIRS=4096,  # flags of pairs of size buckets that have kept boxes
    BOX_BYTES={4: 24, 8: 40},
)
MULTICLASS_NMS = SimpleNamespace(
    SCAN_THREADS=256,  # of a block that scans
    SCAN_ROUNDS={4: 16, 8: 8},  # scores of such a thread
    RANK_THREADS=1024,  # of the block that ranks the candidates of an image
    WRITE_THREADS=1024,  # of the block that writes its detections
    CHUNK=NMS.CHUNK,  # what boxes are to nms
    SIZE_BUCKET_PAIRS=NMS.SIZE_BUCKET_PAIRS,
    BOX_BYTES=NMS.BOX_BYTES,
)
PS_ROI = SimpleNamespace(
    THREADS=256,  # of a block, at most
    CHANNELS=4,  # of a thread and a block
    ROIS=1024,  # of a block, at most
    SUMS={4: 10240, 8: 4608},  # that a block of a gradient has memory for
)
ROI_ALIGN = SimpleNamespace(
    LEVELS=4,  # maps of a launch
    POOL_THREADS=128,  # of a block that pools
    LAST_CHANNELS=128,  # of a block that pools channels-last maps
    TILE=16,  # side of the square of pixels whose gradients a block sums, a thread for each
    GRADIENTS=16,  # channels of such a block
    ROI_BYTES={4: 48, 8: 64},
    CHUNK_BYTES=16,
)
ROI_POOL = SimpleNamespace(
    THREADS=448,  # of a block, at most
    CHANNELS={4: 4, 8: 2},  # of a thread at a time
    SUMS={4: 11760, 8: 5880},  # that a block of the gradient has memory for
    WARPS=8,  # of a block of the gradient, at most
)
_OF_FILES = {
    "boxes": BOXES,
    "conv": CONV,
    "deform_conv": DEFORM_CONV,
    "multiclass_nms": MULTICLASS_NMS,
    "nms": NMS,
    "ps_roi": PS_ROI,
    "roi_align": ROI_ALIGN,
    "roi_pool": ROI_POOL,
}


def working_size(code: str) -> int:
    """Bytes of a number in working precision, for elements of a type code."""
    return 8 if code == "d" else 4


def macros(file: str, code: str) -> list[str]:
    """Options that define the constants of a kernel file for elements of a type code."""
    size = working_size(code)
    values: dict[str, Any] = vars(_OF_FILES[file])
    return [f"-DCVOPS_{name}={value[size] if isinstance(value, dict) else value}" for name, value in values.items()]
