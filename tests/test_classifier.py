"""The classifier: loss, presets, grey, training, grades, files, pretraining kept in a folder."""
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from wsss_nb.backbones import Classifier, backbone
from wsss_nb.classifier import (
    DSRG_CLASSIFIER,
    LUMA,
    TOY_CLASSIFIER,
    WST_CLASSIFIER,
    Grey,
    average_precision,
    bounded,
    is_grey,
    judging,
    make_grey,
    mean_quality,
    multilabel_loss,
    network_input,
    same_size,
    score_images,
    set_dropout,
    single_tag_loss,
    tag_quality,
    train_classifier,
)
from wsss_nb.core import DataError, generator
from wsss_nb.creatures import THINGS
from wsss_nb.pretraining import (
    class_folders,
    data_key,
    key_of,
    load_classifier,
    new_network,
    once,
    save_classifier,
    toy_classifier,
    toy_pretrained,
    toy_voc,
)
from wsss_nb.tagged import TaggedImages
from wsss_nb.toyvoc import make_pretraining_set
from wsss_nb.voc import voc_folder

QUICK = replace(TOY_CLASSIFIER, size=48, low=.3, high=.5)      # a quarter of the pixels


def epochs(n, preset=QUICK, **settings):
    """A preset with n epochs and other settings."""
    return replace(preset, training=replace(preset.training, epochs=n, **settings))


def pictures(folder, arrays, tags=None):
    """A data set of these pictures, without a file in VOC layout."""
    for k, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{k}.png")
    tags = np.ones((len(arrays), 2), bool) if tags is None else np.asarray(tags, bool)
    return TaggedImages(("boat", "cow"), tuple(map(str, range(len(arrays)))), tags, lambda i: folder / f"{i}.png")


@pytest.fixture(scope="module")
def train(toyvoc):
    """The training split of the small ToyVOC."""
    return voc_folder(toyvoc, "train")


# ---- losses -----------------------------------------------------------------------------------------------------------

def test_multilabel_loss_by_hand():
    """Two images, two classes, each term written out; sure and wrong costs its logit."""
    logits, T = torch.tensor([[0., 2], [-1, 50]], dtype=torch.float64), torch.tensor([[True, False], [False, True]])
    terms = [math.log(2), math.log(1 + math.exp(2)), math.log(1 + math.exp(-1)), math.exp(-50)]
    assert multilabel_loss(logits, T).item() == pytest.approx(sum(terms) / 4)
    assert multilabel_loss(torch.tensor([[-900.]]), torch.tensor([[True]])).item() == pytest.approx(900)


@pytest.mark.parametrize("T", [torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)])
def test_no_tag_and_every_tag_have_a_loss_and_a_gradient(T):
    """Empty and full tag sets are ordinary."""
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = multilabel_loss(logits, T)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(logits.grad, torch.where(T, -.5, .5) / 6)


def test_single_tag_loss_is_torch_cross_entropy():
    """The softmax loss equals torch's."""
    logits, c = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    T = torch.nn.functional.one_hot(c, 5).bool()
    torch.testing.assert_close(single_tag_loss(logits, T), torch.nn.functional.cross_entropy(logits, c))


# ---- presets ----------------------------------------------------------------------------------------------------------

def test_presets_are_the_papers():
    """WST 5.2 and DSRG 4.1, number by number."""
    w, d = WST_CLASSIFIER, DSRG_CLASSIFIER
    assert (w.training.learning_rate, w.training.schedule, w.training.power, w.training.epochs, w.training.batch_size) == (1e-3, "poly_epoch", .9, 20, 16)
    assert (w.view, w.size, w.low, w.high, w.new, w.training.optimiser) == ("crop", 321, .5, 1.5, 10, "sgd")
    assert (d.training.momentum, d.training.weight_decay, d.training.batch_size, d.dropout) == (.9, 5e-4, 20, .5)
    assert (d.training.learning_rate, d.training.schedule, d.training.step_every, d.training.step_factor) == (5e-4, "step", 2000, .1)
    assert (d.view, d.size, d.new, d.bias, d.bias_decay) == ("warp", 321, 10, 2, 0)


