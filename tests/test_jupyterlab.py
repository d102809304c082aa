"""A student's first minutes: JupyterLab starts, shows a lesson, runs it, and its sliders change the picture."""
import base64
import io
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

import numpy as np
import pytest
from browser import chromium_page, stop, wait_for
from notebooks import NBS, read_lesson
from PIL import Image

LESSON = "00_core.ipynb"
MOVED = ("14a_cues.ipynb", "30_growing.ipynb", "32_wst.ipynb")   # lessons whose sliders are moved


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
             "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder / 'nbs'}"],
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


NOTEBOOK = "jupyterapp.shell.currentWidget.content"


def picture_of(evaluate) -> np.ndarray | None:
    """What the active cell's widget shows."""
    src = evaluate("document.querySelector('.jp-Notebook .jp-Cell.jp-mod-active .jp-OutputArea img')?.src || ''") or ""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")) if src.startswith("data:") else None


def seen_to_change(evaluate, before: np.ndarray) -> np.ndarray | None:
    """The picture, once it is another."""
    after = picture_of(evaluate)
    return after if after is not None and (after.shape != before.shape or (after != before).any()) else None


@pytest.mark.parametrize("name", MOVED)
def test_a_slider_changes_the_picture(lab, tmp_path, name):
    """All cells above the exercises run without an error; an arrow key on the slider draws another picture, and back again the first."""
    address, token = lab
    cells = read_lesson(NBS / name).cells
    end = next(k for k, cell in enumerate(cells) if "## Exercises" in cell.source)
    slider = next(k for k, cell in enumerate(cells) if cell.kind == "code" and "interact(" in cell.source)
    with chromium_page(f"{address}/lab/tree/{name}?reset&token={token}", tmp_path) as evaluate:   # reset: no lesson of an earlier test comes back
        wait_for(lambda: evaluate("jupyterapp.shell.currentWidget.context.path") == name and evaluate(f"{NOTEBOOK}.widgets.length") == len(cells), "the lesson to be open")
        wait_for(lambda: evaluate("jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status") == "idle", "a kernel")
        evaluate(f"{NOTEBOOK}.activeCellIndex = {end}; jupyterapp.commands.execute('notebook:run-all-above').then(() => window.ran = true); 0")
        wait_for(lambda: evaluate("window.ran"), f"{name} to run", 400)
        outputs = json.loads(evaluate(f"JSON.stringify({NOTEBOOK}.widgets.slice(0, {end}).map(c => c.model.type == 'code' ? c.model.sharedModel.toJSON() : null))"))
        assert not [out for cell in outputs if cell for out in cell["outputs"] if out["output_type"] == "error"]
        assert all(cell["execution_count"] for cell in outputs if cell and "".join(cell["source"]).strip())
        evaluate(f"{NOTEBOOK}.activeCellIndex = {slider}; {NOTEBOOK}.scrollToItem({slider}); 0")
        first = wait_for(lambda: picture_of(evaluate) is not None and [picture_of(evaluate)], "the widget's picture")[0]
        press = lambda key: evaluate("document.querySelector('.jp-Cell.jp-mod-active .noUi-handle').dispatchEvent("
                                     f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true, cancelable: true}})); 0")
        wait_for(lambda: evaluate("!!document.querySelector('.jp-Cell.jp-mod-active .noUi-handle')"), "the slider")
        for _ in range(3):
            press("ArrowRight")
        other = wait_for(lambda: [x for x in [seen_to_change(evaluate, first)] if x is not None], "another picture")[0]
        assert other.ndim == 3 and other.std() > 5                      # a picture, and no blank
        evaluate.screenshot(tmp_path / "moved.png")
        for _ in range(3):
            press("ArrowLeft")
        def back() -> bool:
            """The first picture once more."""
            now = picture_of(evaluate)
            return now is not None and now.shape == first.shape and bool((now == first).all())
        wait_for(back, "the first picture")
        evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown(); 0")
