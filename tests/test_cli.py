"""The command line: the demo from end to end, help with examples, and one readable line for every foreseen error."""
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BIN = Path(sys.executable).parent


def wsss_nb(*words, code: int = 0) -> str:
    "Run the installed command; what it said."
    done = subprocess.run([BIN / "wsss_nb", *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    "The demo, run once on a few pictures, and its output."
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, wsss_nb("demo", folder, "--n-train", 6, "--n-val", 12)


def masks(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    "Class and object masks of the validation pictures, read by Pillow alone."
    names = (folder / "toyvoc/ImageSets/Segmentation/val.txt").read_text().split()
    return [tuple(np.array(Image.open(folder / f"toyvoc/{kind}/{name}.png")) for kind in ("SegmentationClass", "SegmentationObject")) for name in names]


def miou(pairs) -> float:
    "Mean IoU from its definition, class by class."
    ious = []
    for c in range(7):
        both = sum(((p == c) & (t == c)).sum() for p, t in pairs)
        either = sum((((p == c) | (t == c)) & (t != 255)).sum() for p, t in pairs)
        ious += [both / either] if either else []
    return float(np.mean(ious))


def test_demo_scores_all_background_as_it_should(demo):
    folder, said = demo
    expected = miou([(np.zeros_like(t), t) for t, _ in masks(folder)])
    assert json.loads((folder / "evaluate/background.json").read_text())["mean_iou"] == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.1%}" in said


def test_demo_fills_ground_truth_boxes(demo):
    "Boxes and painting order are made again here from the object masks alone."
    folder, said = demo
    pairs = []
    for S, objects in masks(folder):
        boxes = []
        for number in set(np.unique(objects)) - {0, 255}:
            y, x = np.nonzero(objects == number)
            area = (y.max() + 1 - y.min()) * (x.max() + 1 - x.min())
            boxes.append((area, number, (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)), S[y[0], x[0]]))
        prediction = np.zeros_like(S)
        for _, _, window, c in sorted(boxes, key=lambda b: (-b[0], b[1])):
            prediction[window] = c
        pairs.append((prediction, S))
    expected = miou(pairs)
    assert json.loads((folder / "evaluate/boxes.json").read_text())["mean_iou"] == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.1%}" in said


def test_demo_leaves_pictures_to_look_at(demo):
    folder, said = demo
    for name in ("toyvoc.jpg", "result.jpg"):
        assert name in said
        assert min(Image.open(folder / name).size) > 200


def test_demo_can_be_run_again(demo):
    folder, said = demo
    assert wsss_nb("demo", folder, "--n-train", 6, "--n-val", 12) == said


def test_score_agrees_with_the_demo(demo, tmp_path):
    folder, _ = demo
    out = tmp_path / "new/score.json"
    wsss_nb("score", folder / "predict/boxes", "--data", folder / "toyvoc", "--out", out)
    assert json.loads(out.read_text()) == json.loads((folder / "evaluate/boxes.json").read_text())


@pytest.mark.parametrize("kind", ["toyvoc", "pretraining", "outsiders"])
def test_each_kind_of_data_set_can_be_drawn(tmp_path, kind):
    assert "complete" in wsss_nb("toyvoc", tmp_path / kind, "--kind", kind, "--n-train", 11, "--n-val", 1)
    assert len(list((tmp_path / kind).rglob("*.jpg"))) == 12


@pytest.mark.parametrize("words", [("--help",), ("demo", "--help"), ("toyvoc", "--help"), ("score", "--help"), ("--version",)])
def test_help_comes_with_an_example(words):
    said = wsss_nb(*words)
    assert ("wsss_nb demo" if words[0] == "--help" else "0." if words[0] == "--version" else f"Example: wsss_nb {words[0]}") in said


@pytest.mark.parametrize("words, says", [
    (("score", "nowhere", "--data", "nowhere"), "nowhere"),
    (("toyvoc", "{taken}"), "holds other files"),
    (("demo", "{new}", "--n-train", 0, "--n-val", 0), "at least one picture to score")])
def test_a_foreseen_error_is_one_line(tmp_path, words, says):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    said = wsss_nb(*(str(w).format(taken=tmp_path / "taken", new=tmp_path / "new") for w in words), code=1)
    assert said.startswith("wsss_nb: ") and says in said and "Traceback" not in said and "To mend it" in said
    assert len(said.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_one_line_too(tmp_path):
    (tmp_path / "file").write_text("")
    said = wsss_nb("demo", tmp_path / "file/below", "--n-train", 1, "--n-val", 1, code=1)
    assert said.startswith("wsss_nb: ") and str(tmp_path / "file") in said and "Traceback" not in said


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(tmp_path):
    process = subprocess.Popen([BIN / "wsss_nb", "toyvoc", tmp_path / "toyvoc", "--n-train", "40", "--n-val", "0"], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not list(tmp_path.glob("toyvoc/Annotations/[!.]*.xml")):
        time.sleep(.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    drawn = len(list(tmp_path.glob("toyvoc/Annotations/[!.]*.xml")))
    assert process.returncode == 130 and "goes on from here" in said and "Traceback" not in said and 0 < drawn < 40
    assert "complete" in wsss_nb("toyvoc", tmp_path / "toyvoc", "--n-train", 40, "--n-val", 0)


def test_an_unknown_kind_is_refused(tmp_path):
    assert "none of toyvoc, pretraining, outsiders" in wsss_nb("toyvoc", tmp_path / "x", "--kind", "photos", code=2)


def test_a_missing_prediction_is_named(demo):
    folder, _ = demo
    lost = folder / "predict/background/val_00003.png"
    content = lost.read_bytes()
    lost.unlink()
    try:
        assert "val_00003.png" in wsss_nb("score", folder / "predict/background", "--data", folder / "toyvoc", code=1)
    finally:
        lost.write_bytes(content)