@pytest.mark.parametrize("preset", [WST_CLASSIFIER, DSRG_CLASSIFIER, TOY_CLASSIFIER])
def test_every_preset_makes_squares_of_its_size(preset):
    """What the network sees has the preset's size, whatever the picture's."""
    from wsss_nb.tagged import Sample
    see = preset.transform((.5,) * 3, (.25,) * 3)
    for shape in ((1, 1), (1, 500), (150, 200)):
        assert see(Sample(torch.rand(3, *shape)), generator(0)).image.shape == (3, preset.size, preset.size)


def test_dropout_of_a_preset_goes_where_the_network_has_it():
    """Into the head's dropout layers, and not a second time behind them; a network without such layers drops its last features."""
    small = new_network("small", ("a",))
    set_dropout(small, .5)
    assert small.dropout.p == .5
    head = nn.Sequential(nn.Conv2d(64, 8, 1), nn.Dropout(.1), nn.ReLU(), nn.Dropout(.2))
    own = Classifier(small.trunk, 1, head, 8)
    set_dropout(own, .5)
    assert [m.p for m in head if isinstance(m, nn.Dropout)] == [.5, .5] and own.dropout.p == 0


@pytest.mark.parametrize("wrong", [{"view": "zoom"}, {"loss": "hinge"}])
def test_unknown_view_or_loss_is_refused(wrong):
    """The message offers what exists."""
    with pytest.raises(DataError, match="expected .* or "):
        replace(TOY_CLASSIFIER, **wrong)


# ---- grey -------------------------------------------------------------------------------------------------------------

def test_grey_layer_is_pillows_grey():
    """Normalised colours in, Pillow's L in three channels out, to half a grey value."""
    mean, std = (.4, .5, .6), (.2, .25, .3)
    photo = np.random.default_rng(1).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    shape = lambda v: torch.tensor(v)[:, None, None]
    ready = lambda x: (torch.from_numpy(x.copy()).permute(2, 0, 1) / 255 - shape(mean)) / shape(std)
    pillow = np.repeat(np.asarray(Image.fromarray(photo).convert("L"))[..., None], 3, 2)
    ours = Grey(mean, std)(ready(photo)[None])[0] * shape(std) + shape(mean)
    assert (ours - torch.from_numpy(pillow.copy()).permute(2, 0, 1) / 255).abs().max() <= .51 / 255
    torch.testing.assert_close(ours[0], ours[1], atol=1e-6, rtol=0)
    assert sum(LUMA) == pytest.approx(1)


