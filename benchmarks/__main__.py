"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cvops

from . import environment, gpu, harness, peers

# Modules with a function `rows(quick)`.
SUITES = [
    "nms",
    "boxes",
    "heads",
    "roi",
    "deform_conv",
    "pyramid",
    "torch_ops",
]
ON_GPU = "gpu"  # such a module too, but only where it is asked for
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse_options()
    environment.restart(options.avx2)
    peers.set_threads(options.threads)
    surroundings = environment.describe()
    if ON_GPU in options.suites:
        surroundings |= gpu.describe()
    settings = {"threads": options.threads, "repeats": options.repeats, "statistic": "lower quartiles"}
    machine = f"{surroundings['cpu']}, {surroundings['cpus']} CPUs, for {surroundings['target']}"
    print(f"{machine}, threads: {options.threads}, repeats: {options.repeats}")
    print(", ".join(f"{package} {version}" for package, version in surroundings["versions"].items()))
    for suite in options.suites:
        rows = import_module(f"benchmarks.{suite}").rows(options.quick)
        results: dict[str, Any] = {
            "environment": surroundings,
            "settings": settings,
            "rows": list(harness.run(rows, options.repeats)),
        }
        if options.out:
            write(options.out / f"{suite}.json", results)


def write(file: Path, results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwrote {file}")
    if find_spec("matplotlib"):  # a machine with a GPU may have none
        from . import plot

        if picture := plot.draw(file):
            print(f"wrote {picture}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time cvops beside its peers: same inputs, one process, equal thread counts, equal answers.",
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="suite", help=f"any of: {', '.join(SUITES)} (default: these), {ON_GPU}")
    add("--threads", type=positive, help="threads of every side (default: those that cvops uses by default)")
    add("--repeats", type=positive, help="timings of every side in a row of a table (default: 21; with --quick 3)")
    add("--quick", action="store_true", help="only small inputs, and no results unless --out is given")
    add("--avx2", action="store_true", help="let cvops and NumPy compute as on a processor without AVX-512")
    add("--out", type=Path, help="folder for the results, JSON and PNG (default: benchmarks/results, or avx2 in it)")
    options = parser.parse_args()
    if unknown := set(options.suites) - {*SUITES, ON_GPU}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if ON_GPU in options.suites and (missing := gpu.missing()):
        parser.error(f"the suite {ON_GPU} needs a GPU, CuPy, torch and torchvision: {missing}")
    options.suites = options.suites or SUITES
    options.threads = options.threads or cvops.get_num_threads()
    options.repeats = options.repeats or (3 if options.quick else 21)
    options.out = options.out or (None if options.quick else RESULTS / "avx2" if options.avx2 else RESULTS)
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    main()
