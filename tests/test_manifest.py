"""Lesson 51c: done is not done again; what changed upstream, or in the config, is refused in words that mend it."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from run_toy import tiny

from wsss_nb.config import read_config, write_config
from wsss_nb.core import DataError
from wsss_nb.manifest import STAGES, read_manifest, require_done, stage, stage_key
from wsss_nb.stages import cues, evaluate, predict, prepare, report, retrain, run_all, train

ORDER = ("prepare", "classify", "cues", "train", "retrain", "predict", "evaluate", "report")


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def refused(call, *named: str) -> str:
    """The call raises one line with all of these words, an expectation and a mend."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(name in message for name in (*named, "expected", "To mend it: ")), message
    return message


def seen(run: Path) -> dict:
    """Every file with its time."""
    return {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.is_file() and path.name != "config.json"}


def test_every_stage_leaves_its_manifest(finished_run):
    """In this order; each says who it is, and has a key of its own."""
    told = [read_manifest(finished_run / name) for name in ORDER]
    assert tuple(name for name in STAGES if name not in ("instances", "detect"))[:len(ORDER)] == ORDER and [m["stage"] for m in told] == list(ORDER)
    assert len({m["key"] for m in told}) == len(ORDER) and all(m["seconds"] >= 0 and m["counts"] for m in told)


def test_done_is_not_done_again(run, toyvoc):
    """Called again, a finished run changes no file and returns the same."""
    before = seen(run)
    assert [m["stage"] for m in run_all(tiny(toyvoc), run).values()] == list(ORDER) and seen(run) == before


def test_a_lost_manifest_is_made_again_from_what_is_there(run, toyvoc):
    """As after a kill before the last line: training is complete, so nothing is trained, and the key is the same."""
    before, weights = read_manifest(run / "train"), (run / "train/log.jsonl").read_bytes()
    (run / "train/manifest.json").unlink()
    refused(lambda: retrain(tiny(toyvoc), run), f"wsss_nb train --run {run}")
    after = train(tiny(toyvoc), run)
    assert (after["key"], after["counts"]) == (before["key"], before["counts"]) and (run / "train/log.jsonl").read_bytes() == weights
    assert retrain(tiny(toyvoc), run) == read_manifest(run / "retrain")


@pytest.mark.parametrize("name, before", [("classify", "prepare"), ("cues", "classify"), ("train", "cues"), ("retrain", "train"), ("predict", "retrain"),
                                          ("evaluate", "predict"), ("report", "evaluate")])
def test_a_missing_stage_names_its_command(name, before, toyvoc, tmp_path):
    """Nothing is done, and nothing is left behind that would pass for it."""
    refused(lambda: STAGES[name](tiny(toyvoc), tmp_path / "new"), f"{tmp_path / 'new' / before} is not finished", f"wsss_nb {before} --run {tmp_path / 'new'}")
    assert read_manifest(tmp_path / "new" / name) is None


def test_a_change_upstream_is_refused_with_the_command(run, toyvoc):
    """Cues made anew with another threshold: training on the old ones is found to be stale, and stays as it is."""
    for name in ("cues", "report"):
        shutil.rmtree(run / name)
    config = tiny(toyvoc, "dsrg/toy", "cues.foreground=.3")
    cues(config, run)
    before = seen(run)
    refused(lambda: train(config, run), f"{run / 'train'} was made from something else", "cues as it found them", f"delete {run / 'train'}, then: wsss_nb train --run {run}")
    assert seen(run) == before
    shutil.rmtree(run / "train")
    train(config, run)
    refused(lambda: retrain(config, run), f"delete {run / 'retrain'}", f"wsss_nb retrain --run {run}")


