"""docs/benchmarks.md and the table in README.md, made from the results files: `python -m benchmarks.markdown`."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from .harness import three_digits

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
ORDER = ["nms", "boxes", "heads", "roi", "deform_conv", "pyramid", "torch_ops", "gpu"]
TABLE_IN_README = re.compile(r"(?<=<!-- made by benchmarks.markdown -->\n).*?(?=<!-- end -->)", re.DOTALL)

INTRODUCTION = """\
# Benchmarks

Made by `python -m benchmarks.markdown` from the files in [benchmarks/results](../benchmarks/results), which
`python -m benchmarks` writes; [benchmarks/README.md](../benchmarks/README.md) says how it measures. The sides are timed
in turns in one process, with equal numbers of threads, after their answers are compared. Under a peer stands how many
times as long it takes as cvops: **less than 1 x means that the peer is faster**. A row named "cold" is the same call
where each follows other work, as in a program; the others follow each other.

![Time of nms and batched_nms against the number of boxes, a line for each library](../benchmarks/results/nms.png)
"""


# What is to be said of the figures of a suite.
REMARKS = {
    "gpu": """\
[gpu_kernels.txt](../benchmarks/results/gpu_kernels.txt) has the device time of each kernel, of `deform_conv2d` too, by
CUPTI. Where torchvision takes less time of the device:

- `roi_pool` on large maps (0.5 x): three blocks share a RoI, the largest RoIs keep the last of them busy, a third of
  the threads that would fit run. Its gradient (0.7 x to 1 x) and those of `ps_roi_align` and `ps_roi_pool` (0.4 x to
  0.7 x) sum in a fixed order in shared memory, where few threads fit; torchvision adds with atomics, in any order.
- `roi_align` on 50 x 76 (0.9 x): neighbouring threads read other rows of contiguous maps. Channels-last maps take half.
- `roi_align` of 4 RoIs (0.8 x): 8 us beside 6; why was not measured. `nms` of 10 and 100 boxes on tensors (0.8 x) waits
  for the device, so that most of its time is the host's, of which below.
- `FeaturePyramidNetwork` (0.8 x on tensors, 0.2 x on CuPy arrays): on tensors the convolutions are torch's, which
  shorten float32 to TF32 on both sides unless `torch.backends.cudnn.allow_tf32` is off; maps are enlarged and added one
  by one. On CuPy arrays the products are exact float32, without tensor cores.

Host time: a call on tensors costs 0.1 to 0.2 ms, two to four times as much as torchvision's simplest ones: CuPy's view
of a tensor, its launch and torch's memory are a third of it, checks another. In a CUDA graph it is nothing.""",
}


class Highlight(NamedTuple):
    """A row of the README's table: which row of which table it is, and what it stands for."""

    suite: str
    table: str
    name: str
    call: str
    regime: str


HIGHLIGHTS = [
    Highlight("nms", "nms, threshold 0.5", "10 boxes", "`nms`, 10 boxes", "small: the fixed cost of a call"),
    Highlight("nms", "nms, threshold 0.5", "20,000 boxes", "`nms`, 20,000 boxes", "many boxes, IoU 0.5"),
    Highlight(
        "nms",
        "batched_nms of real detections, threshold 0.5",
        "ssd_coco_astronaut, 1,635",
        "`batched_nms`, 1,635 boxes, 90 classes",
        "a real detector's output",
    ),
    Highlight(
        "roi",
        "roi_align",
        "(256, 200, 304), 512 RoIs, 7 x 7",
        "`roi_align`, 512 RoIs of (256, 200, 304)",
        "the finest level of a pyramid",
    ),
    Highlight(
        "deform_conv",
        "deform_conv2d, 3x3, with mask",
        "(2, 256, 50, 67) -> 256",
        "`deform_conv2d`, (2, 256, 50, 67), 3 x 3",
        "mostly a matrix product",
    ),
    Highlight(
        "pyramid",
        "FeaturePyramidNetwork, 256 channels",
        "ResNet-50, 800 x 1344",
        "`FeaturePyramidNetwork`, 800 x 1344",
        "convolutions only",
    ),
]


def read_results() -> dict[str, dict[str, Any]]:
    """The results by suite, in the order of the page."""
    suites: dict[str, dict[str, Any]] = {}
    for folder, heading in ((RESULTS, "{}"), (RESULTS / "avx2", "{}, without AVX-512")):
        files = sorted(folder.glob("*.json"), key=lambda file: [*ORDER, file.stem].index(file.stem))
        suites |= {heading.format(file.stem): json.loads(file.read_text()) for file in files}
    return suites