def test_a_grey_network_cannot_see_colours():
    """Red and green of one brightness give one answer, through every way into the network; a colour network tells them apart."""
    network = new_network("small", ("a", "b"))
    red, green = torch.zeros(2, 1, 3, 8, 8)
    red[:, 0], green[:, 1] = .587, .299                                 # both have luma .299 · .587
    red, green = ((x - .45) / .25 for x in (red, green))
    assert (network.mean, network.std) == ((.45,) * 3, (.25,) * 3)
    with judging(network):
        assert (network(red) - network(green)).abs().max() > 1e-5
        make_grey(make_grey(network))
        torch.testing.assert_close(network(red), network(green), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(network.features(red), network.features(green), atol=1e-5, rtol=1e-5)
    assert is_grey(network) and list(dict(network.trunk.named_children())).count("grey") == 1


def test_make_grey_keeps_frozen_layers_and_weights():
    """Freezing survives; the state dictionary has the same names."""
    network = new_network("small", ("a",))
    network.trunk.freeze("block1")
    names = set(network.state_dict())
    make_grey(network).train()
    assert not network.trunk.block1.training and network.trunk.block2.training and set(network.state_dict()) == names


# ---- training -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network after a short training on sixty pictures, and the pictures."""
    data = class_folders(make_pretraining_set(tmp_path_factory.mktemp("sixty") / "set", 60, 0, seed=5, things=THINGS))
    network = new_network("small", data.classes, seed=0)
    history = train_classifier(data, network, epochs(20, replace(QUICK, low=.5, high=.6), batch_size=10, warm_up=10))
    return network, data, history


def test_training_learns_something(learned):
    """Sixty pictures, a fixed seed: the loss falls and the order of the scores is far better than chance."""
    network, data, history = learned
    scores = score_images(network, data)
    assert len(history) == 20 and history[-1]["loss"] < .8 * history[0]["loss"]
    assert np.nanmean(average_precision(scores, data.tags)) > data.tags.mean() + .15


def test_training_depends_on_the_seed_alone(train):
    """The same seed gives the same weights, another seed others."""
    weights = []
    for seed in (0, 0, 1):
        network = new_network("small", train.classes)
        train_classifier(train, network, epochs(1), seed=seed)
        weights.append(network.weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_goes_on_where_it_was_stopped(train, tmp_path):
    """Two epochs, of which the second in another call, equal two in one."""
    whole, parts = new_network("small", train.classes), new_network("small", train.classes)
    settings = epochs(2, schedule="constant")

    class Stop(Exception):
        pass

    images_read = [0]
    def file_of(name, limit=16 + 8):
        images_read[0] += 1
        if images_read[0] > limit:
            raise Stop
        return train.image_file(name)

    train_classifier(train, whole, settings)
    with pytest.raises(Stop):
        train_classifier(replace(train, image_file=file_of), parts, settings, tmp_path)
    history = train_classifier(train, parts, settings, tmp_path)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), atol=0, rtol=0)
    assert len(history) == 2


def test_grey_training_makes_a_grey_network(train):
    """`grey=True` is remembered by the network."""
    network = new_network("small", train.classes)
    train_classifier(train, network, epochs(1), grey=True)
    assert is_grey(network) and network.classes == train.classes


def test_training_refuses_what_does_not_fit(train):
    """Another number of classes; several tags where one is needed."""
    with pytest.raises(DataError, match="tells 2 classes"):
        train_classifier(train, backbone("small", 2, weights="random"), QUICK)
    with pytest.raises(DataError, match="one tag"):
        train_classifier(train, backbone("small", 6, weights="random"), replace(QUICK, loss="single"))


@pytest.mark.parametrize("value", [False, True])
def test_no_tag_and_every_tag_can_be_trained_on(train, value):
    """A set whose images all have no tag, or all tags, is trained on like any other."""
    network = new_network("small", train.classes)
    history = train_classifier(replace(train, tags=np.full_like(train.tags, value)), network, epochs(1))
    assert .2 < history[-1]["loss"] < 1        # near log 2; a softmax would give 0 or 6 log 6


def test_the_seed_reaches_the_loop_too(train, monkeypatch):
    """Views and the order of batches both depend on it."""
    seen = []
    monkeypatch.setattr("wsss_nb.classifier.fit", lambda network, images, step, settings, *rest: seen.append((images.seed, settings.seed)))
    train_classifier(train, new_network("small", train.classes), seed=7)
    assert seen == [(7, 7)]


# ---- scores -----------------------------------------------------------------------------------------------------------

def test_scores_are_those_of_each_picture_alone(train):
    """Grouping by size changes nothing; the network's mode comes back."""
    network = new_network("small", train.classes).train()
    scores = score_images(network, train)
    assert network.training
    with judging(network):
        alone = torch.cat([network(network_input(network, train.image(i))) for i in range(len(train))])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-4)
    assert sorted(i for group in same_size(train, 4) for i in group) == list(range(len(train)))
    assert all(len({train.image(i).shape for i in group}) == 1 and len(group) <= 4 for group in same_size(train, 4))


