"""README.md: its code runs and gives what it says, its table and docs/benchmarks.md are made from the results."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import cvops
from benchmarks import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def imported(block):
    return {name.partition(".")[0] for name in re.findall(r"^import (\S+)", block, re.MULTILINE)}


@pytest.mark.parametrize(
    ("modules", "block"), [pytest.param(imported(b), b, id="-".join(sorted(imported(b)))) for b in BLOCKS]
)
def test_each_block_runs_by_itself_and_gives_what_it_says(modules, block):
    names, lines = {}, block.splitlines()
    for statement in ast.parse(block).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
            continue
        value = eval(compile(ast.Expression(statement.value), "README.md", "eval"), names)
        said = lines[statement.end_lineno - 1].partition("  # ")[2]
        if re.fullmatch(r"\([\d, ]+\)", said):
            assert str(tuple(value.shape)) == said
        elif re.match(r"\(?(array|tensor)\(", said):
            assert repr(value) == said


def test_there_is_a_block_for_each_library():
    assert set().union(*map(imported, BLOCKS)) >= {"numpy", "torch", "torchvision", "jax"}


def test_there_are_two_commands():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("/python examples/detect.py")
    assert commands[1].endswith("/pytest")


PAGES = ["README.md", "docs/benchmarks.md", "docs/platforms.md", "benchmarks/README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def supported():
    """The support table: names of the operators of a row, and what it says of cvops, cvops.torch and cvops.jax."""
    table = README.partition("## What works with what")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(re.findall(r"`(\w+)`", operators), *cells) for operators, *cells, _ in rows[1:]]


def test_the_support_table_has_every_function_and_only_what_there_is():
    named = {name for names, *_ in supported() for name in names}
    functions = {name for name in cvops.__all__ if name[0].islower() and not name.endswith("_backward")}
    assert functions - {"get_num_threads", "set_num_threads", "warmup"} <= named
    for names, plain, _, _ in supported():
        for name in names:
            assert hasattr(cvops, name) == (plain != "no"), name
            assert hasattr(cvops, f"{name}_backward") == ("_backward" in plain), name


@pytest.mark.parametrize(("column", "library"), [(2, "torch"), (3, "jax")])
def test_the_support_table_says_what_the_adapters_have(column, library):
    adapter = importlib.import_module(f"cvops.{library}")
    for row in supported():
        for name in row[0]:
            assert hasattr(adapter, name) == (row[column] != "no"), name


def test_the_tables_are_made_from_the_results():
    """After new results: `python -m benchmarks.markdown`."""
    suites = markdown.read_results()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == markdown.page(suites)
    assert markdown.TABLE_IN_README.findall(README) == [markdown.highlights(suites)]


def test_every_row_of_the_results_is_on_the_page():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            assert f"| {row['name']} | " in page, row["name"]


def test_the_table_in_the_readme_names_the_best_peer():
    results = markdown.read_results()
    rows = [line.split(" | ") for line in markdown.highlights(results).splitlines()[2:]]
    assert len(rows) == 6
    for highlight, (*_, peer, times) in zip(markdown.HIGHLIGHTS, rows, strict=True):
        (row,) = (
            row
            for row in results[highlight.suite]["rows"]
            if (row["table"], row["name"]) == (highlight.table, highlight.name)
        )
        assert all(row["ratios"][peer] <= ratio for ratio in row["ratios"].values())
        assert times.startswith(f"{row['ratios'][peer]:.3g}"[:3])
