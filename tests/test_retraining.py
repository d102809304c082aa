"""Lesson 42: predictions of the training pictures, as supervision of the next training."""
import pickle

import numpy as np
import pytest
import torch
from test_inference import Tiny

from wsss_nb.core import DataError
from wsss_nb.files import folder_hash, read_labels, write_labels
from wsss_nb.inference import decide, predict_probabilities
from wsss_nb.loop import fit
from wsss_nb.losses import pixel_loss
from wsss_nb.retraining import LabelFolder, label_folder, make_labels
from wsss_nb.schedule import Training
from wsss_nb.segmenter import probabilities
from wsss_nb.tagged import TrainingSet
from wsss_nb.transforms import crop_transform
from wsss_nb.voc import voc_folder


@pytest.fixture(scope="module")
def data(toyvoc):
    """Six training pictures, opened without masks: labels must not need any."""
    return voc_folder(toyvoc, "train").subset(range(6))


@pytest.fixture(scope="module")
def network(data):
    """Says something arbitrary, always the same."""
    return Tiny(data.classes)


@pytest.fixture(scope="module")
def labels(network, data, tmp_path_factory):
    """Made once with the defaults."""
    return make_labels(network, data, tmp_path_factory.mktemp("labels"), workers=1)


def test_labels_are_what_inference_says(network, data, labels):
    """Three scales and a CRF by default, at the picture's size, every pixel labelled."""
    for i in (0, 5):
        image = data.image(i)
        S = labels(data.ids[i])
        np.testing.assert_array_equal(S, decide(predict_probabilities(network, image, (.75, 1., 1.25)), image))
        assert S.shape == image.shape[:2] and S.dtype == np.uint8 and S.max() < 7


def test_restricted_labels_hold_tagged_classes_only(network, data, labels, tmp_path):
    """Whatever the network says; free labels of this network do name others."""
    restricted = make_labels(network, data, tmp_path, restrict=True)
    strange = {name: sum(not set(np.unique(read(i))) <= {0, *(np.flatnonzero(data.tags[k]) + 1)} for k, i in enumerate(data.ids))
               for name, read in {"free": labels, "restricted": restricted}.items()}
    assert strange["free"] > 0 and strange["restricted"] == 0
    agree = [np.isin(labels(i), [0, *(np.flatnonzero(data.tags[k]) + 1)]) & (labels(i) != restricted(i)) for k, i in enumerate(data.ids)]
    assert np.mean([a.mean() for a in agree]) < .2   # where free labels were allowed, most stay


def test_a_second_call_makes_what_is_missing(network, data, tmp_path):
    """A missing and a broken label map are made again, to the same bytes; restricting needs another folder."""
    made = make_labels(network, data, tmp_path, crf=False)
    before = folder_hash(tmp_path)
    (tmp_path / f"{data.ids[2]}.png").unlink()
    broken = tmp_path / f"{data.ids[3]}.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=f"{data.ids[2]}.png does not exist.*To mend it: call make_labels again"):
        made(data.ids[2])
    with pytest.raises(DataError, match=f"{data.ids[3]}.png cannot be read.*To mend it: delete this file"):
        made(data.ids[3])
    assert make_labels(network, data, tmp_path, crf=False) == made
    assert folder_hash(tmp_path) == before
    with pytest.raises(DataError, match="other amended"):
        make_labels(network, data, tmp_path, crf=False, restrict=True)


def test_missing_label_maps_are_counted_at_the_door(labels, data, tmp_path):
    """Also a folder that is not there."""
    with pytest.raises(DataError, match="lacks the label maps of 2 of 3 images, the first is nobody"):
        label_folder(labels.folder, data.classes, ("nobody", data.ids[0], "no one"))
    with pytest.raises(DataError, match="lacks the label maps"):
        label_folder(tmp_path / "nowhere", data.classes, data.ids)


def test_labels_of_other_classes_are_refused(labels, data, tmp_path):
    """By the note, also when only the order differs; without a note by the first label that is too large."""
    for classes in (data.classes[:3], data.classes[::-1]):
        with pytest.raises(DataError, match="class numbers would mean something else"):
            label_folder(labels.folder, classes, data.ids)
    write_labels(tmp_path / "x.png", np.full((2, 2), 6, np.uint8))
    assert label_folder(tmp_path, data.classes, ("x",))("x").tolist() == [[6, 6], [6, 6]]
    with pytest.raises(DataError, match="holds class 6; expected 0…3"):
        label_folder(tmp_path, data.classes[:3], ("x",))("x")


def test_no_pictures_and_other_networks_are_refused(network, data, tmp_path):
    """Before anything is written."""
    with pytest.raises(DataError, match="no images"):
        make_labels(network, data.subset([]), tmp_path)
    with pytest.raises(DataError, match="tells 4 classes apart"):
        make_labels(Tiny(data.classes[:3]), data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_note_that_is_none_is_refused(data, labels, tmp_path):
    """A note somebody cut off."""
    write_labels(tmp_path / "x.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "predictions.json").write_text('{"classes')
    with pytest.raises(DataError, match="predictions.json"):
        label_folder(tmp_path, data.classes, ("x",))


def test_unlabelled_pixels_are_read(tmp_path):
    """Label maps anyone drew may hold 255."""
    write_labels(tmp_path / "x.png", np.array([[0, 255, 1]], np.uint8))
    assert label_folder(tmp_path, ("cat",), ("x",))("x").tolist() == [[0, 255, 1]]


def test_labels_travel_to_workers(labels, data):
    """The reader survives a pickle, and a DataLoader's worker reads the same as the training process."""
    again = pickle.loads(pickle.dumps(labels))
    assert isinstance(again, LabelFolder) and (again(data.ids[0]) == labels(data.ids[0])).all()


def test_labels_train_a_network(labels, data):
    """Crops of the label maps lie on their pictures, and the loss of a student falls."""
    student = Tiny(data.classes, seed=5)
    view = crop_transform(64, (16, 16), student.mean, student.std, low=.8, high=1.)
    settings = Training(iterations=30, batch_size=4, learning_rate=3e-3, optimiser="adamw", schedule="constant")
    history = fit(student, TrainingSet(data, view, labels), lambda batch: {"labels": pixel_loss(probabilities(student(batch.image)), batch.S)}, settings, device="cpu")
    assert history[-1]["labels"] < .7 * history[0]["labels"]


def test_a_student_of_a_perfect_memory_agrees_with_its_labels(tmp_path):
    """Two colours, two classes: labels learned are labels given, and a network that says them is read back."""
    write_labels(tmp_path / "x.png", np.array([[0, 1], [1, 0]], np.uint8))
    S = torch.from_numpy(label_folder(tmp_path, ("one",), ("x",))("x"))[None]
    assert float(pixel_loss(torch.nn.functional.one_hot(S.long(), 2).permute(0, 3, 1, 2).float(), S)) < 1e-6
    assert (read_labels(tmp_path / "x.png", 2) == S[0].numpy()).all()
