"""A student's first minute: JupyterLab starts and shows a lesson."""
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from browser import chromium_page, stop, wait_for
from notebooks import NBS, read_lesson

LESSON = "00_core.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and token of a JupyterLab on a copy of the lessons; it writes nothing outside the test's folder."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed; `pip install -e '.[dev]'` brings it")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NBS, folder / "nbs", ignore=shutil.ignore_patterns(".*", "_quarto.yml"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {name: str(folder / name.lower()) for name in
              ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'nbs'}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **places})
    try:
        def started() -> bool:
            """The server answers, or it has ended and its log says why."""
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0
        wait_for(started, "JupyterLab to start")
        yield f"http://127.0.0.1:{port}", token
    finally:
        stop(process)


def contents(address: str, token: str) -> dict:
    """What the contents API says of the lesson."""
    request = urllib.request.Request(f"{address}/api/contents/{LESSON}", headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_lesson_is_served(lab):
    """The lesson comes through whole, as a valid notebook, and only to who has the token."""
    model, lesson = contents(*lab), read_lesson(NBS / LESSON)
    assert model["type"] == "notebook" and "message" not in model      # a message would say that the notebook is invalid
    assert [cell["source"] for cell in model["content"]["cells"]] == [cell.source for cell in lesson.cells]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        contents(lab[0], "wrong")


def test_lesson_opens_in_a_browser(lab, tmp_path):
    """The page shows the lesson's title and its code, and a Python kernel stands ready."""
    title = re.match(r"# (.*)", read_lesson(NBS / LESSON).cells[0].source)[1]
    address, token = lab
    with chromium_page(f"{address}/lab/tree/{LESSON}?token={token}", tmp_path) as evaluate:
        shown = wait_for(lambda: evaluate("document.querySelector('.jp-RenderedMarkdown h1')?.innerText"), "the title to be shown")
        assert shown.startswith(title)
        wait_for(lambda: evaluate("document.querySelectorAll('.jp-CodeCell').length > 3"), "code cells to be shown")
        wait_for(lambda: evaluate("[...document.querySelectorAll('.jp-KernelName, .jp-Toolbar-kernelName')].some(e => "
                                  "e.innerText.startsWith('Python 3'))"), "the kernel's name")