def test_odd_sizes_are_scored(tmp_path):
    """1×1, 1×500 and 2000×3000: each gets finite scores, and no picture reaches the network with more pixels than the limit."""
    data = pictures(tmp_path, [np.full((h, w, 3), 90, np.uint8) for h, w in ((1, 1), (1, 500), (2000, 3000))])
    network, seen = new_network("small", data.classes), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-2] * inputs[0].shape[-1]))
    assert score_images(network, data, limit=50_000).isfinite().all()
    assert sorted(seen)[:2] == [1, 500] and 40_000 < max(seen) <= 50_000


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 10**6))
def test_bounded_sizes(h, w, limit):
    """Never more pixels than allowed, unless a side is already one pixel; small pictures stay as they are."""
    a, b = bounded((h, w), limit)
    assert 1 <= a <= h and 1 <= b <= w
    assert a * b <= limit or 1 in (a, b)
    assert (a, b) == (h, w) if h * w <= limit else True


def test_scores_that_are_not_finite_name_the_picture(train):
    """A network that diverged is refused, with the id."""
    network = new_network("small", train.classes)
    torch.nn.init.constant_(network.linear.bias, math.nan)
    with pytest.raises(DataError, match=train.ids[0]):
        score_images(network, train)


# ---- grades -----------------------------------------------------------------------------------------------------------

def walk(scores, truth):
    """Average precision by going through all thresholds: precision times the recall gained there."""
    total, before = 0., 0
    for z in sorted(set(scores), reverse=True):
        claimed = [t for s, t in zip(scores, truth) if s >= z]
        total += sum(claimed) / len(claimed) * (sum(claimed) - before)
        before = sum(claimed)
    return total / sum(truth)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25).filter(lambda rows: any(t for _, t in rows)))
def test_average_precision_against_brute_force(rows):
    """Few values, so many ties."""
    scores, truth = zip(*rows)
    assert average_precision(np.array(scores)[:, None], np.array(truth)[:, None])[0] == pytest.approx(walk(scores, truth))


def test_average_precision_does_not_depend_on_the_order_of_files():
    """Ties are found together."""
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 3, (40, 2)), rng.random((40, 2)) < .3
    order = rng.permutation(40)
    np.testing.assert_allclose(average_precision(scores, truth), average_precision(scores[order], truth[order]))


def test_quality_by_hand():
    """Four images, one class: two hits, one false alarm, one miss."""
    quality = tag_quality(torch.tensor([[3.], [2], [1], [-1]]), np.array([[True], [False], [True], [True]]))
    assert {name: float(v[0]) for name, v in quality.items()} == pytest.approx(
        {"average precision": (1 + 2 / 3 + 3 / 4) / 3, "accuracy": 2 / 4, "recall": 2 / 3, "precision": 2 / 3})


def test_classes_without_images_are_left_out_of_the_mean():
    """NaN for a class nobody has, and no warning when no class has a value."""
    quality = tag_quality(np.array([[1., 1], [-1, 1]]), np.array([[True, False], [False, False]]))
    assert np.isnan(quality["recall"][1]) and mean_quality(quality)["recall"] == 1
    assert math.isnan(mean_quality({"x": np.array([np.nan])})["x"])


@pytest.mark.parametrize("scores, T", [(np.zeros((2, 3)), np.zeros((3, 2), bool)), (np.full((1, 1), np.nan), np.ones((1, 1), bool))])
def test_grades_refuse_other_shapes_and_nan(scores, T):
    """Named, not guessed."""
    with pytest.raises(DataError):
        average_precision(scores, T)


