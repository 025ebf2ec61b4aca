"""From the raw output of a detector to a table and a picture of its detections, with `cvops.batched_nms`.

    pip install ".[demo]"
    python examples/detect.py
    python examples/detect.py examples/data/ssd_coco_coffee.npz --iou 0.6 --out coffee.png

The picture shows all that the detector proposed beside what is kept. `--help` says what a detection file holds.
"""

from __future__ import annotations

import argparse
import io
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

import cvops

ASTRONAUT = Path(__file__).parent / "data" / "ssd_coco_astronaut.npz"
MAX_SIDE = 10_000  # a larger picture is a mistake in the file
FILE_FORMAT = """\
A detection file is what numpy.savez writes, with these arrays:
  boxes        (L, 4), floats or integers: x1, y1, x2, y2 in pixels of the picture
  scores       (L,), floats: one for each box, in any order
  labels       (L,), integers: the class of each box, an index into class_names
  class_names  (C,), text
  image_hw     (2,), integers: height and width of the picture
  image_jpeg   (bytes,), uint8: the picture as JPEG; may be absent, then boxes are drawn on white
"""

Rectangle = tuple[int, int, int, int]


class DetectionFile(NamedTuple):
    """All that a detector proposed for one picture."""

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    class_names: list[str]
    picture: Image.Image