def page(suites: dict[str, dict[str, Any]]) -> str:
    """The text of docs/benchmarks.md."""
    sections = [
        "\n\n".join(filter(None, [f"## {suite}", surroundings(results), REMARKS.get(suite), tables(results)])) + "\n"
        for suite, results in suites.items()
    ]
    return "\n".join([INTRODUCTION, *sections])


def surroundings(results: dict[str, Any]) -> str:
    """When and where the results were measured, in a paragraph."""
    environment, settings = results["environment"], results["settings"]
    machine = [environment["gpu"]] if "gpu" in environment else []
    machine += [f"{environment['cpu']}, {environment['cpus']} CPUs"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    how = f"{settings.get('statistic', 'medians')} of {settings['repeats']} repeats"
    return f"{environment['date']}, {', '.join(machine)}, {settings['threads']} threads, {how}. Versions: {versions}."


def tables(results: dict[str, Any]) -> str:
    """The tables of a suite, in its order."""
    texts = []
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:  # a GPU's tables take turns, one for each clock
        by_table.setdefault(row["table"], []).append(row)
    for title, of_table in by_table.items():
        if "value" in of_table[0]:
            texts.append(table([title, ""], [[row["name"], figure(row)] for row in of_table]))
        elif "cvops" in of_table[0]["milliseconds"]:
            texts.append(comparison(title, of_table))
        else:
            sides = list(of_table[0]["milliseconds"])
            cells = [[row["name"], *(three_digits(row["milliseconds"][side]) for side in sides)] for row in of_table]
            texts.append(table([f"{title}, ms", *sides], cells))
    return "\n\n".join(texts)


def figure(row: dict[str, Any]) -> str:
    return f"{three_digits(row['value'])} {row['unit']}"


def comparison(title: str, rows: list[dict[str, Any]]) -> str:
    """A table with a column for each peer, short calls cold as well, and below it why some were not timed."""
    peers = list(dict.fromkeys(side for row in rows for side in row["milliseconds"] if side != "cvops"))
    lines = [(name, of_line) for row in rows for name, of_line in ((row["name"], row), cold(row)) if of_line]
    cells = [
        [name, three_digits(of_line["milliseconds"]["cvops"])]
        + [times(of_line["ratios"][peer]) if peer in of_line["ratios"] else "-" for peer in peers]
        for name, of_line in lines
    ]
    text = table([title, "cvops, ms", *peers], cells)
    left_out = [
        f"{row['name']}: {', '.join(peer for peer, _ in of_reason)} {reason}"
        for row in rows
        for reason, of_reason in groupby(row["left_out"].items(), lambda item: item[1])
    ]
    return f"{text}\n\nNot timed: {'; '.join(left_out)}." if left_out else text


def cold(row: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The name and the times of a row's cold calls, which only short ones have."""
    return f"{row['name']}, cold", row.get("cold")


def highlights(suites: dict[str, dict[str, Any]]) -> str:
    """The README's table: each row beside the peer that is fastest there."""
    cells = []
    for highlight in HIGHLIGHTS:
        rows = suites[highlight.suite]["rows"]
        (row,) = (row for row in rows if (row["table"], row["name"]) == (highlight.table, highlight.name))
        peer, ratio = min(row["ratios"].items(), key=lambda item: item[1])
        milliseconds = three_digits(row["milliseconds"]["cvops"])
        cells.append([highlight.call, highlight.regime, milliseconds, peer, times(ratio)])
    return table(["call", "regime", "cvops, ms", "its best peer", "takes"], cells, text_columns=(0, 1, 3)) + "\n"


def times(ratio: float) -> str:
    return f"{three_digits(ratio)} x"


def table(heading: list[str], rows: list[list[str]], text_columns: tuple[int, ...] = (0,)) -> str:
    rule = "|".join("---" if column in text_columns else "---:" for column in range(len(heading)))
    lines = [f"| {' | '.join(cells)} |" for cells in [heading, *rows]]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def main() -> None:
    suites = read_results()
    PAGE.write_text(page(suites))
    README.write_text(TABLE_IN_README.sub(lambda _: highlights(suites), README.read_text()))
    print(f"wrote {PAGE} and the table in {README}")


if __name__ == "__main__":
    main()
