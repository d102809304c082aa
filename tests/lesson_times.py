"""How long is a lesson, to run and to read? Each is run by itself, as nbdev_test runs it: python tests/lesson_times.py [30_growing …]

A lesson gets a process of its own, one after the other. Toy networks that several lessons need are trained by the first, as for a student who reads from the
first lesson to the last: the cache starts empty. Seconds are the clock's and the processor's; memory is the most a lesson held.
Without names all are run, and nbs/results/lesson_times.json keeps what the front page shows, with the machine it was measured on.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from notebooks import NBS, ROOT, Lesson, lesson_paths, read_lesson, settings
from test_notebooks import exported_lines

KEPT = NBS / "results" / "lesson_times.json"
NAMES = [path.stem for path in lesson_paths() if path.stem != "index"]     # the front page shows what is measured here
ALONE = "import sys, pathlib, nbdev.test as t; sys.exit(not t.test_nb(pathlib.Path(sys.argv[1]), sys.argv[2].split(), basepath=sys.argv[3])[0])"


def run_alone(path: Path, cache: str) -> dict[str, float]: # seconds, processor, megabytes
    """One lesson from its first cell to its last; raises where the lesson does."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(path), settings()["tst_flags"], str(ROOT)], env={**os.environ, "MPLBACKEND": "Agg", "WSSS_NB_CACHE": cache})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{path.name} failed; nothing was kept. See it alone: nbdev_test --path {path.relative_to(ROOT)}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": round(time.perf_counter() - start, 1), "processor": round(usage.ru_utime + usage.ru_stime, 1), "megabytes": round(usage.ru_maxrss / unit)}


def sizes(lesson: Lesson) -> dict[str, int]:
    """What the design caps."""
    return {"cells": len(lesson.cells), "exported": exported_lines(lesson), "kB": round(lesson.bytes / 1000)}


def machine() -> dict[str, str | int]:
    """Where it was measured, in words that name nobody."""
    import torch
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}


def row(name: str, values: dict[str, float]) -> str:
    """One line of the table."""
    return f"{name:26}" + "".join(f"{values[key]:>11}" for key in ("seconds", "processor", "megabytes", "cells", "exported", "kB"))


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LESSON", help="lessons by name, such as 30_growing; all without")
    names = parser.parse_args().names or NAMES
    print(row("", {key: key for key in ("seconds", "processor", "megabytes", "cells", "exported", "kB")}))
    table = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            table[name] = run_alone(NBS / f"{name}.ipynb", cache)
            print(row(name, table[name] | sizes(read_lesson(NBS / f"{name}.ipynb"))), flush=True)
    print(f"{len(table)} lessons, {sum(values['seconds'] for values in table.values()) / 60:.1f} minutes; the longest {max(table, key=lambda name: table[name]['seconds'])}")
    if names == NAMES:
        KEPT.write_text(json.dumps({"machine": machine(), "lessons": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