# ---- files ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("grey", [False, True])
def test_saved_and_loaded_is_the_same_network(tmp_path, grey):
    """Weights, batch norm statistics, classes, grey."""
    network = new_network("small", ("boat", "cow"), seed=3)
    network = make_grey(network) if grey else network
    network.train()(torch.rand(4, 3, 20, 20))                  # statistics that are not the first ones
    save_classifier(tmp_path / "a.pt", network, "small")
    again, image = load_classifier(tmp_path / "a.pt", ("boat", "cow")), torch.rand(1, 3, 17, 23)
    with judging(network):
        assert torch.equal(again(image).detach(), network(image))
    assert (is_grey(again), again.classes, again.training) == (grey, ("boat", "cow"), False)


class Bomb:
    """A pickle that would make a folder when opened."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_are_no_classifier_are_refused(tmp_path):
    """Missing, empty, truncated, code, other content, other classes, weights of another backbone: each in one line that names the file."""
    network = new_network("small", ("boat", "cow"))
    save_classifier(tmp_path / "good.pt", network, "small")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:30_000])
    torch.save(Bomb(str(tmp_path / "exploded")), tmp_path / "bomb.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    wrong = torch.load(tmp_path / "good.pt", weights_only=True)
    torch.save(wrong | {"classes": ["boat"]}, tmp_path / "short.pt")
    for name in ("lost", "empty", "half", "bomb", "other", "list", "short"):
        with pytest.raises(DataError, match=f"{name}.pt.*To mend it"):
            load_classifier(tmp_path / f"{name}.pt")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(DataError, match="boat, cow.*expected cat, cow"):
        load_classifier(tmp_path / "good.pt", ("cat", "cow"))
    network.classes = ()
    with pytest.raises(DataError, match="0 names"):
        save_classifier(tmp_path / "nameless.pt", network, "small")


@pytest.mark.parametrize("name, stride", [("resnet50", 16), ("resnet50", 8), ("timm:tf_efficientnet_lite0", 8), ("timm:tf_efficientnet_lite0", None)])
def test_the_stride_is_saved_too(tmp_path, name, stride):
    """A network made finer or coarser comes back with that stride and the same features."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = backbone(name, 2, weights="random", stride=stride).eval()
    network.classes = ("boat", "cow")
    save_classifier(tmp_path / "a.pt", network, name)
    again, image = load_classifier(tmp_path / "a.pt"), torch.rand(1, 3, 65, 90)
    with torch.no_grad():
        assert again.stride == network.stride and torch.equal(again.features(image), network.features(image))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    """Another backbone's name, a network of one's own, weights that are not finite: refused before there is a file."""
    def named(network):
        network.classes = ("boat", "cow")
        return network
    broken = named(new_network("small", ("boat", "cow")))
    torch.nn.init.constant_(broken.linear.bias, math.nan)
    unbiased = named(Classifier(new_network("small", ("boat", "cow")).trunk, 2, bias=False))
    for network, name in ((named(new_network("small", ("boat", "cow"))), "resnet50"), (unbiased, "small"), (broken, "small"),
                          (named(new_network("small", ("boat", "cow"))), "smal")):
        with pytest.raises(DataError, match="To mend it"):
            save_classifier(tmp_path / "a.pt", network, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, message", [
    (lambda s: {"state": 3}, "save_classifier"), (lambda s: {"state": {k: v.to(torch.int8) for k, v in s["state"].items()}}, "quantised"),
    (lambda s: {"state": {k: v * torch.nan if v.is_floating_point() else v for k, v in s["state"].items()}}, "NaN"),
    (lambda s: {"backbone": "resnet50", "stride": 8}, "another network"), (lambda s: {"stride": 7}, "stride 7"), (lambda s: {"kind": "x"}, "save_classifier")])
def test_tampered_files_are_refused(tmp_path, change, message):
    """Each part of a file is looked at."""
    save_classifier(tmp_path / "good.pt", new_network("small", ("boat", "cow")), "small")
    saved = torch.load(tmp_path / "good.pt", weights_only=True)
    torch.save(saved | change(saved), tmp_path / "bad.pt")
    with pytest.raises(DataError, match=message) as error:
        load_classifier(tmp_path / "bad.pt")
    assert len(str(error.value).splitlines()) == 1


