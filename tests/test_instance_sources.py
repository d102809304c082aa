"""Lesson 33a: sources of instances, and a search that survives being killed."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.core import DataError, generator
from wsss_nb.detection import detect
from wsss_nb.instance_sources import (
    Source,
    coco_source,
    contrast_scores,
    cut_apart,
    detector_source,
    find_instances,
    fingerprint,
    nameless,
    saliency_source,
    salient_instances,
    solid,
    stands_out,
)
from wsss_nb.instances import read_instances
from wsss_nb.rcnn import mask_rcnn
from wsss_nb.tagged import Instances, TaggedImages


def picture(k: int) -> np.ndarray:
    """A few bright blocks on grey."""
    image = np.full((30, 40, 3), 90, np.uint8)
    for j in range(k % 3):
        image[5 + 2 * j:15 + 2 * j, 3 + 13 * j:12 + 13 * j] = 200 + 20 * j
    return image


def bright(image: np.ndarray) -> Instances:
    """Finds each brightness; what a real source does, but in microseconds."""
    levels = [v for v in np.unique(image[..., 0]) if v > 100]
    return nameless(np.array([image[..., 0] == v for v in levels], bool).reshape(-1, *image.shape[:2]), np.array(levels) / 255)


SOURCE = Source("bright blocks", "none beyond the picture", bright)


@pytest.fixture
def data(tmp_path) -> TaggedImages:
    """Six pictures with 0, 1, 2, 0, 1 and 2 blocks."""
    (tmp_path / "pictures").mkdir()
    ids = tuple(f"2007_{k:06d}" for k in range(6))
    for k, i in enumerate(ids):
        Image.fromarray(picture(k)).save(tmp_path / "pictures" / f"{i}.png")
    return TaggedImages(("block",), ids, np.ones((6, 1), bool), lambda i: tmp_path / "pictures" / f"{i}.png")


def same(a: Instances, b: Instances) -> bool:
    """Every part equal."""
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in ("masks", "boxes", "classes", "scores"))


# ---- a whole data set

def test_everything_is_found_once(data, tmp_path):
    """Best first, with source and supervision; the second call finds nothing again and gives the same."""
    calls = []
    source = replace(SOURCE, find=lambda image: calls.append(1) or bright(image))
    stored = find_instances(data, source, tmp_path / "out" / "found.json")
    assert (stored.ids, stored.classes, stored.source, stored.supervision) == (data.ids, ("object",), "bright blocks", "none beyond the picture")
    assert [len(stored(i)) for i in data.ids] == [0, 1, 2, 0, 1, 2]
    assert all(same(stored(i), solid(bright(data.image(k)), (30, 40))) for k, i in enumerate(data.ids))
    assert stored(data.ids[2]).scores.tolist() == [220 / 255, 200 / 255] and read_instances(stored.path).ids == data.ids
    find_instances(data, source, tmp_path / "out" / "found.json")
    assert len(calls) == 6 and [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")] == ["found.json"]


class Killed(BaseException):
    """What no `except Exception` catches."""


def killed_after(n: int) -> Source:
    """Found so many pictures when the power went."""
    calls = []

    def find(image):
        calls.append(1)
        if len(calls) > n:
            raise Killed
        return bright(image)
    return replace(SOURCE, find=find)


def test_a_killed_run_goes_on(data, tmp_path):
    """Only the picture in hand is found again, and the file is the one an uninterrupted run writes, byte for byte."""
    whole = find_instances(data, SOURCE, tmp_path / "whole.json").path.read_bytes()
    for n in (0, 2, 1, 1):
        with pytest.raises(Killed):
            find_instances(data, killed_after(n), tmp_path / "found.json")
        assert not (tmp_path / "found.json").exists()
    find_instances(data, killed_after(2), tmp_path / "found.json")
    assert (tmp_path / "found.json").read_bytes() == whole


@given(share=st.floats(0, 1))
def test_a_line_that_was_cut_anywhere_is_found_again(share, tmp_path_factory):
    """The file beside it may end at any byte."""
    folder = tmp_path_factory.mktemp("cut")
    for k in range(6):
        Image.fromarray(picture(k)).save(folder / f"{k}.png")
    data = TaggedImages(("block",), tuple("012345"), np.ones((6, 1), bool), lambda i: folder / f"{i}.png")
    with pytest.raises(Killed):
        find_instances(data, killed_after(5), folder / "found.json")
    part = folder / "found.json.part.jsonl"
    text = part.read_bytes()
    left = text[:round(share * len(text))]
    part.write_bytes(left)
    needed = 6 - max(left.count(b"\n") - 1, 0)
    if needed > 1:                                                  # and killed once more, after a picture
        with pytest.raises(Killed):
            find_instances(data, killed_after(1), folder / "found.json")
        needed -= 1
    find_instances(data, killed_after(needed), folder / "found.json")
    assert (folder / "found.json").read_bytes() == find_instances(data, SOURCE, folder / "whole.json").path.read_bytes()


SLOW = """
import sys, time
from test_instance_sources import SOURCE, bright, picture
from dataclasses import replace
from pathlib import Path
import numpy as np
from wsss_nb.instance_sources import find_instances
from wsss_nb.tagged import TaggedImages
folder = Path(sys.argv[1])
data = TaggedImages(("block",), tuple("012345"), np.ones((6, 1), bool), lambda i: folder / f"{i}.png")
find_instances(data, replace(SOURCE, find=lambda image: time.sleep(.3) or bright(image)), folder / "found.json")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a signal that cannot be caught")
def test_kill_9(tmp_path):
    """The real thing: nothing is said goodbye to, and the next run finds only the rest."""
    for k in range(6):
        Image.fromarray(picture(k)).save(tmp_path / f"{k}.png")
    part = tmp_path / "found.json.part.jsonl"
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], cwd=os.path.dirname(__file__))
    while not part.exists() or part.read_bytes().count(b"\n") < 3:
        assert child.poll() is None
        time.sleep(.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = part.read_bytes().count(b"\n") - 1
    data = TaggedImages(("block",), tuple("012345"), np.ones((6, 1), bool), lambda i: tmp_path / f"{i}.png")
    stored = find_instances(data, killed_after(6 - there), tmp_path / "found.json")
    assert [len(stored(i)) for i in data.ids] == [0, 1, 2, 0, 1, 2]


def test_sources_are_not_mixed(data, tmp_path):
    """Neither in a run that was killed nor in a finished one; nor another limit, nor another data set."""
    path, other = tmp_path / "found.json", replace(SOURCE, name="dark blocks")
    with pytest.raises(Killed):
        find_instances(data, killed_after(3), path)
    for run, says in ((lambda: find_instances(data, other, path), "was begun with"), (lambda: find_instances(data, SOURCE, path, limit=1), "was begun with"),
                      (lambda: find_instances(data.subset([4, 5]), SOURCE, path), "other images")):
        with pytest.raises(DataError, match=says):
            run()
    find_instances(data, SOURCE, path)
    with pytest.raises(DataError, match="holds instances of bright blocks; expected dark blocks"):
        find_instances(data, other, path)
    lines = (tmp_path / "x.json.part.jsonl")
    lines.write_text("{}\nno json\n")
    with pytest.raises(DataError, match="is damaged"):
        find_instances(data, SOURCE, tmp_path / "x.json")


def test_limit_keeps_the_best(data, tmp_path):
    """One instance a picture: the brighter one."""
    stored = find_instances(data, SOURCE, tmp_path / "found.json", limit=1)
    assert stored(data.ids[2]).scores.tolist() == [220 / 255]


def test_what_a_source_says_is_checked():
    """Masks of another size, a score that is no number; an empty mask is left out and a box is clipped."""
    image, mask = np.zeros((4, 6, 3), np.uint8), np.ones((1, 4, 6), bool)
    assert len(Source("s", "t", lambda image: nameless(mask & False, np.ones(1)))(image)) == 0
    wide = nameless(mask, np.ones(1), np.array([[-1., 0, 7, 4]]))
    assert Source("s", "t", lambda image: wide)(image).boxes.tolist() == [[0, 0, 6, 4]]
    with pytest.raises(DataError, match=r"the instances have size \(6, 4\)"):
        Source("s", "t", lambda image: nameless(np.ones((1, 6, 4), bool), np.ones(1)))(image)
    with pytest.raises(DataError, match="what s found: instance 0 has a score that is no number"):
        Source("s", "t", lambda image: nameless(mask, np.array([np.nan])))(image)


# ---- saliency

def test_thresholds_by_hand():
    """Twice the mean .2875 is .575; Otsu cuts where the gap is; in an even map nothing stands out."""
    s = np.array([[0, 0, .1, .2], [.1, .7, .7, .5]])
    assert stands_out(s, 2.).tolist() == [[False] * 4, [False, True, True, False]]
    assert stands_out(s).tolist() == [[False] * 4, [False, True, True, True]]
    for how in ("otsu", 2.):
        assert not stands_out(np.zeros((3, 3)), how).any() and not stands_out(np.full((3, 3), .5), how).any()


def discs(*centres: tuple[int, int], r: int = 10) -> np.ndarray:
    """Filled circles."""
    y, x = np.mgrid[:50, :90]
    return np.any([np.hypot(y - cy, x - cx) <= r for cy, cx in centres], axis=0)


def test_a_narrow_neck_is_cut():
    """Two discs that overlap by little become two parts along the line between them; a bar and a disc stay whole."""
    both = discs((25, 30), (25, 48))
    parts = cut_apart(both)
    assert parts.max() == 2 and np.array_equal(parts > 0, both)
    y, x = np.mgrid[:50, :90]
    left, right = (set(np.unique(parts[both & side])) for side in (x < 38, x > 40))
    assert len(left) == len(right) == 1 and left != right
    assert cut_apart(both, None).max() == 1 and cut_apart(discs((25, 30))).max() == 1
    assert cut_apart((abs(y - 25) < 4) & (abs(x - 45) < 40)).max() == 1
    assert cut_apart(discs((25, 20), (25, 70))).max() == 2 and cut_apart(both & False).max() == 0


def test_an_object_cut_by_the_border_is_no_neck():
    """The picture's border counts as outside, so half a disc is widest inside it."""
    assert cut_apart(discs((0, 40))).max() == 1 and cut_apart(np.ones((20, 30), bool)).max() == 1
    half, whole = discs((0, 40)), discs((6, 53), r=4)              # half of a large disc is as deep as a whole small one
    assert cut_apart(half | whole, None).max() == 1 and cut_apart(half | whole).max() == 2


def test_scores_by_hand():
    """Inside 1, around .25: .75; the other instance does not count as around; nothing around: 0 is taken off."""
    s = np.full((20, 20), .25)
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 5:10, 5:10] = masks[1, 5:10, 10:15] = True
    s[masks[0]], s[masks[1]] = 1, .5
    assert contrast_scores(s, masks).tolist() == [.75, .25]
    assert contrast_scores(np.full((4, 4), .5), np.ones((1, 4, 4), bool)).tolist() == [.5]
    assert contrast_scores(1 - s, masks).tolist() == [0, 0]