class Detection(NamedTuple):
    """One box that was kept."""

    label: int
    class_name: str
    score: float
    box: list[float]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, without the usage; `epilog` keeps its line breaks."""

    def __init__(self, description: str, epilog: str = "") -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def need(self, *packages: str) -> None:
        """Exit with an error that says what to install, unless the packages are installed."""
        if missing := [package for package in packages if not find_spec(package)]:
            self.error(f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def main() -> None:
    parser = OneLineParser("Keep the best boxes of a detection file, class by class; print and draw them.", FILE_FORMAT)
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        type=Path,
        default=ASTRONAUT,
        help="detection file, see below (default: the astronaut in data/)",
    )
    add(
        "--iou",
        type=iou,
        default=0.5,
        help="drop a box that overlaps a better one of its class by more than this IoU: 0 to 1 (default: %(default)s)",
    )
    add(
        "--score",
        type=score,
        default=0.5,
        help="drop a box unless its score is above this: any number (default: %(default)s)",
    )
    add("--max", type=count, help="keep at most this many boxes: 0 or more (default: no limit)")
    add(
        "--out",
        type=picture_path,
        default="detections.png",
        help="picture to write: .png or .jpg (default: %(default)s)",
    )
    options = parser.parse_args()

    try:
        file = read(options.file)
        keep_best(file, options)  # the first call compiles
        start = time.perf_counter()
        kept = keep_best(file, options)
        milliseconds = 1e3 * (time.perf_counter() - start)
    except (TypeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    detections = [detection(file, index) for index in kept]
    captions = f"before: {len(file.scores)} candidates", f"after: {len(kept)} kept, score above {options.score}"
    panels = outlined(file), labelled(file.picture, detections)
    picture = page(dict(zip(captions, panels, strict=True)), columns=2)
    try:
        picture.save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")

    print(table(detections) if detections else "No boxes to show.", end="\n\n")
    print(
        f"{len(file.scores)} candidates, {np.sum(file.scores > options.score)} above score {options.score},"
        f" {len(kept)} kept at IoU {options.iou} in {milliseconds:.2f} ms; picture: {options.out}"
    )


def keep_best(file: DetectionFile, options: argparse.Namespace) -> NDArray[np.int64]:
    """Return the indices of the boxes to keep, best first."""
    kept: NDArray[np.int64] = cvops.batched_nms(
        file.boxes, file.scores, file.labels, options.iou, score_threshold=options.score, max_output=options.max
    )
    return kept


def detection(file: DetectionFile, index: np.int64) -> Detection:
    label = int(file.labels[index])
    return Detection(label, file.class_names[label], float(file.scores[index]), file.boxes[index].tolist())


def iou(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def score(text: str) -> float:
    value = float(text)
    if np.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text}")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".jpg"):
        raise argparse.ArgumentTypeError(f"must end in .png or .jpg, got {text!r}")
    if not path.parent.is_dir():  # said before the work, not after it
        raise argparse.ArgumentTypeError(f"{path}: No such file or directory")
    return path


def read(path: Path) -> DetectionFile:
    """Read a detection file; ValueError says what is wrong with it, save for boxes and scores, which cvops checks."""
    arrays = read_arrays(path)
    needed = ("boxes", "scores", "labels", "class_names", "image_hw")
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"not a detection file, lacks {', '.join(missing)} (it holds {', '.join(arrays)})")
    boxes, scores, labels, class_names, image_hw = (arrays[name] for name in needed)

    if class_names.ndim != 1 or class_names.dtype.kind != "U" or not all(map(str.isprintable, class_names)):
        raise ValueError(
            f"`class_names` must be printable text of shape (C,), got {class_names.dtype} {class_names.shape}"
        )
    if labels.shape != scores.shape or labels.dtype.kind not in "iu":
        raise ValueError(f"`labels` must be integers, one for each score, got {labels.dtype} {labels.shape}")
    if np.any((labels < 0) | (labels >= len(class_names))):
        raise ValueError(f"`labels` must be from 0 to {len(class_names) - 1}, the last of `class_names`")
    if (
        image_hw.shape != (2,)
        or image_hw.dtype.kind not in "iu"
        or not np.all((image_hw >= 1) & (image_hw <= MAX_SIDE))
    ):
        raise ValueError(f"`image_hw` must be two integers from 1 to {MAX_SIDE}, got {image_hw.tolist()}")

    height, width = image_hw.tolist()
    if "image_jpeg" in arrays:
        picture = decode(arrays["image_jpeg"], (width, height))
    else:
        picture = Image.new("RGB", (width, height), "white")
    return DetectionFile(boxes, scores, labels, class_names.tolist(), picture)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: np.asarray(member) for name, member in archive.items()}
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # a damaged file makes zipfile, zlib or NumPy raise whatever they stumble over
        raise ValueError("not an .npz file of plain arrays, or a damaged one") from error


def decode(jpeg: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            picture = Image.open(io.BytesIO(jpeg.tobytes()), formats=["JPEG"]).convert("RGB")
    except Exception as error:  # there are as many kinds as ways to damage a JPEG
        raise ValueError("`image_jpeg` cannot be decoded as a JPEG") from error
    if picture.size != size:
        raise ValueError(f"`image_jpeg` is {picture.width} x {picture.height}, `image_hw` says {size[0]} x {size[1]}")
    return picture


@contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Print the text if what follows takes more than a few seconds."""
    timer = threading.Timer(3, print, [text], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def table(detections: list[Detection]) -> str:
    width = max(len(name) for name in ["class", *(detection.class_name for detection in detections)])
    lines = [f" rank  {'class':{width}}    score       x1       y1       x2       y2"]
    for rank, (_, class_name, score, box) in enumerate(detections, start=1):
        coordinates = "".join(f"{coordinate:9.1f}" for coordinate in box)
        lines.append(f"{rank:5}  {class_name:{width}}{score:9.3f}{coordinates}")
    return "\n".join(lines)


def outlined(file: DetectionFile) -> Image.Image:
    """Return the picture with the outline of every candidate on it, the fainter the lower its score."""
    picture = file.picture.copy()
    pen = ImageDraw.Draw(picture, "RGBA")
    for index in np.argsort(file.scores, kind="stable"):  # the best on top
        if box := visible_part(file.boxes[index].tolist(), picture.size):
            opacity = 60 + 195 * float(np.clip(np.nan_to_num(file.scores[index]), 0, 1))
            pen.rectangle(box, outline=(*colour(int(file.labels[index])), round(opacity)))
    return picture


def labelled(picture: Image.Image, detections: list[Detection]) -> Image.Image:
    """Return the picture with each box on it, labelled with class and score where there is room."""
    picture = picture.copy()
    pen = ImageDraw.Draw(picture, "RGBA")
    line = max(2, sum(picture.size) // 600)
    text_size = max(13, sum(picture.size) / 110)
    font = ImageFont.load_default(text_size)
    height = round(1.25 * text_size)

    boxes = [(detection, visible_part(detection.box, picture.size)) for detection in detections]
    shown = [(detection, box) for detection, box in boxes if box]
    for detection, (x1, y1, x2, y2) in reversed(shown):  # the best on top
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0, 140), width=line + 2)
        pen.rectangle((x1, y1, x2, y2), outline=colour(detection.label), width=line)

    taken: list[Rectangle] = []
    for detection, box in shown:
        text = f"{detection.class_name} {detection.score:.2f}"
        width = round(font.getlength(text) + 0.6 * text_size)
        spot = free_spot(box, width, height, picture.size, taken)
        if spot:
            taken.append(spot)
            pen.rectangle(spot, fill=colour(detection.label))
            pen.text((spot[0] + width / 2, spot[1] + height / 2), text, fill="black", font=font, anchor="mm")
    return picture