# ---- pretraining, kept ------------------------------------------------------------------------------------------------

def test_class_folders(tmp_path):
    """SPLIT/CLASS/ID.jpg becomes one tag each; equal file names in two classes stay two images."""
    for name, value in (("cow/1", 10), ("cow/2", 20), ("boat/1", 30)):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(tmp_path / f"train/{name}.png")
    data = class_folders(tmp_path)
    assert data.classes == ("boat", "cow") and data.ids == ("boat_1", "cow_1", "cow_2")
    assert [int(data.image(i).mean()) for i in range(3)] == [30, 10, 20]
    assert data.tags.tolist() == [[True, False], [False, True], [False, True]]
    with pytest.raises(DataError, match="does not exist"):
        class_folders(tmp_path, "val")
    (tmp_path / "empty" / "cow").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures"):
        class_folders(tmp_path, "empty")


def test_pretrained_networks_are_made_once(tmp_path, monkeypatch, train):
    """The first call trains, the second loads; colour and grey, seeds and data each have a file of their own."""
    import wsss_nb.pretraining as p
    runs, fit = [], p.train_classifier
    monkeypatch.setattr(p, "train_classifier", lambda *a, **k: (runs.append(k["grey"]), fit(*a, **k))[1])
    brief = replace(p.TOY_PRETRAINING, training=replace(p.TOY_PRETRAINING.training, epochs=1, batch_size=11))
    first, second = (toy_pretrained(folder=tmp_path, n_train=22, preset=brief) for _ in range(2))
    assert runs == [False] and torch.equal(first.weight, second.weight) and len(first.classes) == 11
    assert is_grey(toy_pretrained(True, folder=tmp_path, n_train=22, preset=brief)) and runs == [False, True]
    monkeypatch.setattr(p, "toy_pretrained", lambda grey, seed, folder: first)
    a, b = (toy_classifier(train, cache=tmp_path, preset=epochs(1)) for _ in range(2))
    assert runs == [False, True, False] and torch.equal(a.weight, b.weight) and a.classes == train.classes
    toy_classifier(train.subset(range(20)), cache=tmp_path, preset=epochs(1))
    toy_classifier(train, seed=1, cache=tmp_path, preset=epochs(1))
    assert len(runs) == 5 and len(list(tmp_path.glob("classifier_colour_*.pt"))) == 3


def test_the_cache_folder_is_an_environment_variable(monkeypatch, tmp_path):
    """WSSS_NB_CACHE wins over the system's cache folder."""
    from wsss_nb.pretraining import cache_folder
    monkeypatch.setenv("WSSS_NB_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("WSSS_NB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert cache_folder() == tmp_path / "system" / "wsss_nb"


def test_toy_voc_is_drawn_once(tmp_path):
    """The second call finds the folder; another seed is another folder."""
    first = toy_voc(2, 1, 0, tmp_path)
    stamp = (first / "image_labels.txt").stat().st_mtime_ns
    assert toy_voc(2, 1, 0, tmp_path) == first and (first / "image_labels.txt").stat().st_mtime_ns == stamp
    assert toy_voc(2, 1, 1, tmp_path) != first and len(voc_folder(first, "train")) == 2


def test_of_several_processes_one_works(tmp_path):
    """Two processes ask for one file at the same time; one makes it."""
    program = ("import sys, time; from pathlib import Path; from wsss_nb.pretraining import once\n"
               "folder = Path(sys.argv[1])\n"
               "def make(path):\n    with open(folder / 'log', 'a') as log: log.write('x')\n    time.sleep(.5); path.write_text('made')\n"
               "print(once(folder / 'thing', make).read_text())")
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in running] == ["made"] * 2
    assert (tmp_path / "log").read_text() == "x"