def test_small_things_are_dropped():
    """Two percent of the picture are 90 of 4,500 pixels."""
    s = discs((25, 30)).astype(float)
    s[5:14, 70:80] = 1
    assert [m.sum() for m in salient_instances(s).masks] == [90, discs((25, 30)).sum()]
    s[5, 70] = 0
    assert len(salient_instances(s)) == 1


def test_blocks_are_found_in_a_picture():
    """From colours alone; nothing in a picture of one colour, and in tiny ones."""
    image = np.full((80, 100, 3), (90, 140, 80), np.uint8)
    image[20:45, 10:40] = 220, 40, 40
    image[40:70, 60:85] = 40, 40, 220
    found = saliency_source()(image)
    truth = np.zeros((2, 80, 100), bool)
    truth[0, 20:45, 10:40] = truth[1, 40:70, 60:85] = True
    overlap = np.array([[(m & t).sum() / (m | t).sum() for t in truth] for m in found.masks])
    assert len(found) == 2 and (overlap.max(0) > .8).all() and (found.scores > .5).all() and found.classes.tolist() == [1, 1]
    for shape in ((40, 60, 3), (1, 1, 3), (1, 50, 3)):
        assert len(saliency_source()(np.full(shape, 99, np.uint8))) == 0


def test_names_tell_settings_apart():
    """Or two runs of different settings could be mixed."""
    sources = [saliency_source(), saliency_source(how=2.), saliency_source(neck=None), saliency_source(smallest=.1)]
    assert len({s.name for s in sources}) == 4 and {s.supervision for s in sources} == {"none beyond the picture"}


