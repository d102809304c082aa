"""Importing is cheap: heavy libraries are loaded by the functions that need them."""
import importlib.util
import json
import subprocess
import sys

import pytest
from notebooks import lessons

HEAVY = {"torch", "torchvision", "numba", "pycocotools"}
LIGHT = [lesson.module for lesson in lessons() if lesson.module and (lesson.order[0] <= 5 or lesson.module == "cli")]


def fresh_import(statement: str) -> tuple[float, set[str]]:
    """Seconds an import takes in a new process, and all the top-level packages it loads."""
    code = ("import json, sys, time; before = set(sys.modules); start = time.perf_counter()\n" + statement +
            "\nprint(json.dumps([time.perf_counter() - start, sorted({m.split('.')[0] for m in set(sys.modules) - before})]))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seconds, packages = json.loads(result.stdout)
    return seconds, set(packages)


def test_package_imports_at_once():
    """`import wsss_nb` takes under 0.3 s, the best of three, and loads neither torch nor numpy."""
    runs = [fresh_import("import wsss_nb") for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < .3
    assert not runs[0][1] & (HEAVY | {"numpy", "matplotlib", "PIL", "cv2"})


@pytest.mark.parametrize("module", LIGHT)
def test_module_is_light(module):
    """Core, data sets, pictures, evaluation and the command line load no torch, numba or pycocotools when imported."""
    assert not fresh_import(f"import wsss_nb.{module}")[1] & HEAVY


def test_heavy_import_is_seen():
    """The probe does report what an import loads, also when a module loads it for another."""
    assert "numpy" in fresh_import("import wsss_nb.core")[1]
    if importlib.util.find_spec("pycocotools"):
        assert "pycocotools" in fresh_import("def f():\n    import pycocotools\nf()")[1]
    assert {"core", "files"} <= set(LIGHT)
