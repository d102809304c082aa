"""Mask R-CNN on masks that nobody drew."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsss_nb.core import DataError
from wsss_nb.detection import DetectionPreset, detect
from wsss_nb.instance_scores import coco_scores
from wsss_nb.instances import read_instances, write_instances
from wsss_nb.proxies import evaluate_instances, finder, instances_key, new_detector, require_proxies, train_on_proxies
from wsss_nb.rcnn import load_detector
from wsss_nb.schedule import Training
from wsss_nb.tagged import Instances
from wsss_nb.voc import voc_folder

BRIEF = DetectionPreset(Training(epochs=1, batch_size=2, optimiser="adamw"), low=.4, high=.5)


@pytest.fixture(scope="module")
def pictures(toyvoc):
    """Six pictures with their objects."""
    return voc_folder(toyvoc, "train", instances=True).subset(range(6))


@pytest.fixture(scope="module")
def talkative(pictures):
    """A network that has learned nothing and says everything."""
    network = new_detector("small", pictures)
    network.roi_heads.score_thresh = 0.
    return network.eval()


def test_training_leaves_a_file(pictures, tmp_path):
    """The folder holds a detector that knows the classes, and training goes through instances, not masks."""
    closed = replace(pictures, read_instances=None)
    network = train_on_proxies(closed, pictures.read_instances, "small", BRIEF, tmp_path, "cpu", weights="random")
    loaded = load_detector(tmp_path / "detector.pt", pictures.classes)
    assert not network.training
    for (name, a), b in zip(network.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(a, b), name


def test_the_same_seed_gives_the_same_network(pictures):
    """What is random depends on the seed, and leaves torch's own generator alone."""
    before = torch.random.get_rng_state()
    a, b, c = (new_detector("small", pictures, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a) and not all(torch.equal(a[name], c[name]) for name in a)


def test_stored_proxies_are_checked_without_unpacking(pictures, tmp_path):
    """Counts and refusals are the same for a file as for a function."""
    with_scores = lambda name: replace(pictures.read_instances(name), scores=np.ones(len(pictures.read_instances(name))))
    path = write_instances(tmp_path / "i.json", [(name, with_scores(name)) for name in pictures.ids], pictures.classes, "truth", "masks")
    stored = read_instances(path, data=pictures)
    assert require_proxies(pictures, stored) == require_proxies(pictures, pictures.read_instances) == sum(len(pictures.instances(i)) for i in range(6))
    wrong = replace(stored, label=stored.label % 6 + 1)
    with pytest.raises(DataError, match="one of its picture's tags"):
        require_proxies(pictures, wrong)
    object.__setattr__(stored, "shapes", (None,) * len(stored.shapes))     # unpacking would now fail
    assert require_proxies(pictures, stored) > 0


def test_finder_equals_one_at_a_time(pictures, talkative):
    """In any order, in any batches, a picture's claims are those of the picture alone where sizes agree."""
    same = pictures.subset([i for i in range(6) if pictures.image(i).shape == pictures.image(0).shape])
    claims = finder(talkative, same, threshold=0., batch=2)
    for name in (*same.ids, *same.ids[::-1]):
        alone = detect(talkative, same.image(same.ids.index(name)), threshold=0.)
        np.testing.assert_allclose(claims(name).scores, alone.scores, atol=1e-5)
        assert (claims(name).masks != alone.masks).mean() < 1e-3


def test_finder_forgets(pictures, talkative, monkeypatch):
    """Only the latest batch is kept: in order each is looked at once, and an earlier one again when asked for."""
    import wsss_nb.proxies as proxies
    looked, real = [], proxies.detect_many
    monkeypatch.setattr(proxies, "detect_many", lambda network, images, *rest: looked.append(len(images)) or real(network, images, *rest))
    claims = finder(talkative, pictures, batch=4)
    for name in pictures.ids:
        claims(name)
    assert looked == [4, 2]
    claims(pictures.ids[0])
    assert looked == [4, 2, 4]


def test_evaluation_is_cocos(pictures, talkative):
    """The same numbers as scoring the claims by id; other classes are refused."""
    found = {name: detect(talkative, pictures.image(i), .05) for i, name in enumerate(pictures.ids)}
    a, b = evaluate_instances(talkative, pictures, batch=1), coco_scores(found.__getitem__, pictures)
    assert a["AP"] == pytest.approx(b["AP"]) and a["classes"].keys() == set(pictures.classes)
    with pytest.raises(DataError, match="the network knows"):
        evaluate_instances(talkative, replace(pictures, classes=tuple("abcdef")))


def test_key_depends_on_masks_and_classes(pictures):
    """One pixel or one class more, another key."""
    def pixel(name):
        found = pictures.read_instances(name)
        masks = found.masks.copy()
        masks[0, 0, 0] ^= name == pictures.ids[3]
        return replace(found, masks=masks)

    def other(name):
        found = pictures.read_instances(name)
        return replace(found, classes=found.classes % 6 + 1)
    keys = {instances_key(f, pictures.ids) for f in (pictures.read_instances, pixel, other)}
    assert len(keys) == 3 and instances_key(pictures.read_instances, pictures.ids) in keys


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda d: train_on_proxies(d, d.read_instances, preset="huge"), "no preset 'huge'"),
    (lambda d: train_on_proxies(d, d.read_instances, "resnet50"), "toy weights"),
    (lambda d: train_on_proxies(d, lambda name: Instances(np.zeros((0, 9, 9), bool), np.zeros((0, 4)), np.zeros(0, int))), "has a proxy")])
def test_bad_input(pictures, wrong, said):
    """Each is refused in one line, before anything is trained."""
    with pytest.raises(DataError, match=said) as error:
        wrong(pictures)
    assert "\n" not in str(error.value)
