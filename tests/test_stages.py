"""Lesson 52: tags in, a page of results out; retraining, variants, no masks, bad input, and two processes."""
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_toy import TINY, tiny

from wsss_nb.checkpoint import read_log
from wsss_nb.config import load_config
from wsss_nb.core import IGNORE, DataError
from wsss_nb.evaluation import confusion, evaluate_folder, supervision_quality
from wsss_nb.files import folder_hash, read_labels
from wsss_nb.manifest import read_manifest
from wsss_nb.segmenter import load_segmenter
from wsss_nb.stages import classify, cues, evaluate, predict, prepare, report, retrain, run_all, train
from wsss_nb.stored import read_seeds, write_seeds
from wsss_nb.voc import voc_folder


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def redo(run: Path, *names: str) -> None:
    """Delete stages."""
    for name in names:
        shutil.rmtree(run / name)


def test_what_a_run_leaves(finished_run, toyvoc):
    """Every file the lesson promises, for every picture."""
    train_ids, val_ids = (voc_folder(toyvoc, split).ids for split in ("train", "val"))
    for name in ("config.json", "environment.json", "classify/colour/classifier.pt", "classify/colour/tags.json", "classify/colour/log.jsonl", "train/last.pt", "train/log.jsonl",
                 "train/quality.jsonl", "train/segmenter.pt", "retrain/1/segmenter.pt", "retrain/1/log.jsonl", "evaluate/val.json", "evaluate/val.train.json", "evaluate/cues.json",
                 "report/index.html"):
        assert (finished_run / name).stat().st_size > 0, name
    assert {p.stem for p in (finished_run / "cues").glob("*.npz")} == set(train_ids) == {p.stem for p in (finished_run / "retrain/1/labels").glob("*.png")}
    assert {p.stem for p in (finished_run / "predict/val").glob("*.png")} == set(val_ids) == {p.stem for p in (finished_run / "predict/val.train").glob("*.png")}
    assert load_segmenter(finished_run / "train/segmenter.pt").classes == voc_folder(toyvoc, "val").classes
    assert [row["epoch"] for row in read_log(finished_run / "train/quality.jsonl")] == [0, 1]


def test_numbers_are_those_of_the_files(finished_run, toyvoc):
    """Predictions scored again by lesson 05; cues scored from their files; the first row of the quality from its pictures."""
    data = voc_folder(toyvoc, "val", masks=True)
    for way in ("val", "val.train"):
        assert json.loads((finished_run / f"evaluate/{way}.json").read_text()) == evaluate_folder(finished_run / "predict" / way, data).as_dict()
        assert read_manifest(finished_run / "evaluate")["counts"][way] == round(evaluate_folder(finished_run / "predict" / way, data).summary()["mean_iou"], 4)
    seen, total = voc_folder(toyvoc, "train", masks=True), 0
    shares = []
    for i, name in enumerate(seen.ids):
        S = read_seeds(finished_run / f"cues/{name}.npz").S[0]
        shares.append([((S != 0) & (S != IGNORE)).mean(), (S == 0).mean()])
        total = total + confusion(S, seen.mask(i), 7, partial=True)
    told = json.loads((finished_run / "evaluate/cues.json").read_text())
    assert all(told[name] == pytest.approx(value, abs=1e-12) for name, value in supervision_quality(total).items() if value == value)
    counts = read_manifest(finished_run / "cues")["counts"]
    assert [counts["foreground"], counts["background"]] == pytest.approx(np.mean(shares, 0), abs=1e-4)
    assert "robust background" in counts["saliency"]


def test_a_run_can_be_made_again(toyvoc, finished_run, tmp_path):
    """The same config, the same predictions, bit for bit."""
    run_all(tiny(toyvoc), tmp_path)
    assert folder_hash(tmp_path / "predict/val") == folder_hash(finished_run / "predict/val")


@pytest.mark.parametrize("start", ["trained", "afresh"])
def test_two_rounds_of_retraining(run, toyvoc, start):
    """Each learns from the predictions of the one before; afresh, the network begins anew and ends elsewhere."""
    redo(run, "retrain", "predict", "evaluate", "report")
    config = tiny(toyvoc, "dsrg/toy", "retrain.rounds=2", f"retrain.start={start}", "retrain.restrict=true", "train.learning_rate=2e-3")
    done = run_all(config, run)
    assert done["predict"]["counts"]["ways"] == ["val.train", "val.retrain1", "val"] and set(done["retrain"]["counts"]) == {"1", "2"}
    data = voc_folder(toyvoc, "train")
    for k in (1, 2):
        for i, name in enumerate(data.ids):                   # restricted to the tags
            assert set(np.unique(read_labels(run / f"retrain/{k}/labels/{name}.png"))) <= {0, IGNORE, *(1 + np.flatnonzero(data.tags[i]))}
    assert folder_hash(run / "retrain/1/labels") != folder_hash(run / "retrain/2/labels") or start == "trained"


def test_variants_and_the_veto(run, toyvoc):
    """val.tags is told the tags, val.plain is without the veto, and only the ways asked for exist."""
    redo(run, "predict", "evaluate", "report")
    done = run_all(tiny(toyvoc, "dsrg/toy", "predict.amend=0", "predict.variants=tags,nocrf,single", "predict.scales=.75,1"), run)
    assert done["predict"]["counts"]["ways"] == ["val.train", "val", "val.plain", "val.tags", "val.nocrf", "val.single"]
    assert {p.name for p in (run / "predict").iterdir() if p.is_dir()} == set(done["predict"]["counts"]["ways"])
    page = (run / "report/index.html").read_text()
    assert "told the true tags (upper bound)" in page and "without the classifier" in page
    redo(run, "predict", "evaluate", "report")
    with pytest.raises(DataError, match="single"):
        predict(tiny(toyvoc, "dsrg/toy", "predict.variants=singel"), run)


