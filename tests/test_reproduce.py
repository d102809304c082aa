"""Repeating a row of a paper: the right pictures or none, the table, and a submission that the test server would take."""
import gzip
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_toy import TINY, light_up, tiny
from typer.testing import CliRunner

from wsss_nb.cli import app
from wsss_nb.config import load_config, read_config
from wsss_nb.core import PALETTE, DataError
from wsss_nb.files import read_labels, write_labels
from wsss_nb.folders import open_list
from wsss_nb.presets import PRESETS, RESULTS, DataSet, Result
from wsss_nb.reproduce import (
    PLACE,
    Compared,
    check_submission,
    compared,
    other_pictures,
    pack_submission,
    reproduction,
    submit,
    told_compared,
)
from wsss_nb.voc import voc_folder


def call(*words, code: int = 0) -> str:
    """The command in this process: what it printed, or the error's line."""
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="wsss_nb")
    assert bool(done.exit_code) == bool(code), f"{done.output}\n{done.exception!r}"
    return str(done.exception) if code else done.stdout


@pytest.fixture
def tested(finished_run, toyvoc, tmp_path) -> tuple[Path, Path]:
    """A finished run, and its data set with a list of test pictures whose masks nobody has."""
    data = Path(shutil.copytree(toyvoc, tmp_path / "voc"))
    ids = voc_folder(data, "val").ids[:5]
    for i, name in enumerate(ids):
        shutil.copy(data / f"JPEGImages/{name}.jpg", data / f"JPEGImages/test_{i}.jpg")
    (data / "ImageSets/Segmentation/test.txt").write_text("\n".join(f"test_{i}" for i in range(5)) + "\n")
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    text = (run / "config.json").read_text().replace(json.dumps(str(toyvoc)), json.dumps(str(data)))
    (run / "config.json").write_text(text)
    return run, data


# ---- a row repeated -----------------------------------------------------------------------------------------------------------

def test_other_pictures_are_refused(toyvoc):
    """Named with both counts; --anyway trains on them and says so; presets without a row, and a detector's, ask nothing."""
    with pytest.raises(DataError, match="24 and 12 pictures to learn from and to be scored on, not 10,582 and 1,449 as PASCAL VOC 2012.*--anyway"):
        reproduction("dsrg/voc-vgg16", toyvoc)
    with pytest.raises(DataError, match="not 82,081 and 40,137 as COCO 2014"):
        reproduction("dsrg/coco-vgg16", toyvoc)
    config = reproduction("dsrg/voc-vgg16", toyvoc, ["train.batch_size=8"], anyway=True)
    assert config.preset == "dsrg/voc-vgg16" and config.train.batch_size == 8 and other_pictures(config).startswith("24 and 12 pictures")
    assert other_pictures(reproduction("dsrg/toy", toyvoc)) == ""
    with pytest.raises(DataError, match="no preset 'dsrg/voc-vgg61'.*dsrg/voc-vgg16"):
        reproduction("dsrg/voc-vgg61", toyvoc)
    with pytest.raises(DataError, match=r"salient/voc\+si-resnet101 needs data.simple, which is not set"):
        reproduction("salient/voc+si-resnet101", toyvoc, anyway=True)


def test_the_right_number_of_pictures_is_accepted(toyvoc, monkeypatch):
    """Counted lists, not names: a row of 24 and 12 pictures is repeated on 24 and 12, and not on 24 and 11."""
    from wsss_nb import reproduce
    for val, said in ((12, False), (11, True)):
        monkeypatch.setattr(reproduce, "learned_on", lambda preset, val=val: DataSet("small", 24, val, Result(None)))
        assert bool(other_pictures(load_config("dsrg/voc-vgg16", toyvoc))) == said


def test_a_detectors_row(toyvoc, tmp_path, monkeypatch):
    """Objects, tags and Mask R-CNN, no DeepLab; 122,218 pictures to learn from, and test pictures that nobody counts; AP where there are masks."""
    from wsss_nb import reproduce
    from wsss_nb.manifest import write_json
    lists = ["data.train=train", "data.val=val"]
    with pytest.raises(DataError, match="toyvoc has 24 pictures to learn from, not 122,218 as COCO 2014"):
        reproduction("salient/coco-maskrcnn", toyvoc, lists)
    config, done = reproduction("salient/coco-maskrcnn", toyvoc, lists, anyway=True), []
    for name in ("prepare", "classify", "instances", "cues", "detect"):
        def stage(config, run, name=name):
            "One stage."
            done.append(name)
            write_json(run / name / "manifest.json", {"stage": name, "key": "", "counts": {"pictures": 24, "AP": .123} if name == "detect" else {}})
        monkeypatch.setattr(reproduce, name, stage)
    assert reproduce.reproduce(config, tmp_path).split() == ["AP", "12.3"] and done == ["prepare", "classify", "instances", "cues", "detect"]
    write_json(tmp_path / "detect/manifest.json", {"counts": {"pictures": 24}})
    monkeypatch.setattr(reproduce, "detect", lambda config, run: None)
    assert "COCO's test server" in reproduce.reproduce(config, tmp_path)


