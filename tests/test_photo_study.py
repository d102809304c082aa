"""The study on photographs: its rows, its count, its bootstrap, and what one run lends another."""
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from notebooks import ROOT
from PIL import Image

from wsss_nb import photo_study
from wsss_nb.core import DataError
from wsss_nb.evaluation import Evaluation, mean_iou
from wsss_nb.files import write_labels
from wsss_nb.manifest import write_json
from wsss_nb.photo_study import FULL, PHOTO_TRIALS, by_size, lend, mean_iou_of, measure_photos, photo_config, read_photo_study, spread_of
from wsss_nb.recipes import RECIPES

STORED = ROOT / "nbs/results/photo_study/coco_sample.json"


def matrices(rng: np.random.Generator, n: int, K: int) -> np.ndarray: # (n,K,K)
    """Confusion matrices of pictures, each with few of the classes."""
    N = rng.integers(0, 50, (n, K, K)) * (rng.random((n, K, 1)) < .6)
    N[:, :, K - 1] *= rng.random((n, 1)) < .3
    return N


def reduced(N: np.ndarray) -> np.ndarray: # (n,3,K)
    return np.stack([N.diagonal(axis1=1, axis2=2), N.sum(1), N.sum(2)], 1)


@pytest.mark.parametrize("seed", range(20))
def test_three_numbers_are_enough(seed):
    """mIoU of a sum, from diagonal and margins alone; classes that are nowhere are left out."""
    N = matrices(np.random.default_rng(seed), 6, 5)
    N[:, 2] = N[:, :, 2] = 0
    assert mean_iou_of(reduced(N).sum(0)) == pytest.approx(mean_iou(N.sum(0)), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_sizes_are_counted_class_by_class(seed):
    """Large, small and found, by a loop over the classes with lesson 05's IoU; classes that are nowhere belong to neither."""
    N = matrices(np.random.default_rng(seed), 6, 5).sum(0)
    N[1] = N[:, 1] = 0
    N[4, 0] = 3                                              # a class that is there, whatever was drawn
    iou, share = [N[c, c] / max(N[c].sum() + N[:, c].sum() - N[c, c], 1) for c in range(5)], N.sum(1) / N.sum()
    mean = lambda classes: pytest.approx(np.mean([iou[c] for c in classes])) if classes else None
    said = by_size(reduced(N[None])[0], .2)
    assert said["large"] == mean([c for c in range(5) if share[c] >= .2]) and said["small"] == mean([c for c in range(5) if 0 < share[c] < .2])
    assert said["found"] == sum(N[c].sum() > 0 and N[c, c] > 0 for c in range(5)) and said["there"] == sum(N[c].sum() > 0 for c in range(5))
    assert said["classes above"] == sum(share >= .2)


def test_no_class_is_large():
    """Many equal classes: none holds the share that is asked for."""
    assert by_size(np.stack([np.ones(9), np.ones(9), np.ones(9)]), .5)["large"] is None


def test_spread_equals_a_loop():
    """Pictures drawn one by one, their matrices added, mIoU of each: the same spread, up to chance."""
    rng = np.random.default_rng(0)
    A, B = matrices(rng, 12, 4), matrices(rng, 12, 4)
    drawn = []
    for _ in range(3000):
        i = rng.integers(0, 12, 12)
        drawn.append(mean_iou(A[i].sum(0)) - mean_iou(B[i].sum(0)))
    assert spread_of(reduced(A), reduced(B), 3000) == pytest.approx(np.std(drawn, ddof=1), rel=.06)


def test_spread_of_one_and_the_same():
    """A pair is compared on the same draws."""
    N = reduced(matrices(np.random.default_rng(1), 9, 4))
    assert spread_of(N, N) == 0
    assert spread_of(N, N * [[0], [1], [1]]) > 0
    with pytest.raises(DataError, match="two of the same pictures"):
        spread_of(N, N[:5])


def test_every_recipe_has_a_row(tmp_path):
    """All differ from `ours` in the recipe or in the settings they name, and in nothing else."""
    assert set(RECIPES) <= {trial.recipe for name, trial in PHOTO_TRIALS.items() if name not in FULL}
    ours = photo_config(PHOTO_TRIALS["ours"], tmp_path)
    for name, trial in PHOTO_TRIALS.items():
        config = photo_config(trial, tmp_path, ["seed=3"], tmp_path / "masks" if name in FULL else None)
        assert config.recipe == trial.recipe and config.seed == config.train.seed == 3
        assert (config.train.network, config.train.epochs, config.classify) == (ours.train.network, ours.train.epochs, ours.classify)
        assert config.predict.variants == ("tags",)
        assert config.cues.seeds == ((str(tmp_path / "masks"),) if name in FULL else ())
        assert (config.recipe, config.options) != (ours.recipe, ours.options) or name == "ours"


def test_what_is_lent(tmp_path):
    """The classifier, and cues without the note that they are done; nothing to a run that has begun."""
    for file in ("classify/colour/classifier.pt", "classify/manifest.json", "cues/a.npz", "cues/manifest.json", "train/segmenter.pt"):
        (tmp_path / "ours" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ours" / file).write_text(file)
    lend(tmp_path / "ours", tmp_path / "a", True)
    lend(tmp_path / "ours", tmp_path / "b", False)
    files = lambda run: sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert files(tmp_path / "a") == ["classify/colour/classifier.pt", "cues/a.npz"] and files(tmp_path / "b") == ["classify/colour/classifier.pt"]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.json").write_text("{}")
    lend(tmp_path / "ours", tmp_path / "c", True)
    assert files(tmp_path / "c") == ["config.json"]


def small_data(folder, masks: list[str], val: str = "a\nb\n"):
    """Two pictures of a cow, c to train on, with masks of those that are named."""
    for name in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("cow\nboat\n")
    (folder / "image_labels.txt").write_text("a cow\nb cow\nc cow\n")
    for name in "abc":
        Image.new("RGB", (8, 8)).save(folder / f"JPEGImages/{name}.jpg")
    for name in masks:
        write_labels(folder / f"SegmentationClass/{name}.png", np.eye(8, dtype=np.uint8))
    for split, ids in (("train", "c\n"), ("val", val)):
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(ids)
    return folder


@pytest.mark.parametrize("masks, val", [([], "a\nb\n"), (["a"], "a\n")])
def test_what_cannot_be_compared_is_said_before_anything_is_trained(tmp_path, masks, val):
    """No masks to score with; one picture, of which no other can be drawn."""
    with pytest.raises(DataError, match="mask"):
        measure_photos(small_data(tmp_path / "mine", masks, val), tmp_path / "runs", tmp_path / "out.json")
    assert not (tmp_path / "runs").exists()


def test_masks_of_the_scored_pictures_are_enough(tmp_path, monkeypatch):
    """Without masks to train on there is no full supervision and no score of cues, and all else is there."""
    ran = []
    def invented(config, run, say):
        """What a run leaves that the study reads."""
        ran.append(run.name)
        for name, S in (("a", np.eye(8)), ("b", np.eye(8) * (config.recipe == "ours"))):
            write_labels(run / f"predict/val/{name}.png", S.astype(np.uint8))
        Evaluation(np.diag([100, 10, 0]), ("cow", "boat"), 2).save(run / "evaluate/val.json")
        write_json(run / "evaluate/manifest.json", {})
        write_json(run / "cues/manifest.json", {"counts": {"foreground": .25, "background": .5}})
        (run / "classify/colour").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(photo_study, "run_all", invented)
    found = measure_photos(small_data(tmp_path / "mine", ["a", "b"]), tmp_path / "runs", tmp_path / "out.json", say=ran.append)
    assert ran == [name for name in PHOTO_TRIALS if name not in FULL] and list(found["trials"]) == ran
    assert found["raw CAM"] is None and found["trials"]["sec"]["cues"] is None and found["trials"]["sec"]["shares"] == [.25, .5]
    assert found["trials"]["ours"]["mean_iou"] == 1 and found["trials"]["sec"]["mean_iou"] == pytest.approx((112 / 120 + 8 / 16) / 2)
    assert found["trials"]["sec"]["spread"] > 0 == found["trials"]["one level"]["spread"]


def test_the_stored_results_are_those_of_the_study():
    """Lesson 57b draws from them."""
    found = read_photo_study(STORED)
    assert set(found["trials"]) <= set(PHOTO_TRIALS) and {"ours", *FULL} <= set(found["trials"])
    assert found["trials"]["ours"]["spread"] == 0 and all(0 < trial["spread"] < .2 for name, trial in found["trials"].items() if name != "ours")
    assert all(0 <= trial["mean_iou"] <= 1 for trial in found["trials"].values()) and json.loads(STORED.read_text())["pictures"] == found["pictures"]


def test_the_command_says_how():
    """Examples, and one line for a folder that is none."""
    run = lambda *words: subprocess.run([sys.executable, ROOT / "data_scripts/study_photos.py", *words], text=True, capture_output=True)
    assert "study_photos.py FOLDER --only dsrg sec" in run("--help").stdout
    failed = run("nowhere")
    assert failed.returncode == 1 and "nowhere" in failed.stderr and "Traceback" not in failed.stderr