def test_without_masks(toyvoc, tmp_path):
    """The same folder without any: a run, a page, and no number that nobody can know."""
    bare = Path(shutil.copytree(toyvoc, tmp_path / "bare", ignore=shutil.ignore_patterns("SegmentationClass", "SegmentationObject")))
    done = run_all(tiny(bare, "dsrg/toy", "retrain.rounds=0"), tmp_path / "run")
    assert done["evaluate"]["counts"] == {"masks": 0} and not list((tmp_path / "run/evaluate").glob("val*.json"))
    assert read_log(tmp_path / "run/train/quality.jsonl") == [{"epoch": 0}, {"epoch": 1}]
    assert "mask" in (tmp_path / "run/report/index.html").read_text()


def test_stored_saliency_is_used_and_disclosed(run, toyvoc, tmp_path):
    """Maps of another model are extra supervision: counts and page say so, and background is where they are dark."""
    data = voc_folder(toyvoc, "train")
    (tmp_path / "maps").mkdir()
    for i, name in enumerate(data.ids):
        h, w = data.image(i).shape[:2]
        Image.fromarray(np.pad(np.zeros((h, w // 2), np.uint8), ((0, 0), (0, w - w // 2)), constant_values=255)).save(tmp_path / f"maps/{name}.png")
    redo(run, "cues", "train", "retrain", "predict", "evaluate", "report")
    config = tiny(toyvoc, "dsrg/toy", f"cues.saliency={tmp_path / 'maps'}", "cues.model=a ruler", "cues.size=[41, 41]")
    assert "a ruler" in cues(config, run)["counts"]["saliency"]
    S = read_seeds(run / f"cues/{data.ids[0]}.npz").S[0]
    assert S.shape == (41, 41) and not (S[:, 22:] == 0).any() and (S[:, :19] == 0).any()
    run_all(config, run)
    assert "a ruler" in (run / "report/index.html").read_text()


# ---- bad input -----------------------------------------------------------------------------------------------------------

def test_zero_images(toyvoc, tmp_path):
    """An empty list is named, for either split."""
    for split in ("train", "val"):
        data = Path(shutil.copytree(toyvoc, tmp_path / split))
        (data / f"ImageSets/Segmentation/{split}.txt").write_text("")
        with pytest.raises(DataError, match=f"{split}.*empty") as error:
            prepare(tiny(data), tmp_path / "run")
        assert "\n" not in str(error.value)


def test_cues_that_label_nothing_are_refused(run, toyvoc):
    """No class anywhere, or no background anywhere: the stage is not done, and the message says which setting to move."""
    data = voc_folder(toyvoc, "train")
    for value, message in ((0, "no pixel of 24 pictures got a class.*lower cues.foreground"), (1, "got background.*raise cues.background")):
        for name in data.ids:
            write_seeds(run / "cues", name, np.full((1, 4, 4), value, np.uint8), data.classes, ["dsrg 0"])
        (run / "cues/manifest.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match=message) as error:
            cues(tiny(toyvoc), run)
        assert "\n" not in str(error.value) and read_manifest(run / "cues") is None


def test_a_damaged_segmenter_is_named(run, toyvoc):
    """A file cut in half is refused by its name."""
    redo(run, "predict", "evaluate", "report")
    path = run / "retrain/1/segmenter.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="retrain/1/segmenter.pt"):
        predict(tiny(toyvoc), run)


def test_a_killed_stage_of_pictures_goes_on(run, toyvoc):
    """Half of the cues, labels and predictions gone, their manifests too: only those are made again, and they are the same."""
    before = {name: folder_hash(run / name) for name in ("cues", "retrain/1/labels", "predict/val")}
    times = {}
    for name in before:
        files = sorted(path for path in (run / name).iterdir() if path.suffix in (".npz", ".png"))
        for path in files[::2]:
            path.unlink()
        times |= {path: path.stat().st_mtime_ns for path in files[1::2]}
    for name in ("cues", "retrain", "predict"):
        (run / name / "manifest.json").unlink()
    (run / "retrain/1/labels.json").unlink()
    config = tiny(toyvoc)
    for stage in (cues, train, retrain, predict, evaluate, report):
        stage(config, run)
    after = {name: folder_hash(run / name) for name in before}
    assert after["retrain/1/labels"] == before["retrain/1/labels"] and after["predict/val"] == before["predict/val"]
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())


# ---- several processes ---------------------------------------------------------------------------------------------------

def test_two_processes_make_one_run(toyvoc, tmp_path):
    """torchrun with the command itself, all stages: each file once, the same pictures learned from, and the first process alone talks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--no-python", "--", str(Path(sys.executable).parent / "wsss_nb")]
    words = [f"--set={text}" for text in (*TINY, "device=cpu")]
    done = subprocess.run([*both, "run", "--recipe", "dsrg/toy", "--data", str(toyvoc), "--run", str(tmp_path / "two"), *words],
                          env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("4/8 train") == 1 and done.stdout.count("The whole story") == 1
    assert [row["epoch"] for row in read_log(tmp_path / "two/train/quality.jsonl")] == [0, 1]
    assert classify(load_config("dsrg/toy", toyvoc, overrides=[*TINY, "device=cpu"]), tmp_path / "two") == read_manifest(tmp_path / "two/classify")