def test_pictures_that_changed_are_noticed(toyvoc, tmp_path):
    """Another tag, another size of a file: what was prepared is not what lies there now."""
    data = Path(shutil.copytree(toyvoc, tmp_path / "data"))
    prepare(tiny(data), tmp_path / "run")
    prepare(tiny(data), tmp_path / "run")
    labels = data / "image_labels.txt"
    text = labels.read_text()
    name, *tags = (data / "image_labels.txt").read_text().splitlines()[0].split()
    other = next(c for c in (data / "classes.txt").read_text().split() if c not in tags)
    labels.write_text(text.replace(" ".join([name, *tags]), " ".join([name, *tags, other]), 1))
    refused(lambda: prepare(tiny(data), tmp_path / "run"), "made from something else", f"delete {tmp_path / 'run/prepare'}")
    labels.write_text(text)
    prepare(tiny(data), tmp_path / "run")
    picture = next(data.glob("JPEGImages/train*"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    refused(lambda: prepare(tiny(data), tmp_path / "run"), "made from something else")


CHANGES = [("train.batch_size=4", "train.batch_size", "8", "4", "train"), ("options.theta_foreground=.6", "options.theta_foreground", "0.5", "0.6", "cues"),
           ("seed=3", "seed", "0", "3", "classify"), ("predict.crf=false", "predict.crf", "True", "False", "predict"), ("cues.foreground=.4", "cues.foreground", "None", "0.4", "cues")]


@pytest.mark.parametrize("change, key, was, now, stage_name", CHANGES)
def test_another_config_is_refused_by_key_and_values(run, toyvoc, change, key, was, now, stage_name):
    """The setting, both values and the stage that has read it; config.json keeps what the run was made with."""
    before = (run / "config.json").read_bytes()
    refused(lambda: run_all(tiny(toyvoc, "dsrg/toy", change), run), str(run / stage_name), f"{key} {was}, now it is {now}", "another folder with --run")
    assert (run / "config.json").read_bytes() == before


def test_a_setting_that_no_stage_has_read_may_change(run, toyvoc):
    """Before prediction, how to predict is free; the device and the number of workers always are."""
    for name in ("predict", "evaluate", "report"):
        shutil.rmtree(run / name)
    config = tiny(toyvoc, "dsrg/toy", "predict.crf=false", "device=cpu", "train.workers=1")
    predict(config, run)
    assert read_config(run).predict.crf is False and not (run / "predict/val/manifest.json").exists()
    evaluate(config, run)
    report(config, run)


def test_a_stage_that_was_begun_holds_its_settings(toyvoc, tmp_path):
    """Half a stage, killed before its manifest, was made with them too."""
    config = tiny(toyvoc)
    prepare(config, tmp_path)
    (tmp_path / "train").mkdir()
    refused(lambda: prepare(replace(config, train=replace(config.train, batch_size=4)), tmp_path), "train.batch_size 8, now it is 4")


def test_scores_of_the_cues_do_not_hold_back_the_prediction(run, toyvoc):
    """evaluate/ has files of two stages. Those of the cues bind nobody; a single one of its own does."""
    for name in ("predict", "report"):
        shutil.rmtree(run / name)
    config = tiny(toyvoc, "dsrg/toy", "predict.crf=false")
    refused(lambda: predict(config, run), str(run / "evaluate"), "predict.crf True, now it is False")
    for path in (*run.glob("evaluate/val*.json"), run / "evaluate/manifest.json"):
        path.unlink()
    assert {path.name for path in run.glob("evaluate/*")} == {"cues.json", "cues.cam.json"}
    predict(config, run)
    assert read_config(run).predict.crf is False


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x01", '"text"'])
def test_a_damaged_manifest_is_refused(run, toyvoc, content):
    """The file is named, and what to delete; after that the run goes on."""
    (run / "cues/manifest.json").write_text(content)
    message = refused(lambda: train(tiny(toyvoc), run), str(run / "cues/manifest.json"))
    assert f"delete {run / 'cues/manifest.json'}" in message
    (run / "cues/manifest.json").unlink()
    cues(tiny(toyvoc), run)
    train(tiny(toyvoc), run)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"recipe": "dsgr"}', '{"recipe": "dsrg", "train": {"batchsize": 8}}'])
def test_a_damaged_config_is_refused(run, toyvoc, content):
    """Nobody trains with settings that cannot be read."""
    (run / "config.json").write_text(content)
    refused(lambda: train(tiny(toyvoc), run))


def test_keys_chain(run, toyvoc):
    """A stage's key depends on the settings it reads and on the stages before it, and on nothing else."""
    config = tiny(toyvoc)
    key = lambda changed=config: stage_key(changed, run, "train", ("cues",), ("train",))
    first = key()
    assert key(replace(config, predict=replace(config.predict, crf=False))) == first
    assert key(replace(config, train=replace(config.train, workers=2))) == first
    assert key(replace(config, train=replace(config.train, learning_rate=.5))) != first
    told = json.loads((run / "cues/manifest.json").read_text())
    (run / "cues/manifest.json").write_text(json.dumps(told | {"key": "0" * 16}))
    assert key() != first and require_done(run, "cues")["key"] == "0" * 16


def test_a_stage_that_fails_is_not_done(toyvoc, tmp_path):
    """An error, also Ctrl-C, leaves no manifest; the next call does the work."""
    calls = []
    @stage(reads=("seed",))
    def stumbles(config, run):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"calls": len(calls)}
    try:
        with pytest.raises(KeyboardInterrupt):
            stumbles(tiny(toyvoc), tmp_path)
        assert read_manifest(tmp_path / "stumbles") is None
        assert stumbles(tiny(toyvoc), tmp_path)["counts"] == stumbles(tiny(toyvoc), tmp_path)["counts"] == {"calls": 2}
    finally:
        del STAGES["stumbles"]


def test_environment_and_config_are_kept(finished_run, toyvoc):
    """What it ran on, and every setting, so that the run can be read months later."""
    told = json.loads((finished_run / "environment.json").read_text())
    assert {"python", "system", "cores", "gpu", "wsss_nb", "torch", "numpy"} <= set(told)
    assert read_config(finished_run) == tiny(toyvoc)
    write_config(read_config(finished_run), finished_run.parent)
    assert (finished_run.parent / "config.json").read_bytes() == (finished_run / "config.json").read_bytes()
