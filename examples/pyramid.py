"""From feature maps of three scales to a pyramid, and from the pyramid to one small patch for each detected box.

    pip install ".[demo]"
    python examples/pyramid.py
    python examples/pyramid.py maps.npz --out maps.png

The network's weights are made by hand, so that the picture can be understood: each level takes over the coarser ones
and is smoothed. Each box is drawn on the level that it is pooled from, in the colour of that level, and has the number
of its patch. `--help` says what a file of maps holds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from detect import OneLineParser, free_spot, picture_path, read_arrays, said_if_slow, visible_part
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import cvops

ASTRONAUT = Path(__file__).parent / "data" / "nanodet_fpn_astronaut_small.npz"
LEVELS = {"p3": 8, "p4": 16, "p5": 32}  # name of a map -> image pixels per cell
FILE_FORMAT = """\
A file of maps is what numpy.savez writes, with these arrays:
  p3, p4, p5  (1, C, H, W), floats: maps of one picture, with 8, 16 and 32 pixels to a cell
  rois        (L, 4), floats: the boxes to pool, x1, y1, x2, y2 in pixels of the picture
"""
PANEL = 400  # pixels of a side of a map in the picture
PATCH = 88  # of a pooled box
GAP, STRIP = 14, 24  # between pictures, and for a caption
COLOUR_OF_LEVEL = {"p3": (110, 235, 255), "p4": (140, 255, 120), "p5": (255, 150, 240)}
# From low to high: the colours of the heat maps.
HEAT = np.array([[13, 8, 60], [84, 22, 120], [190, 55, 85], [245, 140, 40], [252, 253, 190]], np.float64)

Array = NDArray[Any]


def main() -> None:
    parser = OneLineParser("Build a feature pyramid, pool boxes from it, and draw both.", FILE_FORMAT)
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        type=Path,
        default=ASTRONAUT,
        help="file of maps, see below (default: the astronaut in data/)",
    )
    add("--out", type=picture_path, default="pyramid.png", help="picture to write: .png or .jpg (default: %(default)s)")
    options = parser.parse_args()

    try:
        maps, rois = read(options.file)
        with said_if_slow("Compiling, which only the first run on a machine does ..."):
            build_and_pool(maps, rois)
        start = time.perf_counter()
        pyramid, pooled = build_and_pool(maps, rois)
        milliseconds = 1e3 * (time.perf_counter() - start)
        sources = levels_of(rois, maps)
    except (TypeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    try:
        draw(maps, pyramid, rois, sources, pooled).save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")

    for name, level in pyramid.items():
        cells = f"{level.shape[1]} channels of {level.shape[2]} x {level.shape[3]} cells"
        print(f"{name:5}{cells}, {sources.count(name)} boxes")
    size = " x ".join(map(str, pooled.shape[1:]))
    print(f"\n{len(rois)} boxes, {size} each; pyramid and boxes in {milliseconds:.2f} ms; picture: {options.out}")


def read(path: Path) -> tuple[dict[str, Array], Array]:
    """Read maps and boxes; ValueError says what is wrong with them, save for what cvops checks."""
    arrays = read_arrays(path)
    missing = [name for name in (*LEVELS, "rois") if name not in arrays]
    if missing:
        raise ValueError(f"not a file of maps, lacks {', '.join(missing)} (it holds {', '.join(arrays)})")
    maps, rois = {name: arrays[name] for name in LEVELS}, arrays["rois"]
    for name, array in maps.items():
        if array.ndim != 4 or array.shape[:2] != (1, maps["p3"].shape[1]) or 0 in array.shape:
            raise ValueError(f"`{name}` must have shape (1, C, H, W), C as in `p3`, got {array.shape}")
    if rois.ndim != 2 or rois.shape[1] != 4 or rois.dtype.kind != "f":
        raise ValueError(f"`rois` must be floats of shape (L, 4), got {rois.dtype} {rois.shape}")
    return maps, rois


def build_and_pool(maps: dict[str, Array], rois: Array) -> tuple[dict[str, Array], Array]:
    """Return the pyramid of the maps, and the boxes, each pooled from the level that suits its size."""
    channels = maps["p3"].shape[1]
    network = cvops.FeaturePyramidNetwork([channels] * len(maps), channels)
    network.load_state_dict(smoothing(network.state_dict()))
    pyramid = network(maps)
    return pyramid, pool(pyramid, rois)


def pool(pyramid: dict[str, Array], rois: Array) -> Array:
    """Return the boxes, each pooled from the level that suits its size."""
    pooler = cvops.MultiScaleRoIAlign(list(LEVELS), 7, sampling_ratio=2, scales=[1 / cell for cell in LEVELS.values()])
    pooled: Array = pooler(pyramid, [rois], [])
    return pooled


def levels_of(rois: Array, maps: dict[str, Array]) -> list[str]:
    """Return the name of the level that each box is pooled from; "" for a box outside the picture or not finite."""
    numbers = {name: np.full_like(maps[name][:, :1], number) for number, name in enumerate(LEVELS, start=1)}
    found = np.nan_to_num(pool(numbers, rois)).max(axis=(1, 2, 3), initial=0)
    return [["", *LEVELS][round(float(number))] for number in found]


def smoothing(parameters: dict[str, Array]) -> dict[str, Array]:
    """Return weights of the same names and shapes under which each channel is averaged with its neighbours."""
    for array in parameters.values():
        array[:] = 0
        if array.ndim == 4:
            same = np.arange(len(array))
            array[same, same] = 1 / array[0, 0].size
    return parameters


def draw(
    maps: dict[str, Array], pyramid: dict[str, Array], rois: Array, sources: list[str], pooled: Array
) -> Image.Image:
    """Return one page: the maps, under them the pyramid with the boxes, under it the pooled boxes."""
    columns = (len(maps) * (PANEL + GAP) - GAP) // (PATCH + GAP)
    rows = -(-len(rois) // columns)
    width = len(maps) * (PANEL + GAP) + GAP
    section = 2 * STRIP + PANEL + GAP
    sheet = Image.new("RGB", (width, 2 * section + STRIP + rows * (STRIP + PATCH) + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)

    def write(left: float, top: float, text: str) -> None:
        pen.text((left, top + STRIP / 2), text, fill="black", font=font, anchor="lm")

    top = GAP // 2
    write(GAP, top, "Maps: strength of the features, from weak (dark) to strong (light)")
    write(GAP, top + section, "The pyramid built from them, each level with the boxes that are pooled from it")
    for column, (name, cell) in enumerate(LEVELS.items()):
        left = GAP + column * (PANEL + GAP)
        write(left, top + STRIP, f"{name}, {maps[name].shape[2]} x {maps[name].shape[3]} cells")
        sheet.paste(heat(maps[name][0], PANEL), (left, top + 2 * STRIP))
        numbers = [k for k, source in enumerate(sources) if source == name]
        write(left, top + section + STRIP, f"{name}, {len(numbers) or 'no'} boxes")
        panel = heat(pyramid[name][0], PANEL)
        outline(panel, rois * (PANEL / (cell * pyramid[name].shape[2])), numbers, COLOUR_OF_LEVEL[name])
        sheet.paste(panel, (left, top + section + 2 * STRIP))
    top += 2 * section
    write(GAP, top, "Each box pooled to 7 x 7, by number, framed in the colour of its level, each in its own range")
    top += STRIP
    for k, patch in enumerate(pooled):
        left, above = GAP + k % columns * (PATCH + GAP), top + k // columns * (STRIP + PATCH)
        write(left, above, f"{k + 1}: {sources[k] or 'outside'}")
        sheet.paste(heat(patch, PATCH), (left, above + STRIP))
        frame = left - 2, above + STRIP - 2, left + PATCH + 1, above + STRIP + PATCH + 1
        pen.rectangle(frame, outline=COLOUR_OF_LEVEL.get(sources[k], (128, 128, 128)), width=4)
    return sheet


def heat(features: Array, side: int) -> Image.Image:
    """Return the strength of the features in each cell, as a square picture in colour."""
    strength = np.sqrt(np.mean(np.square(np.nan_to_num(features.astype(np.float64), posinf=0, neginf=0)), axis=0))
    strength = (strength - strength.min()) / max(float(np.ptp(strength)), 1e-12) * (len(HEAT) - 1)
    scale = np.arange(len(HEAT))
    pixels = np.stack([np.interp(strength, scale, channel) for channel in HEAT.T], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def outline(panel: Image.Image, boxes: Array, numbers: list[int], colour: tuple[int, int, int]) -> None:
    """Draw the boxes of these numbers, each with its number where there is room."""
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    shown = [(number, box) for number in numbers if (box := visible_part(boxes[number].tolist(), panel.size))]
    for _, box in shown:
        pen.rectangle(box, outline=colour, width=2)
    taken: list[tuple[int, int, int, int]] = []
    for number, box in shown:
        text = str(number + 1)
        spot = free_spot(box, round(font.getlength(text)) + 4, 14, panel.size, taken)
        if spot:
            taken.append(spot)
            pen.rectangle(spot, fill=colour)
            pen.text(((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2), text, fill="black", font=font, anchor="mm")


if __name__ == "__main__":
    main()
