"""Try a lesson's exercises: the check must refuse the student's empty cell and accept the folded solution.

    python tests/exercises.py nbs/00_core.ipynb
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

from notebooks import Cell, Lesson, read_lesson, settings

FLAGS = set(settings()["tst_flags"].split())


def is_solution(cell: Cell) -> bool:
    """A cell folded on the page and in JupyterLab."""
    folded = cell.directives.get("code-fold") == "true" and (cell.metadata or {}).get("jupyter", {}).get("source_hidden") is True
    return folded and cell.directives.get("code-summary") == '"A solution"'


def form_faults(lesson: Lesson) -> list[str]:
    """Every student's cell stands between a folded solution and a check, and every solution before a student's cell."""
    cells, faults = lesson.code, []
    for before, cell, after in zip([None, *cells], cells, [*cells[1:], None]):
        if "exercise" in cell.directives:
            if not (before and is_solution(before)):
                faults.append(f"{cell}: no folded solution comes before it")
            if not after or after.skipped(FLAGS) or is_solution(after) or after.exported:
                faults.append(f"{cell}: no check follows it")
        elif "A solution" in cell.directives.get("code-summary", "") and not (after and "exercise" in after.directives):
            faults.append(f"{cell}: no `#| exercise` cell follows it")
    return faults


def try_exercises(lesson: Lesson, run) -> list[str]:
    """Faults found running the cells in order; `run(source)` returns the exception a cell raised, or None."""
    cells, faults = lesson.code, []
    last = max((k for k, cell in enumerate(cells) if "exercise" in cell.directives), default=-1)
    solution = None
    for k, cell in enumerate(cells[:last + 2]):
        if "exercise" in cell.directives:
            check = cells[k + 1]
            error = run(cell.source)
            if not error and not run(check.source):
                faults.append(f"{check}: passes with the student's empty cell {cell.index}")
            error = error or run(solution.source)
            faults += [f"{cell}: raises {type(error).__name__}: {error}"] if error else []
        elif is_solution(cell):
            solution = cell      # run between the empty cell and the check's second run
        elif not cell.skipped(FLAGS) and (error := run(cell.source)):
            return faults + [f"{cell}: raises {type(error).__name__}: {error}"]
    return faults


def try_notebook(path: Path) -> list[str]:
    """Form and behaviour of one notebook's exercises."""
    lesson = read_lesson(path)
    faults = form_faults(lesson)
    if faults or not any("exercise" in cell.directives for cell in lesson.code):
        return faults
    os.environ.update(IN_TEST="1", MPLBACKEND="agg")      # figures are drawn and thrown away
    os.chdir(path.parent)
    from execnb.shell import CaptureShell
    shell = CaptureShell(path=path.parent)

    def run(source: str) -> BaseException | None:
        shell.run(source)
        return shell.exc

    return try_exercises(lesson, run)


if __name__ == "__main__":
    found = try_notebook(Path(sys.argv[1]).resolve())
    print(*found, sep="\n")
    sys.exit(bool(found))
