"""The command that times lessons, and what it measured last: the course's promise of minutes."""
from __future__ import annotations

import json

import lesson_times
import pytest
from lesson_times import NAMES
from notebooks import lessons

METHODS = [lesson.name for lesson in lessons() if 10 <= lesson.order[0] <= 43]   # what a student runs to learn the methods


@pytest.fixture(scope="module")
def kept() -> dict:
    """What the front page shows."""
    return json.loads(lesson_times.KEPT.read_text(encoding="utf-8"))


def test_what_is_kept_is_of_lessons_that_are_there(kept):
    """After a lesson was renamed the times are measured again: python tests/lesson_times.py."""
    assert set(kept["lessons"]) <= set(NAMES) and set(METHODS) <= set(kept["lessons"])
    assert kept["machine"]["cores"] >= 1 and all(0 < values["processor"] <= 2 * kept["machine"]["cores"] * values["seconds"] for values in kept["lessons"].values())


def test_lessons_take_minutes(kept):
    """A method's lesson under two minutes, all lessons under twenty-five."""
    assert max(kept["lessons"][name]["seconds"] for name in METHODS) < 120
    assert sum(values["seconds"] for values in kept["lessons"].values()) < 25 * 60


def write(folder, source: str):
    """A lesson of one cell."""
    path = folder / "05_short.ipynb"
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
    path.write_text(json.dumps({"cells": [cell], "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_a_lesson_is_timed_in_a_process_of_its_own(tmp_path):
    """It waits, it holds memory, and its cache is the one it was given."""
    path = write(tmp_path, f"import os, time\ntime.sleep(.5); held = bytearray(10**8); open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['WSSS_NB_CACHE'])")
    found = lesson_times.run_alone(path, "there")
    assert found["seconds"] >= .5 and found["processor"] > 0 and found["megabytes"] > 95
    assert (tmp_path / "seen").read_text() == "there"


def test_a_lesson_that_raises_is_named_and_nothing_kept(tmp_path, monkeypatch):
    """Half a table would be taken for the whole."""
    path = write(tmp_path, "1 / 0")
    monkeypatch.setattr(lesson_times, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="05_short.ipynb failed; nothing was kept"):
        lesson_times.run_alone(path, "there")


def test_names_alone_keep_nothing(tmp_path, monkeypatch, capsys):
    """Only the whole course replaces what the front page shows; the table has what the design caps."""
    monkeypatch.setattr(lesson_times, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(lesson_times, "run_alone", lambda path, cache: {"seconds": 2.0, "processor": 1.0, "megabytes": 7})
    monkeypatch.setattr("sys.argv", ["lesson_times.py", "00_core", "30_growing"])
    lesson_times.main()
    printed = capsys.readouterr().out
    assert not lesson_times.KEPT.exists() and "2 lessons, 0.1 minutes" in printed
    cells = next(len(lesson.cells) for lesson in lessons() if lesson.name == "30_growing")
    assert next(line for line in printed.splitlines() if line.startswith("30_growing")).split()[4] == str(cells)
    monkeypatch.setattr("sys.argv", ["lesson_times.py"])
    lesson_times.main()
    assert list(json.loads(lesson_times.KEPT.read_text())["lessons"]) == NAMES
