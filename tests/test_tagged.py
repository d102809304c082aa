"""One door for every data set: tags pass, masks only for those who ask, and training never asks."""
import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb import files, tagged, voc
from wsss_nb.core import DataError
from wsss_nb.tagged import CueMaps, Instances, Sample, TaggedImages, TrainingSet, collate, mask_boxes, split_objects
from wsss_nb.voc import voc_folder


def small(n: int = 3) -> TaggedImages:
    """A data set whose files nobody reads."""
    return TaggedImages(("cow", "boat"), tuple("abcdefgh"[:n]), np.ones((n, 2), bool), lambda i: f"{i}.jpg")


def square(sample: Sample, rng: np.random.Generator) -> Sample:
    """Cut the same corner from every image, so that a batch has one size."""
    return Sample(sample.image[:, :64, :64] + rng.random(), sample.S)


@pytest.fixture
def folder(toyvoc, tmp_path):
    """ToyVOC, to be damaged."""
    return shutil.copytree(toyvoc, tmp_path / "toyvoc")


def test_training_loads_after_all_masks_are_deleted(folder):
    """Opened before or after, with or without asking for masks: a training set reads no mask."""
    asked = voc_folder(folder, "train", masks=True, instances=True)
    for name in ("SegmentationClass", "SegmentationObject"):
        shutil.rmtree(folder / name)
    opened = voc_folder(folder, "train")
    for data in (asked, opened):
        loader = torch.utils.data.DataLoader(TrainingSet(data, square), batch_size=24, collate_fn=collate)
        batch = next(iter(loader))
        assert batch.image.shape == (24, 3, 64, 64) and batch.ids == data.ids
        assert (batch.T.numpy() == data.tags).all()
        with pytest.raises(DataError):
            data.mask(0)


def test_training_item_calls_no_mask_reader(toyvoc, monkeypatch):
    """With every reader of label maps booby-trapped a whole epoch loads, and evaluation trips."""
    def trap(*_, **__):
        raise AssertionError("a mask was opened")
    data = voc_folder(toyvoc, "train", masks=True, instances=True)
    for module in (files, voc):
        monkeypatch.setattr(module, "read_labels", trap)
    monkeypatch.setattr(voc, "read_sbd", trap)
    assert len([TrainingSet(data)[i] for i in range(len(data))]) == 24
    with pytest.raises(AssertionError, match="a mask was opened"):
        data.mask(0)


def test_training_opens_only_pictures(toyvoc, monkeypatch):
    """Of all files Python opens for a training item, each lies in JPEGImages."""
    import builtins
    opened, real = [], builtins.open
    data = voc_folder(toyvoc, "train", masks=True)
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    TrainingSet(data)[3]
    data.mask(3)
    assert [name.split("/")[-2] for name in opened if "/" in name] == ["JPEGImages", "JPEGImages", "SegmentationClass"]  # item; size and mask


def test_masks_and_instances_only_when_asked():
    """The error says how to ask."""
    with pytest.raises(DataError, match="masks=True"):
        small().mask(0)
    with pytest.raises(DataError, match="instances=True"):
        small().instances(0)


def test_tagged_images_refuse_contradictions():
    """Tags of another shape or type, ids or classes that stand twice."""
    data = small()
    for wrong in (dict(tags=np.ones((3, 3), bool)), dict(tags=np.ones((3, 2))), dict(ids=("a", "b", "a")), dict(classes=("cow", "cow"))):
        with pytest.raises(DataError):
            dataclasses.replace(data, **wrong)


def test_subset_keeps_rows_together():
    """Ids and tags move together; the rest stays."""
    data = dataclasses.replace(small(), tags=np.array([[1, 0], [0, 0], [0, 1]], bool))
    part = data.subset([2, 0])
    assert part.ids == ("c", "a") and part.tags.tolist() == [[False, True], [True, False]] and part.n_classes == 3
    assert data.subset(data.tags.any(1).nonzero()[0]).ids == ("a", "c")
    assert len(data.subset([])) == 0


