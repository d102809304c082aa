#!/usr/bin/env python3
"""Run lessons top to bottom and keep what they print and draw.

    python data_scripts/run_lessons.py                    # every notebook of nbs/
    python data_scripts/run_lessons.py nbs/00_core.ipynb  # one of them

Figures are kept as JPEG, so that a lesson stays small; progress bars and warnings go to the terminal, not into the
lesson. A figure whose cell says `#| opening: NAME.jpg` is also written to nbs/images, from where the lesson opens with it. A
lesson that raises keeps its old outputs, and the command ends with the cell that failed. Cells flagged with
one of settings.ini's `tst_flags`, or `eval: false`, are not run and keep the outputs they have. Cells flagged `data` are
run where the environment variable WSSS_NB_DATA names the pieces of the real data sets.
"""
from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import time
import traceback
from pathlib import Path

# inline figures are only captured with this backend, and matplotlib reads the variable once, on import
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import clean_nb
from nbdev.config import get_config

from wsss_nb.files import atomic

ROOT = Path(__file__).resolve().parents[1]
CONFIG = get_config(path=ROOT)
FLAGS = "|".join(flag for flag in CONFIG.tst_flags.split() if flag != "data" or not os.environ.get("WSSS_NB_DATA"))


def skipped(source: str) -> bool:
    "Cells left to the student, or to another machine."
    return bool(re.search(rf"^#\|[ \t]*(?:(?:{FLAGS})[ \t]*$|eval:[ \t]*false)", source, re.M | re.I))


def name_cells(cells: list) -> None:
    "Derive each cell's id from its text, so that running a lesson again, or elsewhere, changes no id."
    seen: dict[str, int] = {}
    for cell in cells:
        name = hashlib.sha256((cell.cell_type + cell.source).encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell["id"] = name if seen[name] == 1 else hashlib.sha256(f"{name}{seen[name]}".encode()).hexdigest()[:8]


def story(path: Path, number: int, cell, error: BaseException) -> str:
    "Which cell of which lesson failed, its text, and the lines the error passed through."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/IPython/" not in frame.filename.replace("\\", "/")]
    shown = "\n".join(f"    {line}" for line in cell.source.splitlines())
    steps = "".join(traceback.format_list(frames))
    return (f"\n{path.name}: cell {number} (id {cell.id}) raised; the lesson keeps its old outputs\n\n{shown}\n\n{steps}"
            f"{''.join(traceback.format_exception_only(error))}")


def keep(path: Path, number: int, outputs: list) -> list:
    "The outputs worth saving; what went to stderr is told on the terminal."
    for output in outputs:
        if output.get("name") == "stderr":
            told = [line.rpartition("\r")[2] for line in "".join(output["text"]).split("\n")]
            print(*[f"{path.name}, cell {number}: {line}" for line in told if line.strip()], sep="\n", file=sys.stderr)
    return [output for output in outputs if output.get("name") != "stderr"]


def keep_opening(folder: Path, source: str, outputs: list) -> None:
    "Write the figure that the lesson opens with to the folder of pictures, whole or not at all."
    name = re.search(r"^#\|[ \t]*opening:[ \t]*(\w+\.jpg)[ \t]*$", source, re.M)
    shown = [output["data"]["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    if name and shown:
        with atomic(folder / "images" / name[1]) as file:
            file.write_bytes(base64.b64decode("".join(shown[0])))


def run(path: Path) -> float:
    "Execute one notebook in its own folder; seconds it took."
    start, notebook = time.time(), read_nb(path)
    name_cells(notebook.cells)
    os.chdir(path.parent)
    shell = CaptureShell(path=path.parent, mpl_format="jpeg")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or skipped(cell.source):
            continue
        cell["outputs"] = []          # also where the cell prints nothing any more
        shell.cell(cell)
        if shell.exc:
            raise SystemExit(story(path, number, cell, shell.exc))
        cell["outputs"] = keep(path, number, cell.outputs)
    clean_nb(notebook, allowed_metadata_keys=CONFIG.get("allowed_metadata_keys", "").split(),
             allowed_cell_metadata_keys=CONFIG.get("allowed_cell_metadata_keys", "").split())
    write_nb(notebook, path)
    for cell in notebook.cells:                                # only now: a lesson that raised keeps its old picture, too
        keep_opening(path.parent, cell.source, cell.get("outputs", []))
    return time.time() - start


def main(arguments: list[str]) -> None:
    "Run the lessons named on the command line, each in a fresh process."
    paths = [Path(a).resolve() for a in arguments] or sorted((ROOT / "nbs").glob("*.ipynb"))
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"{path} is not a notebook; the lessons are in {ROOT / 'nbs'}")
    if len(paths) == 1:
        return print(f"{paths[0].name}: {run(paths[0]):.1f} s")
    for path in paths:
        if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, str(path)]):
            raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
