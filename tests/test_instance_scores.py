"""COCO's average precision: by hand, and against pycocotools fed with files in its own way."""
import builtins
import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.coco import coco
from wsss_nb.core import DataError, generator
from wsss_nb.instance_scores import SCORES, coco_precision, coco_scores, mask_iou, plot_precision_recall, score_table, summarise
from wsss_nb.tagged import Instances, TaggedImages, mask_boxes

pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install 'wsss_nb[coco]'")


def row(*spans, width=100):
    """Masks one pixel high: True from the first to the second number of each span."""
    masks = np.zeros((len(spans), 1, width), bool)
    for mask, (start, end) in zip(masks, spans):
        mask[0, start:end] = True
    return masks


def made(masks, classes, scores=None, crowd=None):
    """Instances of these masks."""
    return Instances(masks, mask_boxes(masks), np.asarray(classes, np.int64), None if scores is None else np.asarray(scores, float),
                     None if crowd is None else np.asarray(crowd, bool))


@pytest.fixture
def open_data(tmp_path):
    """A data set of pictures one pixel high, from instances by id."""
    def opened(truth, classes=("cat", "cow")):
        for name, found in truth.items():
            Image.new("RGB", found.masks.shape[:0:-1]).save(tmp_path / f"{name}.png")
        return TaggedImages(classes, tuple(truth), np.ones((len(truth), len(classes)), bool), lambda i: tmp_path / f"{i}.png", read_instances=truth.__getitem__)
    return opened


def test_iou_by_hand():
    """Two of ten pixels common; against a crowd the claim's own six count; empty masks overlap nothing."""
    a, b = row((0, 6), (3, 3)), row((4, 10))
    assert mask_iou(a, b).tolist() == [[.2], [0]]
    assert mask_iou(a, b, np.array([True]))[0, 0] == 2 / 6
    assert mask_iou(a[:0], b).shape == (0, 1) and mask_iou(a, b[:0]).shape == (2, 0)
    with pytest.raises(DataError, match="one size"):
        mask_iou(a, row((0, 1), width=50))


@given(st.integers(0, 10**6))
def test_iou_counts_pixels(seed):
    """Equal to counting with sets of pixels."""
    rng = np.random.default_rng(seed)
    a, b, crowd = rng.random((3, 5, 4)) < .5, rng.random((2, 5, 4)) < .5, rng.random(2) < .5
    sets = [[set(np.flatnonzero(m)) for m in masks] for masks in (a, b)]
    for i, x in enumerate(sets[0]):
        for j, y in enumerate(sets[1]):
            union = len(x) if crowd[j] else len(x | y)
            assert mask_iou(a, b, crowd)[i, j] == pytest.approx(len(x & y) / union if union else 0)


def test_ap_by_hand(open_data):
    """Six claims of four cats in two pictures: hit, miss, hit, hit, miss, miss; 26 recalls at 1, 50 at 3/4, 25 at 0."""
    data = open_data({"a": made(row((0, 10), (20, 30)), [1, 1]), "b": made(row((0, 10), (50, 60)), [1, 1])})
    claims = {"a": made(row((0, 10), (0, 9), (20, 30), (70, 80)), [1] * 4, [.9, .8, .6, .3]), "b": made(row((0, 10), (80, 90)), [1, 1], [.7, .4])}
    claims["b"] = replace(claims["b"], scores=np.array([.65, .4]))
    # in order: .9 hit, .8 the same cat again, .65 hit, .6 hit, .4 and .3 nothing there
    scores = coco_scores(claims.__getitem__, data)
    assert scores["AP50"] == pytest.approx((26 + 50 * .75) / 101)
    assert scores["AP"] == pytest.approx(scores["AP50"])        # all hits are exact
    assert np.isnan(scores["classes"]["cow"]["AP"]) and np.isnan(scores["APL"])
    assert scores["APS"] == scores["AP"]


