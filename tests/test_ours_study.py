"""The study of all recipes on ToyVOC: whose pictures are lost, and the label maps that are kept of them."""
from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from wsss_nb.core import DataError
from wsss_nb.evaluation import confusion, mean_iou
from wsss_nb.files import write_labels
from wsss_nb.ours_study import keep_gallery, most_lost, pack_labels, scores_of, unpack_labels
from wsss_nb.tagged import TaggedImages


@pytest.mark.parametrize("seed", range(20))
def test_lost_is_the_largest_gap(seed):
    """Nobody is further ahead on any other picture, by trying all pairs."""
    rng = np.random.default_rng(seed)
    scores = {name: rng.random(7).round(1).tolist() for name in "abcd"}
    for name, (i, rival) in most_lost(scores).items():
        gaps = [scores[other][k] - scores[name][k] for other in scores for k in range(7)]
        assert scores[rival][i] - scores[name][i] == max(gaps)


def test_lost_wants_rivals():
    """One method alone loses nothing; lists of other lengths cannot be compared."""
    for scores in ({}, {"a": [.1]}, {"a": [.1], "b": [.1, .2]}):
        with pytest.raises(DataError, match="at least two"):
            most_lost(scores)


def test_pictures_that_nobody_judged():
    """Nobody loses where no pixel is judged; the file says that there is no score, in JSON that every program reads."""
    assert most_lost({"a": [float("nan"), .4], "b": [float("nan"), .5]}) == {"a": (1, "b"), "b": (0, "a")}


@pytest.mark.parametrize("seed", range(10))
def test_label_map_survives(seed):
    """There and back, through text; pycocotools reads the same pixels of each class."""
    rng = np.random.default_rng(seed)
    S = rng.choice(np.array([0, 0, 0, 1, 2, 7, 255], np.uint8), rng.integers(1, 30, 2))
    packed = json.loads(json.dumps(pack_labels(S)))
    assert unpack_labels(packed).dtype == np.uint8 and (unpack_labels(packed) == S).all()
    for c in set(np.unique(S)) - {0}:
        assert (coco_mask.decode({"size": list(S.shape), "counts": packed[str(c)].encode()}) == (S == c)).all()


def test_gallery_holds_both_answers(tmp_path):
    """Scores are those of each picture's own confusion; the maps are the files'."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (4, 6, 5)).astype(np.uint8)
    data = TaggedImages(("cow", "boat"), tuple("wxyz"), np.ones((4, 2), bool), lambda name: np.zeros((6, 5, 3), np.uint8), read_mask=lambda name: masks["wxyz".index(name)])
    before, said = masks[2].copy(), {name: rng.integers(0, 3, (4, 6, 5)).astype(np.uint8) for name in ("a", "b")}
    for name, maps in said.items():
        for i, S in enumerate(maps):
            write_labels(tmp_path / name / f"{data.ids[i]}.png", S)
    keep_gallery({name: tmp_path / name for name in said}, data, tmp_path / "gallery.json")
    masks[2] = 255
    keep_gallery({name: tmp_path / name for name in said}, data, tmp_path / "unjudged.json")
    unjudged = json.loads((tmp_path / "unjudged.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert [row[2] for row in unjudged["scores"].values()] == [None, None]
    masks[2] = before
    kept = json.loads((tmp_path / "gallery.json").read_text())
    for name, maps in said.items():
        own = [mean_iou(confusion(S, mask, 3)) for S, mask in zip(maps, masks, strict=True)]
        assert kept["scores"][name] == pytest.approx(own, abs=1e-4) and scores_of(tmp_path / name, data) == pytest.approx(own)
        lost = kept["lost"][name]
        assert lost["rival"] == "ba"["ab".index(name)]
        assert (unpack_labels(lost["mine"]) == maps[lost["picture"]]).all() and (unpack_labels(lost["theirs"]) == said[lost["rival"]][lost["picture"]]).all()
