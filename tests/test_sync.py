"""The library is what the notebooks say, and the notebooks are clean."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import ROOT, joined

EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"
CLEAN = "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()"


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository's sources in a folder of their own."""
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.nbi", "*.nbc")
    for name in ("nbs", "wsss_nb"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    return folder


def run_in(folder: Path, code: str) -> None:
    """Run Python code as the nbdev commands run: from the repository's top."""
    environment = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")}
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """File name to bytes."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Names that only one of the two has, or that differ."""
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def export_changes(folder: Path) -> list[str]:
    """Modules that differ after a fresh export; all but __init__.py are deleted before, so a leftover is found too."""
    before = contents(folder / "wsss_nb", "*.py")
    for name in before.keys() - {"__init__.py"}:
        (folder / "wsss_nb" / name).unlink()
    run_in(folder, EXPORT)
    return changed(before, contents(folder / "wsss_nb", "*.py"))


def clean_changes(folder: Path) -> list[str]:
    """Notebooks that nbdev_clean rewrites."""
    before = contents(folder / "nbs", "*.ipynb")
    run_in(folder, CLEAN)
    return changed(before, contents(folder / "nbs", "*.ipynb"))


def test_library_is_exported(copy):
    """`nbdev_export` changes no byte of wsss_nb/, and no other file at the top."""
    top = contents(copy, "*.*")
    assert export_changes(copy) == [], "run nbdev_export, and commit notebooks and modules together"
    assert changed(top, contents(copy, "*.*")) == []


def test_notebooks_are_clean(copy):
    """`nbdev_clean` changes no byte of nbs/."""
    assert clean_changes(copy) == [], "run nbdev_clean"


def test_edits_are_found(copy):
    """A module edited by hand, a leftover module, an edited notebook and an unclean one are all noticed."""
    with open(copy / "wsss_nb" / "core.py", "a") as file:
        file.write("# by hand\n")
    (copy / "wsss_nb" / "leftover.py").write_text("x = 1\n")
    path = copy / "nbs" / "00b_files.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if joined(cell["source"]).startswith("#| export"))
    cell["source"], cell["execution_count"] = joined(cell["source"]) + "\n\ndef added(): ...", 7
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert clean_changes(copy) == ["00b_files.ipynb"]
    assert set(export_changes(copy)) == {"_modidx.py", "core.py", "files.py", "leftover.py"}