def test_paper_this_run_difference(finished_run, toyvoc, monkeypatch):
    """The run's numbers are those of its files; the paper's those of the preset's row, before and after retraining; test is the server's."""
    config = tiny(toyvoc)
    monkeypatch.setitem(RESULTS, "dsrg/toy", Result(61.4, 63.2, before=57.6))
    rows = {row.name: row for row in compared(config, finished_run)}
    measured = {name: 100 * json.loads((finished_run / f"evaluate/{name}.json").read_text())["mean_iou"] for name in ("val", "val.train")}
    assert rows["final"][1:] == (61.4, pytest.approx(measured["val"]), 67.6) and rows["dsrg, before retraining"][1:] == (57.6, pytest.approx(measured["val.train"]), None)
    assert rows["final"].difference == pytest.approx(measured["val"] - 61.4) and rows["test server"] == Compared("test server", 63.2, None, 70.3) and rows["test server"].difference is None
    text = told_compared(rows.values(), "3 pictures").splitlines()
    line = next(line for line in text if line.startswith("final"))
    assert line.split()[1:] == ["61.4", f"{measured['val']:.1f}", f"{measured['val'] - 61.4:+.1f}", "67.6"] and text[-1] == "Not the paper's pictures: 3 pictures. These numbers cannot be compared."
    assert next(line for line in text if line.startswith("test server")).split()[2:] == ["63.2", "–", "–", "70.3"]
    assert told_compared(rows.values()).splitlines()[-1].startswith("mIoU in percent")


def test_a_run_that_was_not_scored_has_dashes(toyvoc, tmp_path):
    """No masks, no evaluation: no invented number and no difference."""
    rows = compared(tiny(toyvoc), tmp_path)
    assert [(row.run, row.difference) for row in rows] == [(None, None)] * 2 and " – " in told_compared(rows)


def test_reproduce_by_command(few, tmp_path):
    """Every stage, then the table; a second time everything is done; a dry run only counts."""
    words = ["reproduce", "baseline/toy", "--data", few, "--run", tmp_path / "x", *[f"--set={text}" for text in TINY]]
    told = call(*words, "--dry-run")
    assert "16 for training, 3 for validation" in told and not (tmp_path / "x").exists() and "as many as the paper's" in told
    for _ in range(2):
        told = call(*words)
        value = 100 * json.loads((tmp_path / "x/evaluate/val.json").read_text())["mean_iou"]
        line = next(line for line in told.splitlines() if line.startswith("baseline "))
        assert line.split()[1:4] == ["52.5", f"{value:.1f}", f"{value - 52.5:+.1f}"] and f"{tmp_path / 'x/report/index.html'}" in told and "8/8 report" in told
    assert read_config(tmp_path / "x").preset == "baseline/toy"
    told = call("reproduce", "dsrg/voc-vgg16", "--data", few, "--dry-run")
    assert "missing   16 and 3 pictures to learn from and to be scored on, not 10,582 and 1,449" in told
    assert "add --anyway" in call("reproduce", "dsrg/voc-vgg16", "--data", few, code=1)


def test_the_page_has_the_presets_row(few, tmp_path, monkeypatch):
    """The report's paper column is that of the preset, with where it comes from and on which data; another recipe's preset lends no numbers."""
    from dataclasses import replace

    from wsss_nb.scores import about
    told = about(load_config("dsrg/coco-vgg16", few))
    assert told["paper"] == {"val": 26.0} and told["data"] == "COCO 2014" and told["setting"] == RESULTS["dsrg/coco-vgg16"].source and told["lists"] == "train: 16 pictures; val: 3 pictures"
    assert about(load_config("dsrg/voc-resnet101", few))["paper"] == {"val": 61.4} and about(load_config("dsrg", few))["paper"] == {"val.train": 57.6, "val": 59.0}
    assert about(replace(load_config("sec/voc-vgg16", few), preset="dsrg/voc-vgg16"))["paper"] == {"val": 50.7}


def test_the_table_by_command():
    """A row for each preset, and the list of presets without."""
    from wsss_nb.preset_table import names
    said = call("recipes", "--table")
    rows = [line.split()[0] for line in said.splitlines() if line.split(" ")[0] in (*PRESETS, "salient/features-imagenet")]
    assert rows == names() and "50.7  51.7" in said and "40.98" in said and "assumed" in said
    assert "salient/features-imagenet" in call("recipes") and "dgcn/coco-vgg16" in call("recipes")


# ---- a submission -------------------------------------------------------------------------------------------------------------

