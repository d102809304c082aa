"""data_scripts/run_lessons.py: results are kept, noise is not, and a failure names its cell."""
import base64
import json
import os
import subprocess
import sys

import pytest
from notebooks import ROOT, read_lesson

KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
NOISE = "import sys, warnings\nwarnings.warn('careful')\n_ = sys.stderr.write('10%\\r100%\\n')"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"


def write_notebook(path, *sources: str, old: str = "") -> None:
    """A notebook whose code cells have random-looking ids and, if asked, an old output each."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": [old]}] if old else []
    cells = [{"cell_type": "code", "execution_count": 3, "id": f"x{k}", "metadata": {"jupyter": {"source_hidden": True}, "scrolled": True},
              "outputs": outputs, "source": source} for k, source in enumerate(sources)]
    cells.insert(0, {"cell_type": "markdown", "id": "m", "metadata": {}, "source": "# A title"})
    path.write_text(json.dumps({"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}))


def run(*paths, data: str = "") -> subprocess.CompletedProcess:
    """The script on these notebooks, started somewhere else, with or without real data."""
    return subprocess.run([sys.executable, ROOT / "data_scripts" / "run_lessons.py", *paths], capture_output=True, text=True,
                          env=os.environ | {"WSSS_NB_DATA": data})


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """A notebook that was run once, its messages, and its path."""
    path = tmp_path_factory.mktemp("nbs") / "99_try.ipynb"
    write_notebook(path, "2 + 3", NOISE, PLOT, "x = 1", "#| cuda\n1 / 0", "#| eval: false\n1 / 0", "#| exercise\nx = 2",
                   "print(x)", "print(x)", old="old")
    result = run(path)
    assert result.returncode == 0, result.stderr
    return path, result


def texts(path) -> list[str]:
    """What each code cell shows."""
    outputs = [cell.outputs for cell in read_lesson(path).code]
    return ["".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in out) for out in outputs]


def test_results_are_kept_and_noise_is_not(lesson):
    """Values, prints and JPEG figures stay; stderr goes to the terminal; a cell that shows nothing loses its old output."""
    path, result = lesson
    shown = texts(path)
    assert shown[0] == "5" and shown[1] == "" and shown[2].startswith("<Figure") and shown[3] == ""
    assert "image/jpeg" in read_lesson(path).code[2].outputs[0]["data"]
    assert all(o.get("name") != "stderr" and "image/png" not in o.get("data", {}) for cell in read_lesson(path).code for o in cell.outputs)
    assert "99_try.ipynb, cell 2: 100%" in result.stderr and "careful" in result.stderr
    assert ": 10%" not in result.stderr          # a bar is told as it ended, not at every step


def test_opening_picture_is_written(tmp_path):
    """The figure of a cell that says so is a file as well, the same to the byte; a cell without a figure writes none."""
    (tmp_path / "images").mkdir()
    write_notebook(tmp_path / "99_open.ipynb", "#| opening: curve.jpg\n" + PLOT, "#| opening: none.jpg\n1 + 2", PLOT)
    assert run(tmp_path / "99_open.ipynb").returncode == 0
    shown = read_lesson(tmp_path / "99_open.ipynb").code[0].outputs[0]["data"]["image/jpeg"]
    assert (tmp_path / "images/curve.jpg").read_bytes() == base64.b64decode("".join(shown))
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["curve.jpg"]
    drawn = (tmp_path / "images/curve.jpg").read_bytes()
    write_notebook(tmp_path / "99_open.ipynb", "#| opening: curve.jpg\n" + PLOT.replace("[1, 2]", "[2, 1]"), "1 / 0")
    assert run(tmp_path / "99_open.ipynb").returncode == 1 and (tmp_path / "images/curve.jpg").read_bytes() == drawn


def test_data_cells_run_where_the_data_is(tmp_path):
    """Only where the variable names it."""
    for data, shown in (("", "old"), ("somewhere", "3")):
        write_notebook(tmp_path / "99_data.ipynb", "#| data\n1 + 2", old="old")
        assert run(tmp_path / "99_data.ipynb", data=data).returncode == 0
        assert texts(tmp_path / "99_data.ipynb") == [shown]


def test_flagged_cells_are_left_alone(lesson):
    """Cells for a GPU, for nobody and for the student are not run and keep their outputs."""
    shown = texts(lesson[0])
    assert shown[4:7] == ["old"] * 3
    assert shown[7:] == ["1\n", "1\n"]


def test_running_again_changes_nothing(lesson, tmp_path):
    """Ids come from the cells' text: twice the same bytes, also when the ids were others; equal cells have different ids."""
    path, _ = lesson
    before = path.read_bytes()
    other = json.loads(before)
    for k, cell in enumerate(other["cells"]):
        cell["id"] = f"other{k}"
    (tmp_path / path.name).write_text(json.dumps(other))
    for again in (path, tmp_path / path.name):
        assert run(again).returncode == 0
        assert again.read_bytes() == before
    ids = [cell["id"] for cell in other["cells"]]
    assert len({*ids}) == len(ids) == 10
    assert [cell["metadata"] for cell in other["cells"]][1:] == [{"jupyter": {"source_hidden": True}}] * 9


def test_failure_names_the_cell_and_keeps_the_file(tmp_path):
    """The message has notebook, cell, text, error, and nothing of IPython's inside; the lessons after it are not run."""
    broken, after = tmp_path / "98_broken.ipynb", tmp_path / "99_after.ipynb"
    write_notebook(broken, "x = 0", "def invert(x):\n    return 1 / x", "y = invert(x)", old="old")
    write_notebook(after, "1 + 1", old="old")
    before = broken.read_bytes(), after.read_bytes()
    result = run(broken, after)
    assert result.returncode == 1
    for words in ("98_broken.ipynb: cell 3", "y = invert(x)", "ZeroDivisionError: division by zero", "in invert"):
        assert words in result.stderr
    assert "interactiveshell" not in result.stderr
    assert (broken.read_bytes(), after.read_bytes()) == before


def test_missing_notebook_is_named(tmp_path):
    """A wrong name is an error before anything runs."""
    result = run(tmp_path / "00_cor.ipynb")
    assert result.returncode == 1 and "00_cor.ipynb is not a notebook" in result.stderr and "Traceback" not in result.stderr
