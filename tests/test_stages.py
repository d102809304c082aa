"""Lesson 52 and its commands: tags in, classifiers and cues out."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from wsss_nb.cli import app
from wsss_nb.core import DataError
from wsss_nb.files import folder_hash
from wsss_nb.pretraining import load_classifier
from wsss_nb.stages import classify, make_cues
from wsss_nb.stored import read_seeds
from wsss_nb.voc import voc_folder

run = lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(toyvoc, tmp_path_factory):
    "Two classifiers made by the command, one of them grey, from random weights: quick, and of no use."
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("colour", []), ("grey", ["--grey"])):
        told = run("classify", toyvoc, "--out", folder / name, "--weights", "random", *more)
        assert told.exit_code == 0, told.output
    return folder


def test_classify_leaves_what_it_says(trained, toyvoc):
    "A classifier that knows its classes and whether it sees colours; measures for each class; a log of ten epochs."
    colour, grey = (load_classifier(trained / name / "classifier.pt") for name in ("colour", "grey"))
    x = torch.rand(1, 3, 32, 32)
    mixed = x[:, [1, 2, 0]]
    assert colour.classes == voc_folder(toyvoc, "train").classes and not torch.allclose(colour.eval()(x), colour(mixed))
    y = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    luma = torch.tensor([.299, .587, .114])[:, None, None]
    assert torch.allclose(grey.eval()(x), grey((x * luma).sum(1, keepdim=True).expand_as(y)), atol=1e-4)
    quality = json.loads((trained / "colour/tags.json").read_text())
    assert set(quality) >= {"average precision", "accuracy", "recall"} and set(quality["recall"]) == set(colour.classes)
    assert len((trained / "colour/log.jsonl").read_text().splitlines()) >= 1


def test_calling_classify_again_changes_nothing(trained, toyvoc):
    "A finished stage has nothing left to do."
    before = folder_hash(trained / "colour")
    assert run("classify", toyvoc, "--out", trained / "colour", "--weights", "random").exit_code == 0
    assert folder_hash(trained / "colour") == before


def test_cues_of_two_classifiers_are_twelve(trained, toyvoc, tmp_path):
    "The command makes what the function makes."
    told = run("cues", toyvoc, trained / "colour", trained / "grey", "--out", tmp_path / "a", "--split", "val")
    assert told.exit_code == 0, told.output
    data = voc_folder(toyvoc, "val")
    make_cues(data, [trained / "colour", trained / "grey/classifier.pt"], tmp_path / "b")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    seeds = read_seeds(tmp_path / f"a/{data.ids[0]}.npz", data.classes)
    assert len(seeds.names) == 12 and seeds.S.shape[1:] == data.image(0).shape[:2]


def test_stored_saliency_is_used_and_disclosed(trained, toyvoc, tmp_path):
    "Maps of another model are extra supervision: every file says so."
    data = voc_folder(toyvoc, "val")
    for i, name in enumerate(data.ids):
        h, w = data.image(i).shape[:2]
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(np.pad(np.zeros((h, w // 2), np.uint8), ((0, 0), (0, w - w // 2)), constant_values=255)).save(tmp_path / f"maps/{name}.png")
    told = run("cues", toyvoc, trained / "colour", "--out", tmp_path / "cues", "--split", "val", "--saliency", tmp_path / "maps", "--model", "a ruler", "--scale", "1", "--size", "41")
    assert told.exit_code == 0, told.output
    seeds = read_seeds(tmp_path / f"cues/{data.ids[0]}.npz")
    assert "extra supervision" in seeds.made["saliency"] and "a ruler" in seeds.made["saliency"]
    threshold = seeds.S[0]
    assert threshold.shape == (41, 41) and not (threshold[:, 22:] == 0).any() and (threshold[:, :19] == 0).any()


@pytest.mark.parametrize("words, said", [
    (["classify", "DATA", "--out", "OUT", "--network", "resnet51"], "resnet50"),
    (["classify", "DATA", "--out", "OUT", "--preset", "toys"], "toy"),
    (["classify", "DATA", "--out", "OUT", "--weights", "nowhere.pth"], "nowhere.pth"),
    (["classify", "DATA", "--out", "OUT", "--split", "nothing"], "nothing"),
    (["cues", "DATA", "nobody", "--out", "OUT"], "nobody"),
    (["cues", "DATA", "COLOUR", "COLOUR", "--out", "OUT"], "different names"),
    (["cues", "DATA", "COLOUR", "--out", "OUT", "--saliency", "DATA"], "saliency"),
    (["cues", "DATA", "COLOUR", "--out", "OUT", "--scale", "0"], "positive"),
    (["cues", "DATA", "COLOUR", "--out", "OUT", "--size", "0"], "size"),
])
def test_mistakes_are_answered_in_words(words, said, trained, toyvoc, tmp_path):
    "The message names what is wrong."
    names = {"DATA": toyvoc, "OUT": tmp_path / "out", "COLOUR": trained / "colour"}
    told = run(*[names.get(word, word) for word in words])
    assert told.exit_code != 0 and isinstance(told.exception, (DataError, SystemExit)) and said in f"{told.exception} {told.output}"


def test_a_classifier_of_other_classes_is_refused(trained, tmp_path, toyvoc):
    "Class numbers would mean something else."
    other = tmp_path / "other"
    other.mkdir()
    for entry in toyvoc.iterdir():
        if entry.name not in ("classes.txt", "image_labels.txt"):
            (other / entry.name).symlink_to(entry)
    (other / "classes.txt").write_text((toyvoc / "classes.txt").read_text().replace("cow", "yak"))
    (other / "image_labels.txt").write_text((toyvoc / "image_labels.txt").read_text().replace("cow", "yak"))
    with pytest.raises(DataError, match="yak"):
        make_cues(voc_folder(other, "val"), [trained / "colour"], tmp_path / "cues")


def test_two_processes_train_one_classifier(toyvoc, tmp_path):
    "torchrun with the command itself; the first process saves, scores and logs, once."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["classify", str(toyvoc), "--weights", "random", "--out"]
    wsss_nb = str(Path(sys.executable).parent / "wsss_nb")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--no-python", wsss_nb]
    done = subprocess.run([*both, *command, str(tmp_path / "two")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    classify(voc_folder(toyvoc, "train"), tmp_path / "one", weights="random")
    rows = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("two", "one")]
    epochs = [[row["epoch"] for row in part if row["event"] == "epoch"] for part in rows]
    assert epochs[0] == epochs[1] == list(range(1, 11))
    assert load_classifier(tmp_path / "two/classifier.pt").classes == voc_folder(toyvoc, "train").classes
    assert done.stdout.count("classifier.pt is trained") == 1