def test_thresholds_by_hand(open_data):
    """A claim of IoU 0.72 is a find at 0.50, 0.55, 0.60, 0.65, 0.70 and not beyond: AP is a half."""
    data = open_data({"a": made(row((0, 100)), [1])}, ("cat",))
    scores = coco_scores(lambda i: made(row((0, 72)), [1], [.5]), data)
    assert [scores[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([.5, 1, 0])


def test_sizes_by_hand(open_data):
    """Borders 15 and 50 sort the areas 10, 30, 90; only the middle one is found."""
    data = open_data({"a": made(row((0, 10), width=200), [1]), "b": made(row((0, 30), width=200), [1]), "c": made(row((0, 90), width=200), [1])}, ("cat",))
    nothing = made(row(width=200), [], [])
    scores = coco_scores(lambda i: made(row((0, 30), width=200), [1], [.5]) if i == "b" else nothing, data, sizes=(15, 50))
    assert [scores[name] for name in ("APS", "APM", "APL")] == pytest.approx([0, 1, 0])
    assert scores["AP"] == pytest.approx(34 / 101)               # recalls 0 … 0.33


def test_crowds_are_neither_right_nor_wrong(open_data):
    """Any number of claims inside a crowd is struck out; the same claims on empty ground are false alarms."""
    claims = made(row((0, 10), (50, 60), (62, 70)), [1] * 3, [.5, .9, .8])
    crowd = open_data({"a": made(row((0, 10), (45, 95)), [1, 1], crowd=[False, True])})
    assert coco_scores(lambda i: claims, crowd)["AP"] == pytest.approx(1)
    empty = open_data({"a": made(row((0, 10)), [1])})
    assert coco_scores(lambda i: claims, empty)["AP"] == pytest.approx(1 / 3)


def test_classes_are_judged_apart(open_data):
    """The right mask under the wrong name finds nothing; a class without objects takes no part in the mean."""
    data = open_data({"a": made(row((0, 10), (20, 30)), [1, 2])}, ("cat", "cow", "dog"))
    scores = coco_scores(lambda i: made(row((0, 10), (20, 30)), [1, 1], [.9, .8]), data)
    assert [scores["classes"]["cat"]["AP"], scores["classes"]["cow"]["AP"], scores["AP"]] == pytest.approx([1, 0, .5])
    assert np.isnan(scores["classes"]["dog"]["AP50"])


def test_nothing_found_and_nothing_there(open_data):
    """No claim at all scores 0; no object at all scores NaN, shown as a dash."""
    nothing = made(row(), [], [])
    assert coco_scores(lambda i: nothing, open_data({"a": made(row((0, 9)), [1])}))["AP"] == 0
    empty = coco_scores(lambda i: nothing, open_data({"a": made(row(), [])}))
    assert all(np.isnan(empty[name]) for name in SCORES)
    assert score_table({"none": empty}).splitlines()[1].split() == ["none", *"––––––"]


def test_limit_keeps_the_surest(open_data):
    """With one claim a picture the second object can't be found."""
    data = open_data({"a": made(row((0, 10), (20, 30)), [1, 1])})
    claims = made(row((0, 10), (20, 30)), [1, 1], [.2, .9])
    assert coco_scores(lambda i: claims, data, limit=1)["AP"] == pytest.approx(51 / 101)


def test_equal_to_pycocotools_on_files(data_folder, tmp_path):
    """COCO's sample, crowds and all, with shaken claims: every number is what pycocotools computes from the JSON files."""
    from pycocotools import mask as coding
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    path = data_folder / "coco_sample" / "instances_sample.json"
    data = coco(data_folder / "coco_sample" / "images", path, instances=True, only_tagged=True)
    data = data.subset(range(min(30, len(data))))

    def shaken(image_id):
        own, rng = data.read_instances(image_id), generator(0, image_id)
        masks = np.array([np.roll(m, rng.integers(-9, 10, 2), (0, 1)) for m in own.masks])
        return Instances(masks, mask_boxes(masks), own.classes, rng.random(len(own)).round(6))
    file = json.loads(path.read_text())
    number = {k: c["id"] for k, c in enumerate(sorted(file["categories"], key=lambda c: c["id"]), 1)}
    image = {entry["file_name"].rpartition(".")[0]: entry["id"] for entry in file["images"]}
    rows = [{"image_id": image[i], "category_id": number[int(c)], "score": float(s), "segmentation": dict(code, counts=code["counts"].decode())}
            for i in data.ids for found in [shaken(i)] for m, c, s in zip(found.masks, found.classes, found.scores)
            for code in [coding.encode(np.asfortranarray(m.astype(np.uint8)))]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "segm")
        judge.params.imgIds = [image[i] for i in data.ids]
        judge.evaluate(), judge.accumulate(), judge.summarize()
    scores = coco_scores(shaken, data)
    wanted = dict(zip(SCORES, judge.stats[:6]))
    assert 0 < wanted["AP"] < 1 and any(data.instances(i).crowd.any() for i in range(len(data)))
    for name in ("AP", "AP50", "AP75", "APS", "APM", "APL"):
        assert scores[name] == pytest.approx(wanted[name], abs=1e-9), name


def test_quiet(open_data, capsys):
    """pycocotools talks; we don't."""
    coco_scores(lambda i: made(row((0, 10)), [1], [1.]), open_data({"a": made(row((0, 10)), [1])}))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("claims", "said"), [
    (made(row((0, 10)), [1]), "no scores"), (made(row((0, 10)), [1], [np.nan]), "not finite"), (made(row((0, 10)), [3], [1]), "class 3"),
    (made(row((0, 10), width=50), [1], [1]), "the picture's"), ("masks", "Instances")])
def test_bad_claims_are_refused(open_data, claims, said):
    """In one line that names the picture."""
    with pytest.raises(DataError, match=said) as error:
        coco_scores(lambda i: claims, open_data({"picture_7": made(row((0, 10)), [1])}))
    assert "picture_7" in str(error.value) and "\n" not in str(error.value)


def test_bad_questions_are_refused(open_data):
    """Sizes the wrong way round; a data set opened without instances."""
    data = open_data({"a": made(row((0, 10)), [1])})
    with pytest.raises(DataError, match="the smaller first"):
        coco_scores(lambda i: made(row((0, 10)), [1], [1]), data, sizes=(9, 4))
    with pytest.raises(DataError, match="instances=True"):
        coco_scores(lambda i: made(row((0, 10)), [1], [1]), replace(data, read_instances=None))


def test_missing_pycocotools_names_the_extra(open_data, monkeypatch):
    """The error says what to install."""
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: (_ for _ in ()).throw(ImportError()) if name.startswith("pycocotools") else real(name, *rest))
    with pytest.raises(ImportError, match=r"wsss_nb\[coco\]"):
        coco_precision(lambda i: None, open_data({"a": made(row((0, 10)), [1])}))


def test_plot_and_table_show_what_was_computed(open_data):
    """Ten curves; percent with one decimal."""
    data = open_data({"a": made(row((0, 100)), [1])})
    precision = coco_precision(lambda i: made(row((0, 72)), [1], [.5]), data)
    ax = plot_precision_recall(precision)
    assert len(ax.lines) == 10 and ax.get_title() == "AP 0.500"
    assert score_table({"ours": summarise(precision, data.classes)}).splitlines()[1].split()[:4] == ["ours", "50.0", "100.0", "0.0"]