def page(panels: dict[str, Image.Image], columns: int) -> Image.Image:
    """Return the pictures, all of one size, on a white page, each under its caption."""
    width, height = next(iter(panels.values())).size
    text_size = max(15, (width + height) / 70)
    font = ImageFont.load_default(text_size)
    strip, gap = round(1.7 * text_size), round(text_size)
    width = max([width, *(round(font.getlength(caption)) for caption in panels)])
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + gap), rows * (strip + height) + gap // 2), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels.items()):
        left, top = gap // 2 + i % columns * (width + gap), i // columns * (strip + height)
        pen.text((left, top + strip / 2), caption, fill="black", font=font, anchor="lm")
        sheet.paste(panel, (left, top + strip))
    return sheet


def visible_part(box: list[float], picture_size: tuple[int, int]) -> Rectangle | None:
    """Return the part of the box in the picture, in whole pixels; None for a box outside, inverted or NaN."""
    width, height = picture_size
    x1, y1, x2, y2 = np.clip(box, 0, (width - 1, height - 1, width - 1, height - 1))
    if not (x1 < x2 and y1 < y2):
        return None
    return round(x1), round(y1), round(x2), round(y2)


def free_spot(
    box: Rectangle, width: int, height: int, picture_size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle | None:
    """Return where a label goes: above its box, else inside, else below; never on another label or off the picture."""
    x1, y1, x2, y2 = box
    for top in (y1 - height, y1, y2):
        for left in (x1, x2 - width):
            left = max(0, min(left, picture_size[0] - width))
            spot = (left, top, left + width, top + height)
            inside = top >= 0 and spot[2] <= picture_size[0] and spot[3] <= picture_size[1]
            if inside and not any(overlap(spot, other) for other in taken):
                return spot
    return None


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def colour(label: int) -> tuple[int, int, int]:
    """Return one colour a class, light enough for black text; steps of the golden angle keep neighbours apart."""
    red, green, blue = ImageColor.getrgb(f"hsl({(200 + 137.5 * label) % 360}, 90%, 70%)")[:3]
    return red, green, blue


def head_options(description: str, most_overlap: float, picture: str) -> argparse.Namespace:
    """The options of the examples that begin with the raw head of a detector: score, iou and out."""
    parser = OneLineParser(description)
    parser.add_argument("--score", type=score, default=0.1, help="least score (default: %(default)s)")
    parser.add_argument(
        "--iou", type=iou, default=most_overlap, help="most overlap of two boxes (default: %(default)s)"
    )
    parser.add_argument("--out", type=picture_path, default=picture, help="picture to write (default: %(default)s)")
    return parser.parse_args()


def save_before_and_after(candidates: DetectionFile, kept: DetectionFile, least_score: float, path: Path) -> None:
    """Draw the boxes of a head above a score beside those that are kept of them."""
    rows = zip(kept.labels.tolist(), kept.scores.tolist(), kept.boxes.tolist(), strict=True)
    detections = [Detection(label, kept.class_names[label], score, box) for label, score, box in rows]
    captions = f"before: {len(candidates.boxes)} above score {least_score}", f"after: {len(detections)} kept"
    panels = outlined(candidates), labelled(kept.picture, detections)
    page(dict(zip(captions, panels, strict=True)), columns=2).save(path)


if __name__ == "__main__":
    main()