def test_a_failed_attempt_leaves_nothing(tmp_path):
    """When making fails there is no half file, and the next call tries again."""
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "thing", fail)
    assert once(tmp_path / "thing", lambda path: path.write_text("whole")).read_text() == "whole"


def test_keys_change_with_what_they_name(train, tmp_path):
    """A pixel, a tag or an id changes the key of the data."""
    data = pictures(tmp_path, [np.zeros((3, 3, 3), np.uint8)] * 2)
    keys = {data_key(data), data_key(replace(data, tags=~data.tags)), data_key(data.subset([1, 0])), data_key(data.subset([0]))}
    Image.fromarray(np.eye(3, dtype=np.uint8)[..., None].repeat(3, 2)).save(tmp_path / "0.png")
    assert len(keys | {data_key(data)}) == 5
    assert key_of(TOY_CLASSIFIER) != key_of(QUICK)


def test_keys_change_with_the_code(tmp_path, monkeypatch, train):
    """Another statement is another key, another comment or line break is not; toy networks are named by what draws and trains them."""
    import wsss_nb.pretraining as p
    keys = []
    for source in ("a = (1,\n 2)  # a pair\n", "# %% cell 7\na = (1, 2)", "a = (1, 3)"):
        (tmp_path / "m.py").write_text(source)
        keys.append(p.code_key(SimpleNamespace(__file__=str(tmp_path / "m.py"))))
    assert keys[0] == keys[1] != keys[2]
    assert {"loop", "schedule", "run", "classifier", "networks", "backbones", "transforms"} <= {m.__name__.split(".")[1] for m in p.TRAINING}
    names = []
    monkeypatch.setattr(p, "once", lambda path, make: names.append(path.name))
    monkeypatch.setattr(p, "load_classifier", lambda *arguments: None)
    for _ in range(2):
        toy_pretrained(folder=tmp_path), toy_classifier(train, cache=tmp_path)
        monkeypatch.setattr(p, "TRAINING", p.TRAINING[1:])
    assert len(set(names)) == 4


def test_the_code_says_what_it_needs():
    """filelock is asked for by name, and not left to others to bring."""
    assert "filelock" in (Path(__file__).parents[1] / "settings.ini").read_text()


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_what_is_no_picture_is_refused(image):
    """Grey without channels, four channels, fractions, nothing."""
    with pytest.raises(DataError, match="the picture is"):
        network_input(new_network("small", ("boat",)), image)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 32.5}, {"low": 0.}, {"low": 2., "high": 1.}, {"low": math.nan}, {"high": math.inf},
                                   {"new": -1.}, {"bias": math.nan}, {"dropout": 1.}, {"dropout": math.nan}])
def test_bad_presets_are_refused(wrong):
    """By the name of the value."""
    with pytest.raises(DataError, match=f"{list(wrong)[0]} is"):
        replace(TOY_CLASSIFIER, **wrong)


def test_losses_refuse_tags_of_other_images():
    """One row of tags would otherwise be shared by all images, without a word."""
    for loss in (multilabel_loss, single_tag_loss):
        for T in (torch.ones(1, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool), torch.ones(3, dtype=torch.bool)):
            with pytest.raises(DataError, match="do not belong together"):
                loss(torch.zeros(2, 3), T)


def test_a_colour_run_does_not_go_on_in_grey(train, tmp_path):
    """Nor at another size: nothing else would tell, since the weights have the same shapes."""
    network = new_network("small", train.classes)
    train_classifier(train, network, epochs(1), tmp_path)
    with pytest.raises(DataError, match="grey is True now and was False"):
        train_classifier(train, new_network("small", train.classes), epochs(1), tmp_path, grey=True)
    with pytest.raises(DataError, match="size is 56 now and was 48"):
        train_classifier(train, new_network("small", train.classes), replace(epochs(1), size=56), tmp_path)
