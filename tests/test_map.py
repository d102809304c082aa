"""The map of the front page: every equation of the papers has a row, and what the rows name is there."""
from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from notebooks import ROOT, read_lesson

# the papers' numbered equations that the course runs; of DGCN and of the modified cues those whose number we know
NUMBERED = {"SEC": range(1, 6), "DSRG": range(1, 4), "modified cues": [3], "salient": range(1, 9), "DGCN": [4], "WST": range(1, 8), "robust background": [9]}
CITED = re.compile(rf"({'|'.join(NUMBERED)})[ \d.,]*? eq\. ([\d, –]*\d)")


def rows() -> list[list[str]]:
    """Of the map: what it calls the equation, what that says, function, test."""
    cell = next(cell for cell in read_lesson(ROOT / "nbs/index.ipynb").code if "EQUATIONS" in cell.source)
    text = next(node.value.value for node in ast.walk(cell.tree) if isinstance(node, ast.Assign) and node.targets[0].id == "EQUATIONS")
    return [line.split(" | ") for line in text.strip().splitlines()]


def numbers(text: str) -> set[int]:
    """Of "4–7" or "6, 7, 8"."""
    found = set()
    for part in re.split(r", *", text):
        first, _, last = part.partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def cited(text: str) -> set[tuple[str, int]]:
    """The equations a text names."""
    return {(paper, k) for paper, many in CITED.findall(text) for k in numbers(many)}


def in_map() -> set[tuple[str, int]]:
    return cited("\n".join(name for name, *_ in rows()))


def test_citations_are_read():
    """What the other tests rest upon."""
    assert cited("(WST eq. 4–7); (salient eq. 6, 7, 8) and (modified cues 3.3, eq. 3), not (Shen eq. 2)") == {
        *(("WST", k) for k in (4, 5, 6, 7)), *(("salient", k) for k in (6, 7, 8)), ("modified cues", 3)}


def test_every_equation_has_a_row():
    """No number of a paper is left out, and none is made up."""
    assert in_map() == {(paper, k) for paper, ks in NUMBERED.items() for k in ks}


def test_what_the_library_cites_is_in_the_map():
    """An equation that a docstring names can be looked up."""
    said = {(path.name, *found) for path in sorted((ROOT / "wsss_nb").glob("*.py")) for found in cited(path.read_text(encoding="utf-8"))}
    assert len(said) > 20 and not [one for one in said if one[1:] not in in_map()]


@pytest.mark.parametrize("number, says, function, test", rows(), ids=lambda text: text)
def test_functions_and_tests_are_there(number, says, function, test):
    """A function that is called, and a test that pytest collects."""
    module, name = function.split(".")
    made = getattr(importlib.import_module(f"wsss_nb.{module}"), name)
    assert callable(made) and made.__module__ == f"wsss_nb.{module}", "name the module that defines it"
    file, name = test.split(".")
    tree = ast.parse(Path(ROOT, f"tests/{file}.py").read_text(encoding="utf-8"))
    assert name.startswith("test_") and any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


@pytest.mark.parametrize("number, says, function, test", rows(), ids=lambda text: text)
def test_the_test_reaches_the_function(number, says, function, test):
    """The test's file uses the function: by its name, or through one that calls it."""
    text = Path(ROOT, f"tests/{test.split('.')[0]}.py").read_text(encoding="utf-8")
    assert re.search(rf"\b{function.split('.')[1]}\b", text) or function == "recipes.sec_loss" and "sec(" in text