def test_submit_predicts_checks_and_packs(tested):
    """One indexed PNG for each test picture at the server's place, equal to what the run predicts; the same bytes again, and nothing else in the tar."""
    run, data = tested
    told = call("submit", "--run", run)
    path = run / "submit/test.tgz"
    assert f"{path}: complete" in told
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/test_{i}.png" for i in range(5)]
        for i, member in enumerate(tar.getmembers()):
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode, member.isfile()) == (0, 0, 0, "", "", 0o644, True)
            picture = Image.open(tar.extractfile(member))
            twin = read_labels(run / f"predict/val/{voc_folder(data, 'val').ids[i]}.png")                # the same picture under another name
            assert picture.mode == "P" and np.array_equal(np.array(picture), twin) and bytes(picture.getpalette()[:21]) == PALETTE[:7].tobytes()
    before, stamp = path.read_bytes(), (run / "submit/test/test_3.png").stat().st_mtime_ns
    call("submit", "--run", run)
    assert path.read_bytes() == before and (run / "submit/test/test_3.png").stat().st_mtime_ns == stamp


def test_the_veto_works_on_test_pictures_too(tested):
    """With predict.amend, only classes that the classifier accepts; nothing of the test pictures' tags is asked."""
    run, data = tested
    light_up(run)
    config = load_config("dsrg/toy", data, overrides=[*TINY, "predict.amend=1e9", "predict.crf=false"])
    submit(config, run)
    files = check_submission(run / "submit/test", open_list(data, "test"))
    assert [int(read_labels(path).max()) for path in files] == [0] * 5 and not open_list(data, "test").tags.any()
    assert "given classes" in json.loads((run / "submit/test/predictions.json").read_text())["amended"] or "true tags" in (run / "submit/test/predictions.json").read_text()


def test_what_the_server_would_refuse(tested, tmp_path):
    """A file too few, one too many, colours, another size, an unlabelled pixel, an unknown class: named, and no tar is written."""
    run, data = tested
    test = open_list(data, "test")
    call("submit", "--run", run)

    def broken(name: str) -> Path:
        return Path(shutil.copytree(run / "submit/test", tmp_path / name))
    first = read_labels(run / "submit/test/test_0.png")
    cases = []
    folder = broken("few")
    (folder / "test_2.png").unlink()
    cases.append((folder, "lacks the label maps of 1 of 5 pictures, the first is test_2"))
    folder = broken("many")
    shutil.copy(folder / "test_2.png", folder / "other.png")
    cases.append((folder, "1 label maps that nobody asked for, the first is other"))
    folder = broken("colours")
    Image.open(folder / "test_1.png").convert("RGB").save(folder / "test_1.png")
    cases.append((folder, "is a RGB picture"))
    folder = broken("grey")
    Image.fromarray(read_labels(folder / "test_1.png")).save(folder / "test_1.png")
    cases.append((folder, "is a L picture"))
    folder = broken("size")
    write_labels(folder / "test_0.png", first[:-1])
    cases.append((folder, "has size"))
    for name, value, said in (("void", 255, "no unlabelled pixel"), ("alien", 7, "holds class 7")):
        folder, S = broken(name), first.copy()
        S[0, 0] = value
        write_labels(folder / "test_0.png", S)
        cases.append((folder, said))
    for folder, said in cases:
        with pytest.raises(DataError, match=said):
            check_submission(folder, test)
    assert len(check_submission(run / "submit/test", test)) == 5


def test_nothing_to_submit(tested, toyvoc):
    """A run that is not finished, a data set without test pictures."""
    run, data = tested
    (data / "JPEGImages/test_4.jpg").unlink()
    assert "names 1 images that are not in" in call("submit", "--run", run, code=1)
    assert "no such list" in call("submit", "--run", run, "--split", "no such list", code=1)
    (run / "retrain/manifest.json").unlink()
    (data / "JPEGImages/test_4.jpg").write_bytes((data / "JPEGImages/test_3.jpg").read_bytes())
    assert "wsss_nb retrain" in call("submit", "--run", run, code=1)


def test_the_tar_is_the_servers(tmp_path):
    """Any folder of files packs to the same bytes, whatever their times; gzip holds no time and no name; the tar is plain ustar."""
    import os
    for k, name in enumerate(("b.png", "a.png")):
        write_labels(tmp_path / name, np.full((2, 3), k))
    files = sorted(tmp_path.glob("*.png"))
    one = pack_submission(files, tmp_path / "one.tgz").read_bytes()
    os.utime(files[0], (1, 1))
    assert pack_submission(files, tmp_path / "two.tgz").read_bytes() == one and one[3] == 0 and one[4:8] == b"\0\0\0\0"
    plain = gzip.decompress(one)
    assert plain[:len(f"{PLACE}/a.png")] == f"{PLACE}/a.png".encode() and plain[257:262] == b"ustar" and not list(tmp_path.glob(".*"))
