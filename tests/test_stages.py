"""Lesson 52: tags in, a page of results out; retraining, variants, no masks, bad input, and two processes."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from run_toy import WST, light_up, tiny

from wsss_nb import stages
from wsss_nb.checkpoint import read_log
from wsss_nb.core import IGNORE, DataError
from wsss_nb.evaluation import confusion, evaluate_folder, supervision_quality
from wsss_nb.files import folder_hash, read_labels
from wsss_nb.manifest import read_manifest
from wsss_nb.memory import memory
from wsss_nb.pretraining import load_classifier
from wsss_nb.seeds import shrink
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


# ---- two classifiers, and seeds from elsewhere ------------------------------------------------------------------------------

def test_the_second_classifier_is_another(wst_run, few, tmp_path):
    """It ends where a run of its own from seed + 1000 ends, bit for bit, and elsewhere than the first."""
    alone = replace(tiny(few, "wst/toy", *WST), seed=1000, options={"networks": 1})
    for stage in (prepare, classify):
        stage(alone, tmp_path)
    light_up(tmp_path)
    first, second, other = (load_classifier(run / f"classify/{name}/classifier.pt").state_dict() for run, name in ((wst_run, "colour"), (wst_run, "second"), (tmp_path, "colour")))
    assert all(torch.equal(second[name], other[name]) for name in other) and not all(torch.equal(first[name], second[name]) for name in first)


def test_cues_of_many_seeds_go_on_after_a_kill(wst_run, few, tmp_path):
    """Half of the files and the manifest gone: only those are made again, the same byte for byte."""
    run = Path(shutil.copytree(wst_run, tmp_path / "run"))
    before, files = folder_hash(run / "cues"), sorted((run / "cues").glob("*.npz"))
    told = (run / "cues/manifest.json").read_text()
    times = {path: path.stat().st_mtime_ns for path in files[1::2]}
    for path in (*files[::2], run / "cues/manifest.json"):
        path.unlink()
    cues(tiny(few, "wst/toy", *WST), run)
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    (run / "cues/manifest.json").write_text(told)                                        # only its seconds differ
    assert folder_hash(run / "cues") == before


def test_several_seeds_are_scored_by_what_most_say(wst_run, few):
    """Counted by hand, pixel by pixel: of equals the lowest class."""
    data, total = voc_folder(few, "train", masks=True), 0
    for i, name in enumerate(data.ids):
        S = read_seeds(wst_run / f"cues/{name}.npz").S
        counts = np.stack([(S == c).sum(0) for c in range(7)])
        most = np.where(counts.sum(0) == 0, IGNORE, counts.argmax(0)).astype(np.uint8)
        total = total + confusion(shrink(most[None], data.mask(i).shape)[0], data.mask(i), 7, partial=True)
    told = json.loads((wst_run / "evaluate/cues.json").read_text())
    assert all(told[name] == pytest.approx(value, abs=1e-12) for name, value in supervision_quality(total).items() if value == value)


@pytest.fixture
def elsewhere(few, tmp_path) -> Path:
    """Seeds somebody else made: stored/ with two maps a picture, drawn/ with PNG files, one of which is missing."""
    data = voc_folder(few, "train")
    (tmp_path / "drawn").mkdir()
    for i, name in enumerate(data.ids):
        S = np.zeros((2, 12, 12), np.uint8)
        S[:, 3:9, 3:9] = 1 + np.flatnonzero(data.tags[i])[0]
        S[1, :, :2] = IGNORE
        write_seeds(tmp_path / "stored", name, S, data.classes, ("near", "far"))
        if i != 4:
            Image.fromarray(np.roll(S[0], 1, 1)).save(tmp_path / f"drawn/{name}.png")
    return tmp_path


def test_a_run_on_seeds_from_elsewhere(elsewhere, few):
    """Nothing is trained but the segmenter; the seeds lie in the run as they were; a gap is counted; the page says whose they are."""
    where = f"cues.seeds={elsewhere}/stored,{elsewhere}/drawn"
    run, data = elsewhere / "run", voc_folder(few, "train")
    with pytest.raises(DataError, match=f"drawn lacks the seeds of 1 of 16 images, the first is {data.ids[4]}.*--allow-missing-seeds"):
        run_all(tiny(few, "wst/toy", where), run)
    assert not (run / "cues").exists()
    shutil.rmtree(run)
    done = run_all(tiny(few, "wst/toy", where, "cues.allow_missing=true"), run)
    assert done["classify"]["counts"] == {} and not list(run.glob("classify/*/classifier.pt"))
    assert done["cues"]["counts"]["pictures without their seed"] == {f"{elsewhere}/drawn": 1}
    stored = read_seeds(run / f"cues/{data.ids[0]}.npz", data.classes)
    assert stored.names == (f"{elsewhere}/stored near", f"{elsewhere}/stored far", f"{elsewhere}/drawn") and np.array_equal(stored.S[:2], read_seeds(elsewhere / f"stored/{data.ids[0]}.npz").S)
    assert (read_seeds(run / f"cues/{data.ids[4]}.npz").S[2] == IGNORE).all()
    page = (run / "report/index.html").read_text()
    assert f"seeds from elsewhere, made with whatever their maker used: {elsewhere}/stored, {elsewhere}/drawn" in page and "cues: what most of 3 seeds say" in page
    assert "robust background" not in page


def test_seeds_that_change_are_noticed(elsewhere, few):
    """Other folders than the run was begun with, or another file in them: refused, with the command that mends it; the same files under a new date are the same."""
    config, run = tiny(few, "dsrg/toy", f"cues.seeds={elsewhere}/stored:near"), elsewhere / "run"
    for stage in (prepare, classify, cues):
        stage(config, run)
    os.utime(next((elsewhere / "stored").glob("*.npz")), (1, 1))
    made = cues(config, run)
    with pytest.raises(DataError, match=r"cues.seeds \['.*stored:near'\], now it is \['.*stored:far'\].*delete"):
        cues(tiny(few, "dsrg/toy", f"cues.seeds={elsewhere}/stored:far"), run)
    assert cues(config, run) == made
    data = voc_folder(few, "train")
    write_seeds(elsewhere / "stored", data.ids[2], np.ones((2, 40, 40), np.uint8), data.classes, ("near", "far"))
    with pytest.raises(DataError, match=f"cues was made from something else.*all else it reads.*delete {run / 'cues'}, then: wsss_nb cues --run {run}"):
        cues(config, run)
    shutil.rmtree(run / "cues")
    cues(config, run)
    assert read_seeds(run / f"cues/{data.ids[2]}.npz").S.shape == (1, 40, 40)


def test_seeds_from_elsewhere_and_a_veto(elsewhere, few):
    """Whoever asks for a classifier gets the first, and only that; asked too late, it is named."""
    where = f"cues.seeds={elsewhere}/stored"
    begun = tiny(few, "wst/toy", where)
    for stage in (prepare, classify, cues, train, retrain):
        stage(begun, elsewhere / "late")
    late = tiny(few, "wst/toy", where, "predict.amend=0")
    shutil.rmtree(elsewhere / "late/evaluate")                                           # the score of the cues
    with pytest.raises(DataError, match="colour/classifier.pt was never trained.*wsss_nb classify --run"):
        predict(late, elsewhere / "late")
    shutil.rmtree(elsewhere / "late/classify")
    assert set(classify(late, elsewhere / "late")["counts"]) == {"colour"}
    assert predict(late, elsewhere / "late")["counts"]["ways"] == ["val", "val.plain"]


def test_seeds_that_label_nothing_are_refused(elsewhere, few):
    """And the folders are named to look at, for no setting would mend them."""
    data = voc_folder(few, "train")
    for name in data.ids:
        write_seeds(elsewhere / "empty", name, np.zeros((1, 4, 4), np.uint8), data.classes, ("none",))
    config = tiny(few, "wst/toy", f"cues.seeds={elsewhere}/empty")
    for stage in (prepare, classify):
        stage(config, elsewhere / "run")
    with pytest.raises(DataError, match="no pixel of 16 pictures got a class.*look at the folders of cues.seeds"):
        cues(config, elsewhere / "run")


def test_a_layer_with_a_typo_is_refused_before_anything_is_trained(few, tmp_path):
    """A near match is offered, and no classifier was begun."""
    config = tiny(few, "dgcn/toy", "options.layers=trunk.blok5")
    prepare(config, tmp_path)
    with pytest.raises(DataError, match="trunk.block5"):
        classify(config, tmp_path)
    assert not list((tmp_path / "classify").glob("*/*"))


def test_a_gpu_without_room_says_what_fits(finished_run, toyvoc, tmp_path, monkeypatch):
    """Whichever training it was; the accumulation named is one that the memory count of lesson 20b allows in two thirds of the room."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    redo(run, "train", "retrain")
    network, each = load_segmenter(finished_run / "train/segmenter.pt").train(), 64
    room = int(1.5 * memory(network, each, 3, moments=2)) + 20_000   # the toy preset learns by adamw
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(stages, "train_segmenter", full)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=room))
    with pytest.raises(DataError, match="ran out of memory.*set train.accumulate=3: 3 at once") as error:   # batches of 8, three at once
        train(tiny(toyvoc), run)
    assert "\n" not in str(error.value)
