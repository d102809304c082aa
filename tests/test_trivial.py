"""Lesson 05b: what nothing scores, and what true boxes score, made again here from the files alone."""
import numpy as np
import pytest
from PIL import Image

from wsss_nb.evaluation import Evaluation
from wsss_nb.tagged import Instances
from wsss_nb.trivial import all_background, fill_boxes, score_background, score_boxes
from wsss_nb.voc import voc_folder


def masks(root) -> list[tuple[np.ndarray, np.ndarray]]:
    "Class and object masks of the validation pictures, read by Pillow alone."
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    return [tuple(np.array(Image.open(root / f"{kind}/{name}.png")) for kind in ("SegmentationClass", "SegmentationObject")) for name in names]


def miou(pairs) -> float:
    "Mean IoU from its definition, class by class."
    ious = []
    for c in range(7):
        both = sum(((p == c) & (t == c)).sum() for p, t in pairs)
        either = sum((((p == c) | (t == c)) & (t != 255)).sum() for p, t in pairs)
        ious += [both / either] if either else []
    return float(np.mean(ious))


def test_all_background(toyvoc):
    result = score_background(voc_folder(toyvoc, "val", masks=True))
    assert result.summary()["mean_iou"] == pytest.approx(miou([(np.zeros_like(t), t) for t, _ in masks(toyvoc)]), abs=1e-12) and result.images == 12


def test_all_background_from_the_counts_alone():
    """Three pixels of background, five of a cow, one of them unlabelled in the prediction: background 3 of 8, cow nothing."""
    for N in ([[2, 1], [1, 4]], [[2, 0, 1], [1, 3, 1]]):
        found = all_background(Evaluation(np.array(N), ("cow",), 2))
        assert found.confusion[:, 0].tolist() == [3, 5] and not found.confusion[:, 1:].any() and found.images == 2
        assert found.summary()["mean_iou"] == pytest.approx((3 / 8 + 0) / 2) and found.confusion.shape == np.shape(N)


def test_boxes(toyvoc):
    "Boxes and painting order are made again here from the object masks alone."
    pairs = []
    for S, objects in masks(toyvoc):
        boxes = []
        for number in set(np.unique(objects)) - {0, 255}:
            y, x = np.nonzero(objects == number)
            area = (y.max() + 1 - y.min()) * (x.max() + 1 - x.min())
            boxes.append((area, number, (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)), S[y[0], x[0]]))
        prediction = np.zeros_like(S)
        for _, _, window, c in sorted(boxes, key=lambda b: (-b[0], b[1])):
            prediction[window] = c
        pairs.append((prediction, S))
    assert score_boxes(voc_folder(toyvoc, "val", masks=True, instances=True)).summary()["mean_iou"] == pytest.approx(miou(pairs), abs=1e-12)


def test_a_picture_without_things_is_background():
    nothing = Instances(np.zeros((0, 3, 4), bool), np.zeros((0, 4)), np.zeros(0, int))
    assert (fill_boxes(nothing, (3, 4)) == np.zeros((3, 4))).all()