# ---- detectors

def test_a_detectors_classes_are_thrown_away(monkeypatch):
    """Masks, boxes and scores stay; the name tells networks and thresholds apart."""
    masks, asked = np.ones((2, 4, 6), bool), []
    known = Instances(masks, np.array([[0., 1, 5, 4], [1, 0, 6, 3]]), np.array([3, 7]), np.array([.4, .9]))
    monkeypatch.setattr("wsss_nb.instance_sources.detect", lambda network, image, threshold, limit: asked.append((network, threshold, limit)) or known)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    one.name = other.name = "small"
    source = detector_source(one, threshold=.3, limit=7)
    found = source(np.zeros((4, 6, 3), np.uint8))
    assert found.classes.tolist() == [1, 1] and found.scores.tolist() == [.9, .4] and found.boxes.tolist() == [[1, 0, 6, 3], [0, 1, 5, 4]]
    assert asked == [(one, .3, 7)] and "other classes" in source.supervision
    assert len({source.name, detector_source(one).name, detector_source(other).name}) == 3
    same_weights = torch.nn.Linear(2, 2)
    same_weights.load_state_dict(one.state_dict())
    assert fingerprint(same_weights) == fingerprint(one) != fingerprint(other)


def test_cocos_detector_runs_without_its_weights(tmp_path):
    """Random weights find rubbish of the right form, of which the plainest suppression keeps the same; other files are refused."""
    image = generator(0, "photo").integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:                    # all that is found before two of one thing are made one
        networks = []
        patch.setattr("wsss_nb.instance_sources.mask_rcnn", lambda *settings: networks.append(mask_rcnn(*settings)) or networks[0])
        source = coco_source("random", threshold=0., overlap=.3, short=64)
    found, raw = source(image), detect(networks[0], image, 0.)
    assert networks[0].training is False and source.supervision == "masks of 80 COCO classes"
    assert found.masks.shape[1:] == (60, 80) and set(found.classes) == {1} and 0 < len(found) < len(raw)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    both = lambda a, b: max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    kept = []
    for k in np.argsort(-raw.scores, kind="stable"):
        if all(both(raw.boxes[k], raw.boxes[j]) <= .3 * (area(raw.boxes[k]) + area(raw.boxes[j]) - both(raw.boxes[k], raw.boxes[j])) for j in kept):
            kept.append(k)
    assert np.array_equal(found.masks, raw.masks[kept]) and np.array_equal(found.scores, raw.scores[kept])
    with pytest.raises(DataError, match="does not exist"):
        coco_source(tmp_path / "nowhere.pth", short=64)


def test_stored_sources_are_read_back(data, tmp_path):
    """What was found for all is there for some."""
    find_instances(data, SOURCE, tmp_path / "found.json")
    assert len(read_instances(tmp_path / "found.json", data=data.subset([2]))(data.ids[2])) == 2
