#!/usr/bin/env python3
"""Run lessons top to bottom and keep what they print and draw.

    python data_scripts/run_lessons.py                    # every notebook of nbs/
    python data_scripts/run_lessons.py nbs/00_core.ipynb  # one of them

Figures are kept as JPEG, so that a lesson stays small. A lesson that raises keeps its old outputs,
and the command ends with the cell that failed.
"""
import os
import re
import sys
import time
from pathlib import Path

# inline figures are only captured with this backend, and matplotlib reads the variable once, on import
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parents[1]
FLAGS = set(get_config(path=ROOT).tst_flags.split())


def skipped(cell) -> bool:
    "Cells left to the student, or to another machine, keep the outputs they have: the flags of settings.ini."
    return bool(FLAGS & set(re.findall(r"^#\| *(\w+) *$", cell.source, re.M)))


def run(path: Path) -> float:
    "Execute one notebook in its own folder; seconds it took."
    start, notebook = time.time(), read_nb(path)
    shell = CaptureShell(path=path.parent, mpl_format="jpeg")
    os.chdir(path.parent)
    shell.run_all(notebook, exc_stop=True, preproc=skipped)
    if shell.exc:
        raise SystemExit(f"{path}: {shell.prettytb(fname=path) or shell.exc}")
    clean_nb(notebook, allowed_cell_metadata_keys=["jupyter"])
    write_nb(notebook, path)
    return time.time() - start


def main(arguments: list[str]) -> None:
    "Run the lessons named on the command line, each in a fresh process."
    paths = [Path(a).resolve() for a in arguments] or sorted((ROOT / "nbs").glob("*.ipynb"))
    if len(paths) == 1:
        return print(f"{paths[0].name}: {run(paths[0]):.1f} s")
    for path in paths:
        if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, str(path)]):
            raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
