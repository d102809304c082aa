"""The command line: a run, stopped and gone on with; help with examples, and one readable line for every foreseen error."""
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_toy import words as tiny_words

from wsss_nb.files import folder_hash
from wsss_nb.recipes import RECIPES

BIN = Path(sys.executable).parent
COMMANDS = ("prepare", "classify", "cues", "train", "retrain", "predict", "evaluate", "report", "run", "demo", "recipes", "toyvoc", "own", "score")


def wsss_nb(*words, code: int = 0) -> str:
    "Run the installed command; what it said."
    done = subprocess.run([BIN / "wsss_nb", *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def inside(*words, code: int = 0) -> str:
    "The same in this process, which is faster."
    from typer.testing import CliRunner

    from wsss_nb.cli import app
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="wsss_nb")
    assert bool(done.exit_code) == bool(code), f"{done.output}\n{done.exception!r}"
    return f"wsss_nb: {done.exception}" if code else done.output


def one_line(said: str, *named: str) -> None:
    "A foreseen error: what, expected, mend."
    assert said.startswith("wsss_nb: ") and "Traceback" not in said and "To mend it" in said and len(said.strip().splitlines()) == 1, said
    assert all(name in said for name in named), said


def test_demo_ends_with_a_table_of_what_was_measured(tmp_path):
    "A few pictures, all stages: the table's numbers are those of evaluate/*.json, and the page is there."
    said = wsss_nb("demo", tmp_path / "demo", "--n-train", 32, "--n-val", 6)
    for name, row in (("val", "final"), ("val.train", "dsrg, before retraining")):
        value = json.loads((tmp_path / f"demo/evaluate/{name}.json").read_text())["mean_iou"]
        assert any(line.startswith(row) and f"{value:.1%}" in line for line in said.splitlines()), said
    assert "all background" in said and str(tmp_path / "demo/report/index.html") in said and (tmp_path / "demo/report/index.html").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_with_an_example(command):
    from typer.testing import CliRunner

    from wsss_nb.cli import app
    assert f"Example: wsss_nb {command}" in CliRunner().invoke(app, [command, "--help"]).output


def test_recipes_are_listed():
    said = wsss_nb("recipes")
    assert all(f"{name} " in said and f"{name}/toy" in said for name in RECIPES) and "Kolesnikov" in said
    assert "val.train 57.6, val 59.0 (table 2, VGG16)" in said and "()" not in said     # the course's own recipe has no paper's numbers
    assert "wsss_nb demo" in wsss_nb("--help") and "0." in wsss_nb("--version")


def test_dry_run_does_nothing(tmp_path):
    said = wsss_nb("run", "--run", tmp_path / "x", "--set", "data.n_train=7", "--dry-run")
    assert "7 for training" in said and "GiB" in said and "nothing yet" in said and not (tmp_path / "x").exists()


@pytest.mark.parametrize("words, named", [
    (("--recipe", "dsgr"), ("dsgr", "dsrg")), (("--set", "train.batchsize=8"), ("train.batchsize", "train.batch_size")), (("--set", "train.batch_size=eight"), ("eight", "whole number")),
    (("--set", "options.theta_foregruond=.5"), ("options.theta_foreground",)), (("--data", "nowhere"), ("nowhere",)), (("--config", "no.toml"), ("no.toml",)), ((), ("wsss_nb cues --run",))])
def test_mistakes_are_one_line(tmp_path, words, named):
    one_line(wsss_nb("train", "--run", tmp_path / "x", *words, code=1), *named)


def test_ctrl_c_leaves_a_run_that_goes_on(toyvoc, finished_run, tmp_path):
    "Stopped while the segmenter trains; the same command ends with the predictions of a run nobody disturbed."
    command = ["run", "--recipe", "dsrg/toy", "--data", str(toyvoc), "--run", str(tmp_path / "x"), *tiny_words("train.epochs=6")]
    process = subprocess.Popen([BIN / "wsss_nb", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 200
    while time.time() < deadline and process.poll() is None and not (tmp_path / "x/train/log.jsonl").exists():
        time.sleep(.005)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "goes on from here" in said and "Traceback" not in said and not (tmp_path / "x/train/manifest.json").exists()
    assert "The whole story" in wsss_nb(*command)
    wsss_nb(*["--run=" + str(tmp_path / "y") if word == str(tmp_path / "x") else word for word in command if word != "--run"])
    assert folder_hash(tmp_path / "x/predict/val") == folder_hash(tmp_path / "y/predict/val")


def test_seeds_that_are_missing_are_refused_or_counted(few, tmp_path):
    "One line without --allow-missing-seeds, a count with it, on `cues` and on `run`; before a classifier is trained."
    import numpy as np

    from wsss_nb.stored import write_seeds
    from wsss_nb.voc import voc_folder
    data = voc_folder(few, "train")
    for i, name in enumerate(data.ids):
        S = np.array([[[0, 1], [2, 0]]], np.uint8)
        write_seeds(tmp_path / "mine", name, S, data.classes, ["a"])
        if i % 4:
            write_seeds(tmp_path / "theirs", name, S, data.classes, ["b"])
    words = ["--run", tmp_path / "x", "--recipe", "wst/toy", "--data", few, *tiny_words(f"cues.seeds={tmp_path}/mine,{tmp_path}/theirs")]
    inside("prepare", *words)
    one_line(wsss_nb("run", *words, code=1), f"{tmp_path}/theirs lacks the seeds of 4 of 16 images, the first is {data.ids[0]}", "--allow-missing-seeds")
    assert "2 seeds from elsewhere" in inside("cues", *words, "--allow-missing-seeds", "--dry-run") and not (tmp_path / "x/cues").exists()
    shutil.rmtree(tmp_path / "x")
    assert "The whole story" in inside("run", *words, "--allow-missing-seeds")
    said = inside("cues", "--run", tmp_path / "x")
    assert "16 pictures" in said and f"pictures without their seed: 4 {tmp_path}/theirs" in said


def test_the_cost_of_a_mistake_in_a_recipe(few, tmp_path):
    "Layers and scales that do not fit are one line, also with --dry-run, and nothing is begun."
    for words, named in ((("--recipe", "dgcn/toy", "--set", "options.layers=trunk.blok3"), ("trunk.blok3", "trunk.block3")), (("--recipe", "wst/toy", "--set", "cues.scales=.5"), ("options.scales",)),
                         (("--recipe", "wst/toy", "--set", "options.types=crff"), ("crff", "crf")), (("--recipe", "wst/toy", "--set", "cues.seeds=nowhere:x"), ("nowhere:x", "FOLDER:NAME"))):
        one_line(inside("run", "--run", tmp_path / "x", "--data", few, *words, "--dry-run", code=1), *named)
    assert not (tmp_path / "x").exists()


def test_score_agrees_with_the_run(finished_run, toyvoc, tmp_path):
    wsss_nb("score", finished_run / "predict/val", "--data", toyvoc, "--out", tmp_path / "new/score.json")
    assert json.loads((tmp_path / "new/score.json").read_text()) == json.loads((finished_run / "evaluate/val.json").read_text())


def test_a_run_knows_its_config_and_profiles(finished_run):
    "No other words than its folder are needed."
    said = wsss_nb("train", "--run", finished_run, "--profile")
    assert all(part in said for part in ("reading", "network", "refine", "supervise", "loss", "backward", "optimiser", "times forward and backward alone"))
    assert "val" in wsss_nb("evaluate", "--run", finished_run)


@pytest.mark.parametrize("kind", ["toyvoc", "pretraining", "outsiders"])
def test_each_kind_of_data_set_can_be_drawn(tmp_path, kind):
    assert "complete" in wsss_nb("toyvoc", tmp_path / kind, "--kind", kind, "--n-train", 11, "--n-val", 1)
    assert len(list((tmp_path / kind).rglob("*.jpg"))) == 12


def test_other_foreseen_errors_are_one_line(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    one_line(wsss_nb("score", "nowhere", "--data", "nowhere", code=1), "nowhere")
    one_line(wsss_nb("toyvoc", tmp_path / "taken", code=1), "holds other files")
    one_line(wsss_nb("demo", tmp_path / "new", "--n-train", 0, code=1), "at least one picture")
    assert "none of toyvoc, pretraining, outsiders" in wsss_nb("toyvoc", tmp_path / "x", "--kind", "photos", code=2)


def test_a_table_and_photographs_become_a_counted_run(toyvoc, tmp_path):
    "The two commands of somebody with a spreadsheet; then what is wrong with it, in one line."
    from wsss_nb.voc import voc_folder
    data = voc_folder(toyvoc, "train")
    (tmp_path / "tags.csv").write_text("".join(f"{data.image_file(name).name},{';'.join(c for c, there in zip(data.classes, row) if there)}\n" for name, row in zip(data.ids, data.tags)))
    said = inside("own", tmp_path / "tags.csv", toyvoc / "JPEGImages", tmp_path / "mine", "--keep", .25)
    assert "24 pictures" in said and f"wsss_nb run --recipe ours --data {tmp_path / 'mine'}" in said
    assert "train: 18 pictures" in inside("prepare", "--data", tmp_path / "mine", "--run", tmp_path / "x")
    (tmp_path / "tags.csv").write_text("nobody.jpg,cow\n")
    one_line(inside("own", tmp_path / "tags.csv", toyvoc / "JPEGImages", tmp_path / "other", code=1), "nobody.jpg")


def test_prepare_gets_or_counts(tmp_path):
    "Nothing named is a mistake that says what could be; an unknown name is one line; --check tells what is missing and fails."
    from typer.testing import CliRunner

    from wsss_nb.cli import app
    idle = CliRunner().invoke(app, ["prepare"])
    assert idle.exit_code == 2 and "voc12" in idle.output and "--run" in idle.output
    one_line(inside("prepare", "voc13", "--folder", tmp_path, code=1), "voc13", "coco14")
    told = CliRunner().invoke(app, ["prepare", "coco14", "--folder", str(tmp_path), "--check"])
    assert told.exit_code == 1 and str(tmp_path) in told.output and not list(tmp_path.iterdir())
