"""The fixtures that find real data say what is missing."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = "def test_data(data_folder):\n    assert (data_folder / 'here').is_file()\n"


@pytest.mark.parametrize("folder, words, code", [
    (None, "1 skipped", 0), (None, "WSSS_NB_DATA is not set", 0), ("missing", "which is no folder", 1), ("", "WSSS_NB_DATA is not set", 0),
    (".", "1 passed", 0)])
def test_data_folder(tmp_path, folder, words, code):
    """Unset or empty: skipped with the reason. A wrong folder: a failure that names it. Set: used."""
    (tmp_path / "test_data.py").write_text(TEST)
    (tmp_path / "here").touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    environment.pop("WSSS_NB_DATA", None)
    if folder is not None:
        environment["WSSS_NB_DATA"] = str(tmp_path / folder) if folder else ""
    result = subprocess.run([sys.executable, "-m", "pytest", "-rs", "-p", "conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
                            capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert words in result.stdout and result.returncode == code
