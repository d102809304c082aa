"""Exercises ask something: their checks fail before the student's work and pass after it."""
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from exercises import form_faults, try_exercises
from notebooks import lesson_paths, make_lesson


def tried_alone(path: Path) -> subprocess.CompletedProcess:
    """The exercises of a notebook, tried in a process of their own."""
    return subprocess.run([sys.executable, Path(__file__).with_name("exercises.py"), path], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def tries(request) -> Iterator[dict[Path, Future]]:
    """The lessons that are asked for, tried beside each other: a process for each core, one thread for each process."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    yield {item.callspec.params["path"]: pool.submit(tried_alone, item.callspec.params["path"])
           for item in request.session.items if getattr(item, "originalname", "") == "test_exercises_of_lesson"}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", lesson_paths(), ids=lambda path: path.stem)
def test_exercises_of_lesson(path, tries):
    """Each check refuses the empty cell and accepts the solution."""
    result = tries[path].result()
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


SOLUTION = {"cell_type": "code", "source": '#| code-fold: true\n#| code-summary: "A solution"\ndef double(x):\n    return 2 * x',
            "metadata": {"jupyter": {"source_hidden": True}}}
STUB = ("code", "#| exercise\ndef double(x):\n    ...  # your turn")
CHECK = ("code", "assert double(2) == 4")
START = ("code", "import math")


def tried(*cells) -> str:
    """What trying these cells finds, in one line; plain `exec` stands for the notebook's shell."""
    names = {}

    def run(source):
        try:
            exec(source, names)
        except Exception as error:
            return error

    return "; ".join(try_exercises(make_lesson("05_boxes", *cells), run))


def test_good_exercise_passes():
    """Text between the three cells is allowed; what follows the last check is not run."""
    cells = START, SOLUTION, ("markdown", "Now you."), STUB, CHECK, SOLUTION, STUB, CHECK, ("code", "1 / 0")
    assert form_faults(make_lesson("05_boxes", *cells)) == []
    assert tried(*cells) == ""


def test_bad_exercises_are_found():
    """A check that asks nothing, a solution that is wrong, a stub that raises, a lesson that breaks before."""
    assert "passes with the student's empty cell" in tried(START, SOLUTION, STUB, ("code", "double(2)"))
    wrong = {**SOLUTION, "source": SOLUTION["source"].replace("2 * x", "x * x * x")}
    assert "AssertionError" in tried(START, wrong, STUB, CHECK)
    assert "ZeroDivisionError" in tried(START, SOLUTION, ("code", "#| exercise\n1 / 0"), CHECK)
    assert "ZeroDivisionError" in tried(("code", "1 / 0"), SOLUTION, STUB, CHECK)


@pytest.mark.parametrize("cells, words", [
    ((START, STUB, CHECK), "no folded solution"),
    (({**SOLUTION, "metadata": {}}, STUB, CHECK), "no folded solution"),
    (({**SOLUTION, "source": SOLUTION["source"].replace("true", "show")}, STUB, CHECK), "no folded solution"),
    ((SOLUTION, STUB), "no check"),
    ((SOLUTION, STUB, SOLUTION, STUB, CHECK), "no check"),
    ((SOLUTION, STUB, ("code", "#| slow\nassert double(2) == 4")), "no check"),
    ((SOLUTION, CHECK), "no `#| exercise` cell"),
])
def test_bad_form_is_found(cells, words):
    """Solution, student's cell, check: in this order, folded, and run by the tests."""
    faults = form_faults(make_lesson("05_boxes", *cells))
    assert faults and words in faults[0]


@pytest.mark.parametrize("check, words", [("assert double(2) == 4", ""), ("double(2)", "passes with the student's empty cell"),
                                          ("assert double(2) == 5", "raises AssertionError"), ("%time 1 / 0", "raises ZeroDivisionError")])
def test_whole_way_can_fail(tmp_path, check, words):
    """The same, from a notebook file and in the shell that runs the lessons."""
    cells = [{"cell_type": kind, "source": source, "metadata": {}, "outputs": []} for kind, source in (START, STUB, ("code", check))]
    cells.insert(1, {**SOLUTION, "outputs": []})
    (tmp_path / "05_boxes.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    result = tried_alone(tmp_path / "05_boxes.ipynb")
    assert (result.returncode, bool(words)) in ((0, False), (1, True)) and words in result.stdout, result.stdout + result.stderr