def test_boxes_by_hand():
    """Right and bottom lie just outside; an empty mask has a box of zeros."""
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1, 2] = masks[1, 0, 0] = masks[1, 4, 6] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 3, 2], [0, 0, 7, 5], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_instances_of_toyvoc_agree_with_its_annotations(toyvoc):
    """As many objects of each class as the xml lists."""
    data = voc_folder(toyvoc, "train", instances=True)
    for i, name in enumerate(data.ids):
        listed = sorted(data.classes.index(c) + 1 for c, _ in voc.read_annotation(toyvoc / "Annotations" / f"{name}.xml"))
        assert sorted(data.instances(i).classes.tolist()) == listed


def test_objects_take_their_most_frequent_class():
    """Void and background under an object do not vote; an object without a class is an error."""
    S, objects = np.array([[2, 2, 1, 255, 255, 255, 0, 0, 0]]), np.array([[1] * 9])
    assert split_objects(S, objects).classes.tolist() == [2]
    with pytest.raises(DataError, match="covers no pixel"):
        split_objects(S * 0, objects)
    assert len(split_objects(S, objects * 0)) == 0


def test_instances_refuse_parts_of_other_lengths():
    """Every part has one row an object, and background is no object."""
    masks, boxes, classes = np.ones((2, 3, 3), bool), np.zeros((2, 4)), np.array([1, 2])
    for wrong in ((masks, boxes, classes[:1]), (masks, boxes[:, :3], classes), (masks * 1, boxes, classes), (masks, boxes, classes - 1),
                  (masks, boxes, classes, np.ones(3)), (masks, boxes, classes, None, np.ones(1, bool))):
        with pytest.raises(DataError):
            Instances(*wrong)


def test_draw_depends_on_seed_epoch_and_number_only(toyvoc):
    """The order of reading and the number of workers change nothing."""
    data = voc_folder(toyvoc, "train").subset(range(6))
    training = TrainingSet(data, square, seed=3)
    alone = [training[1, i][2].image for i in range(6)]
    keys = [(1, i) for i in (5, 2, 0, 3, 1, 4)]
    loader = torch.utils.data.DataLoader(training, batch_size=2, sampler=keys, collate_fn=collate, num_workers=1)
    for batch in loader:
        for image, name in zip(batch.image, batch.ids):
            assert torch.equal(image, alone[data.ids.index(name)])
    assert not torch.equal(training[0, 2][2].image, alone[2])
    assert not torch.equal(TrainingSet(data, square, seed=4)[1, 2][2].image, alone[2])


def test_image_is_scaled_to_one(toyvoc):
    """The tensor holds the file's own pixels, channels first, in 0…1."""
    data = voc_folder(toyvoc, "train")
    image = TrainingSet(data)[0][2].image
    assert image.dtype == torch.float32
    assert ((image * 255).round().permute(1, 2, 0).numpy() == data.image(0)).all()


def test_batch_of_different_sizes_is_explained():
    """The error names the images and the transform that helps."""
    items = [(name, torch.ones(2, dtype=torch.bool), Sample(torch.zeros(3, 4, w))) for name, w in (("wide", 9), ("narrow", 5))]
    with pytest.raises(DataError, match="wide.*narrow.*warp_transform"):
        collate(items)


def test_cue_maps_travel_and_name_what_is_missing():
    """They survive pickling, follow ids, and say which image has none."""
    cues = pickle.loads(pickle.dumps(CueMaps(("a", "b"), np.arange(8, dtype=np.uint8).reshape(2, 2, 2))))
    assert cues("b").tolist() == [[4, 5], [6, 7]]
    with pytest.raises(DataError, match="no cues for c"):
        cues("c")


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:x", "a\0b"])
def test_ids_stay_in_their_folder(bad):
    """No id leads out of the folder of pictures."""
    with pytest.raises(DataError, match="without folder"):
        tagged.check_ids(["fine", bad], "train.txt")


def test_a_subset_by_positions_or_by_a_mask():
    "`tags.any(1)` picks the tagged images; it is no list of positions 0 and 1."
    data = TaggedImages(("cow",), ("a", "b", "c"), np.array([[False], [True], [True]]), Path)
    assert data.subset(data.tags.any(1)).ids == ("b", "c") == data.subset([1, 2]).ids
    assert data.subset([2, 0]).ids == ("c", "a") and data.subset([]).ids == ()
