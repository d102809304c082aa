"""Lesson 61: runs of the papers' rows are found and compared; others are told apart or left alone."""
import json
from dataclasses import replace

import numpy as np
import pytest

from wsss_nb.config import load_config, write_config
from wsss_nb.evaluation import Evaluation
from wsss_nb.manifest import write_json
from wsss_nb.measured import plot_measured, read_measured, rows_of, told_measured, told_missing
from wsss_nb.presets import COCO, RESULTS, VOC, reported


def put(folder, preset, iou, seed=0, train=None, val=None):
    """A run folder whose evaluation has this mean IoU: two classes alike, `iou` of the union right."""
    data = COCO if "/coco-" in preset else VOC
    write_config(replace(load_config(preset), seed=seed), folder)
    write_json(folder / "prepare/manifest.json", {"stage": "prepare", "key": "", "counts": {"train": {"pictures": train or data.train}, "val": {"pictures": val or data.val}}})
    right = 100 * iou / (1 - iou) / 2                # right / (right + 2 wrong) with 25 + 25 wrong pixels of a union
    Evaluation(np.array([[round(right), 25], [25, round(right)]]), ("thing",), val or data.val).save(folder / "evaluate/val.json")


@pytest.fixture
def runs(tmp_path):
    """Three seeds of one row, one of another, one of COCO, one on fewer pictures, and folders that are no runs."""
    for seed, iou in enumerate((.5, .6, .8)):
        put(tmp_path / f"dsrg{seed}", "dsrg/voc-vgg16", iou, seed)
    put(tmp_path / "sec", "sec/voc-vgg16", .5)
    put(tmp_path / "coco", "dsrg/coco-vgg16", .2)
    put(tmp_path / "part", "sec/voc-vgg16", .9, val=100)
    put(tmp_path / "toy", "dsrg/toy", .9)
    put(tmp_path / "unfinished", "dsrg/voc-vgg16", .9)
    (tmp_path / "unfinished/evaluate/val.json").unlink()
    put(tmp_path / "broken", "dsrg/voc-vgg16", .9)
    (tmp_path / "broken/evaluate/val.json").write_text("{")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien/config.json").write_text(json.dumps({"learning": "deep"}))
    return tmp_path


def test_means_and_differences(runs):
    """By hand: 50, 60 and 80 have mean 63.3 and deviation 15.3; DSRG reported 59.0 on VGG16, of 67.6 with every mask."""
    found, others = read_measured(runs, VOC)
    assert sorted(one.run.name for one in found) == ["dsrg0", "dsrg1", "dsrg2", "sec"] and [one.run.name for one in others] == ["part"]
    rows = {line.split()[0]: line.split() for line in told_measured(found, VOC).splitlines() if "/voc" in line}
    assert rows["dsrg/voc-vgg16"][1:] == ["59.0", "63.3", "±", "15.3", "+4.3", "94%"]
    assert rows["sec/voc-vgg16"][1:] == ["50.7", "50.0", "-0.7", "74%"]
    assert rows["dsrg/voc-resnet101"][-2:] == ["no", "run"]


def test_another_network_has_no_share(tmp_path):
    """67.6 is VGG16's with every mask; of a ResNet's 50 it would be a share of nothing."""
    put(tmp_path / "deep", "dsrg/voc-resnet101", .5)
    row = next(line.split() for line in told_measured(read_measured(tmp_path, VOC)[0], VOC).splitlines() if line.startswith("dsrg/voc-resnet101"))
    assert row[1:] == ["61.4", "50.0", "-11.4", "–"]


def test_the_figure_says_where_a_paper_has_no_number():
    """One word for each row without a bar."""
    from matplotlib.figure import Figure
    ax = plot_measured([], VOC, Figure().subplots())
    assert len(ax.texts) == sum(reported(name, name.split("/")[0]).get("val") is None for name in rows_of(VOC)) > 0


def test_other_pictures_are_told_and_not_compared(runs):
    """The run on a hundred pictures is named, with both counts."""
    found, others = read_measured(runs, VOC)
    told = told_missing(found, others, runs, VOC)
    assert "part: sec/voc-vgg16 on 10,582 and 100 pictures instead of 10,582 and 1,449" in told and "wsss_nb reproduce" not in told


def test_data_sets_are_kept_apart(runs):
    """COCO's run is COCO's alone, and beside COCO's full supervision."""
    found, others = read_measured(runs, COCO)
    assert [one.run.name for one in found] == ["coco"] and not others
    assert "dsrg/coco-vgg16" in told_measured(found, COCO) and "40.98" in told_measured(found, COCO) and "/voc" not in told_measured(found, COCO)


@pytest.mark.parametrize("data", [VOC, COCO])
def test_no_runs_no_results(tmp_path, data):
    """Nothing but the papers' numbers and the command that makes a run."""
    found, others = read_measured(tmp_path / "nowhere", data)
    assert found == others == []
    assert told_measured(found, data).count("no run") == len(rows_of(data)) > 1
    assert f"wsss_nb reproduce dsrg/{'coco' if data is COCO else 'voc'}-vgg16 --data" in told_missing(found, others, tmp_path, data)


def test_every_row_has_a_place():
    """All rows of the papers' tables are in one of the two tables, but that of the detector."""
    assert {*rows_of(VOC), *rows_of(COCO), "salient/coco-maskrcnn"} == set(RESULTS)
