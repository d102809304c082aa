"""A headless Chromium for tests: open a page, ask it things."""
from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def wait_for(question, what: str, seconds: float = 60):
    """Ask again and again until the answer is true; fail after a while and say what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(.2)
    pytest.fail(f"waited {seconds:.0f} s for {what}")


def stop(process: subprocess.Popen) -> None:
    """End a process this test started."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def chromium_page(url: str, folder: Path):
    """Open a page in Chromium and give a function that evaluates JavaScript in it; skips where there is no Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip("no Chromium here; `apt-get install chromium` brings one")
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed; jupyterlab brings it")
    process = subprocess.Popen([program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                                "--window-size=1400,1000", "--remote-debugging-port=0", f"--user-data-dir={folder}", url],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        file = folder / "DevToolsActivePort"
        port = wait_for(lambda: file.is_file() and file.read_text().partition("\n")[0], "Chromium to start")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        connection = websocket.create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=30)

        def ask(method: str, **params) -> dict:
            """What Chromium answers to a message of its protocol."""
            evaluate.count += 1
            connection.send(json.dumps({"id": evaluate.count, "method": method, "params": params}))
            while (reply := json.loads(connection.recv())).get("id") != evaluate.count:
                pass
            return reply["result"]

        def evaluate(script: str):
            """The value of a JavaScript expression in the page."""
            return ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

        def screenshot(path: Path) -> None:
            """What a person would see, as PNG."""
            path.write_bytes(base64.b64decode(ask("Page.captureScreenshot", format="png")["data"]))

        evaluate.count, evaluate.screenshot = 0, screenshot
        yield evaluate
        connection.close()
    finally:
        stop(process)
