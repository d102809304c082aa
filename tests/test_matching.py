"""Lesson 05d: how many objects were found."""
import numpy as np
import pytest

from wsss_nb.core import PALETTE, generator
from wsss_nb.matching import instance_picture, match, source_quality
from wsss_nb.tagged import Instances, TaggedImages, mask_boxes


def test_matching_by_hand():
    """The higher score chooses first; an object is found once; .5 is enough."""
    overlaps = np.array([[.6, .7], [.55, .9], [.5, .2]])
    assert match(overlaps, np.array([.2, .9, .1])).tolist() == [0, 1, -1]
    assert match(overlaps, np.array([.9, .2, .1])).tolist() == [1, 0, -1]
    assert match(overlaps, np.array([.1, .2, .9])).tolist() == [-1, 1, 0]
    assert match(np.zeros((2, 0)), np.array([.1, .2])).tolist() == [-1, -1]


def test_quality_by_hand(tmp_path):
    """Two pictures, three objects; four instances of which two are objects; unknown pixels do not count."""
    row = lambda *spans: np.array([[[a <= x < b for x in range(10)]] for a, b in spans], bool).reshape(-1, 1, 10)
    truth = {"a": row((0, 4), (6, 10)), "b": row((2, 4))}
    found = {"a": row((0, 5), (6, 7), (0, 10)), "b": row((2, 9))}    # overlaps 4/5, 1/4, 4/10; of b 2/2, for 4…9 is unknown
    whole = lambda masks: Instances(masks, mask_boxes(masks), np.ones(len(masks), np.int64), np.linspace(1, .5, len(masks)))
    mask = np.zeros((1, 10), np.uint8)
    unknown = np.array([[0] * 4 + [255] * 6], np.uint8)
    data = TaggedImages(("object",), ("a", "b"), np.ones((2, 1), bool), lambda i: tmp_path / i, lambda i: unknown if i == "b" else mask, lambda i: whole(truth[i]))
    assert source_quality(lambda i: whole(found[i]), data) == pytest.approx(dict(recall=2 / 3, precision=2 / 4, overlap=(4 / 5 + 4 / 10 + 1) / 3, found=2, true=1.5))
    assert source_quality(lambda i: whole(truth[i]), data) == pytest.approx(dict(recall=1, precision=1, overlap=1, found=1.5, true=1.5))
    assert source_quality(lambda i: whole(truth[i][:0]), data) == dict(recall=0, precision=0, overlap=0, found=0, true=1.5)


@pytest.mark.parametrize("key", range(20))
def test_matching_equals_the_words(key):
    """The plainest loop that says the same, with ties in overlaps."""
    rng = generator(0, "match", key)
    overlaps, scores = rng.integers(0, 6, (5, 4)) / 5, rng.permutation(5) / 5
    taken, expected = set(), {}
    for k in sorted(range(5), key=lambda k: -scores[k]):
        free = [j for j in range(4) if j not in taken and overlaps[k, j] >= .5]
        expected[k] = max(free, key=lambda j: overlaps[k, j], default=-1)
        taken.add(expected[k])
    assert match(overlaps, scores).tolist() == [expected[k] for k in range(5)]


def test_each_instance_has_a_colour_of_its_own():
    """The higher score lies on top; without instances the picture is only dimmed."""
    masks = np.zeros((2, 6, 8), bool)
    masks[0, :, :5] = masks[1, :, 3:] = True
    image = np.zeros((6, 8, 3), np.uint8)
    found = Instances(masks, mask_boxes(masks), np.array([1, 1]), np.array([.9, .3]))
    shown = instance_picture(image, found)
    assert (shown[2, 1] == (PALETTE[1] * .6).round()).all() and (shown[2, 6] == (PALETTE[2] * .6).round()).all() and (shown[2, 3] == shown[2, 1]).all()
    none = Instances(masks[:0], np.zeros((0, 4)), np.zeros(0, np.int64))
    assert not instance_picture(image, none).any()
