"""Attention of instances, features with centres, and features of instances: naive loops, hand-worked numbers, bad input."""
from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.attention import attention_map, boxes_within, instance_attention, mask_attention, score_maps
from wsss_nb.centres import (
    FEATURE_PRESETS,
    FeatureNetwork,
    centre_loss,
    cosine_distance,
    feature_network,
    load_features,
    move_centres,
    random_side,
    save_features,
    train_features,
)
from wsss_nb.core import DataError
from wsss_nb.instance_features import features_of, instance_crops, instance_features
from wsss_nb.networks import small
from wsss_nb.pretraining import class_folders, new_network
from wsss_nb.schedule import Training
from wsss_nb.tagged import Instances, Sample, mask_boxes
from wsss_nb.voc import voc_folder

TINY = replace(FEATURE_PRESETS["salient/features-toy"], training=Training(epochs=2, batch_size=4, learning_rate=.01, warm_up=0), size=24, low=20, high=30)


def picture(h, w, seed=0):
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def classifier():
    """The small network with weights that do something everywhere, and statistics that are not the first ones."""
    made = new_network("small", tuple("abc"), seed=2)
    with torch.no_grad():
        made.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        made.linear.bias.normal_(generator=torch.Generator().manual_seed(1))
    made.train()(torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(1)))
    return made.eval()


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Twelve pictures of three classes, each of one colour and some noise."""
    folder = tmp_path_factory.mktemp("things")
    for c, name in enumerate(("apple", "pear", "plum")):
        (folder / "train" / name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray((picture(28, 32 + c, 10 * c + k) // 4 + 60 * c).astype(np.uint8)).save(folder / "train" / name / f"{k}.png")
    return class_folders(folder)


# ---- attention ----------------------------------------------------------------------------------------------------------

def test_score_maps_average_to_the_logits(classifier):
    """Eq. 1: the mean and the linear layer change places, bias included; the map is its sigmoid."""
    image = picture(37, 50)
    x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - .45) / .25
    with torch.no_grad():
        logits = classifier(x)[0]
    scores = score_maps(classifier, image)
    torch.testing.assert_close(scores.mean((1, 2)), logits, atol=1e-4, rtol=1e-4)
    A = attention_map(classifier, image, full=False)
    np.testing.assert_allclose(A, 1 / (1 + np.exp(-scores.numpy())), atol=1e-6)
    assert attention_map(classifier, image).shape == (3, 37, 50) and A.shape == scores.shape


def test_attention_leaves_the_network_in_its_mode(classifier):
    """A network in training mode is judged in evaluation mode, and is in training mode after."""
    before = attention_map(classifier, picture(20, 20))
    classifier.train()
    assert torch.equal(attention_map(classifier, picture(20, 20)), before) and classifier.training
    classifier.eval()


def test_a_large_picture_is_seen_smaller(classifier):
    """`limit` bounds what the network sees; the map has the picture's size all the same."""
    assert score_maps(classifier, picture(40, 60), limit=600).shape == (3, 5, 8) and attention_map(classifier, picture(40, 60), limit=600).shape == (3, 40, 60)


def test_attention_by_hand():
    """Two maps of 2×3 and three boxes, the last one half a pixel wide and reaching out of the picture."""
    A = torch.tensor([[[1., 2, 3], [4, 5, 6]], [[0., 0, 1], [0, 0, 1]]])
    boxes = np.array([[0, 0, 2, 2], [2, 1, 3, 2], [1.5, -1, 2.5, 1]])
    expected = torch.tensor([[3., 0], [6, 1], [2.5, .5]])        # (1+2+4+5)/4; the corner; halves of 2 and 3 in the first row
    torch.testing.assert_close(instance_attention(A, boxes), expected)


def naive_attention(A, boxes, size):
    """Eq. 2, pixel by pixel: each counts by the share of it that lies in the box."""
    C, h, w = A.shape
    out = np.zeros((len(boxes), C))
    for n, (left, top, right, bottom) in enumerate(boxes):
        left, right, top, bottom = left * w / size[1], right * w / size[1], top * h / size[0], bottom * h / size[0]
        weight = np.zeros((h, w))
        for y, x in np.ndindex(h, w):
            weight[y, x] = max(0., min(bottom, y + 1) - max(top, y)) * max(0., min(right, x + 1) - max(left, x))
        for c in range(C):
            out[n, c] = (weight * A[c].numpy().astype(float)).sum() / weight.sum()
    return out


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 9), st.booleans(), st.booleans())
def test_attention_equals_the_naive_loop(seed, h, w, whole, coarse):
    """Any boxes with a part in the picture; whole pixels or not; a map of the picture's size or coarser."""
    rng = np.random.default_rng(seed)
    size = (3 * h + 1, 2 * w + 5) if coarse else (h, w)
    A = torch.from_numpy(rng.random((3, h, w), np.float32))
    start = rng.uniform(0, .9, (4, 2)) * (size[1], size[0]) - .3 * rng.random((4, 2))
    boxes = np.concatenate([start, start + rng.uniform(.5, 5, (4, 2))], 1)
    if whole:
        boxes = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1)
    expected = naive_attention(A, boxes, size)
    np.testing.assert_allclose(instance_attention(A, boxes, size), expected, atol=1e-5)
    assert instance_attention(A, torch.from_numpy(boxes), size).dtype == torch.float32


def test_attention_of_a_large_map_is_exact():
    """A late pixel of a large map comes out as it is, and so does the mean of all; sums of an integral image in float32 would lose digits."""
    A = torch.rand(1, 900, 900, generator=torch.Generator().manual_seed(0))
    boxes = np.array([[898, 899, 899, 900], [0, 0, 900, 900]])
    np.testing.assert_allclose(instance_attention(A, boxes)[:, 0], [float(A[0, 899, 898]), float(A.double().mean())], atol=2e-7)


def test_a_mean_over_masks():
    """The mask instead of the box; a full mask is the box of the whole picture."""
    A = torch.tensor([[[1., 2, 3], [4, 5, 6]]])
    masks = np.zeros((2, 2, 3), bool)
    masks[0, 0, 0] = masks[0, 1, 2] = True
    masks[1] = True
    torch.testing.assert_close(mask_attention(A, masks), torch.tensor([[3.5], [3.5]]))
    assert mask_attention(A, np.zeros((0, 2, 3), bool)).shape == (0, 1)


def test_no_instance_is_no_row():
    """n = 0."""
    assert instance_attention(torch.rand(3, 4, 5), np.zeros((0, 4))).shape == (0, 3)


@pytest.mark.parametrize("box", [(2, 2, 2, 4), (0, 0, 0, 0), (3, 3, 1, 4), (9, 0, 12, 3), (-5, 0, 0, 3), (math.nan, 0, 2, 2), (0, 0, math.inf, 2)])
def test_boxes_without_a_part_in_the_picture(box):
    """Empty, turned round, outside, or not finite: refused by number."""
    with pytest.raises(DataError, match="box 1 is"):
        instance_attention(torch.rand(2, 6, 8), np.array([(0, 0, 1, 1), box], float))


def test_other_shapes_are_refused():
    """Boxes of another shape, maps of a batch, whole numbers, masks of another picture or without pixels."""
    A = torch.rand(2, 6, 8)
    for wrong in (lambda: instance_attention(A, np.zeros(4)), lambda: instance_attention(A[None], np.zeros((0, 4))),
                  lambda: instance_attention(A.long(), np.zeros((0, 4))), lambda: mask_attention(A, np.ones((1, 8, 6), bool)),
                  lambda: mask_attention(A, np.ones((1, 6, 8))), lambda: mask_attention(A, np.zeros((1, 6, 8), bool)),
                  lambda: boxes_within(np.zeros((2, 5)), (4, 4))):
        with pytest.raises(DataError):
            wrong()


def test_pictures_of_another_type_are_refused(classifier):
    """Numbers in 0…1, channels first, grey."""
    for wrong in (np.zeros((8, 8, 3)), picture(8, 8).transpose(2, 0, 1), picture(8, 8)[..., 0]):
        with pytest.raises(DataError, match=r"uint8 \(h,w,3\)"):
            attention_map(classifier, wrong)
        with pytest.raises(DataError, match=r"uint8 \(h,w,3\)"):
            instance_features(classifier, wrong, np.array([[0., 0, 2, 2]]), 8)


# ---- centres ------------------------------------------------------------------------------------------------------------

def test_centre_loss_by_hand():
    """Angles of 0, 90 and 180 degrees, and a feature that is zero."""
    centres = torch.tensor([[2., 0], [0, 3]])
    features = torch.tensor([[5., 0], [1, 0], [0, -1], [0, 0]])
    labels = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(cosine_distance(features, centres[labels]), torch.tensor([0., 1, 2, 1]))
    assert float(centre_loss(features, labels, centres)) == 1.


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 5), st.integers(1, 4))
def test_centre_loss_equals_a_loop_and_its_gradient_finite_differences(seed, B, D, K):
    """In float64."""
    g = torch.Generator().manual_seed(seed)
    features, centres = torch.randn(B, D, generator=g, dtype=torch.float64) + .1, torch.randn(K, D, generator=g, dtype=torch.float64)
    labels = torch.randint(K, (B,), generator=g)
    def loop(rows):
        total = 0.
        for f, y in zip(rows, labels.tolist()):
            c = centres[y].tolist()
            total += 1 - sum(a * b for a, b in zip(f, c)) / math.sqrt(sum(a * a for a in f)) / math.sqrt(sum(b * b for b in c))
        return total / B
    leaf = features.clone().requires_grad_()
    loss = centre_loss(leaf, labels, centres)
    assert abs(float(loss.detach()) - loop(features.tolist())) < 1e-12
    loss.backward()
    for b, d in np.ndindex(B, D):
        up, down = features.clone(), features.clone()
        up[b, d] += 1e-6
        down[b, d] -= 1e-6
        assert abs((loop(up.tolist()) - loop(down.tolist())) / 2e-6 - float(leaf.grad[b, d])) < 1e-5


def test_zero_has_no_gradient():
    """A dead feature, and a centre nobody moved yet: distance 1, gradient 0, no NaN."""
    features = torch.tensor([[0., 0], [1, 2]], requires_grad=True)
    loss = centre_loss(features, torch.tensor([0, 1]), torch.tensor([[1., 1], [0, 0]]))
    loss.backward()
    assert float(loss.detach()) == 1. and torch.equal(features.grad, torch.zeros(2, 2))


def test_centres_get_no_gradient():
    """They move by eq. 4 alone."""
    centres, features = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    centre_loss(features, torch.tensor([0, 1, 0, 1]), centres).backward()
    assert centres.grad is None and features.grad is not None
    assert not move_centres(centres, features, torch.tensor([0, 1, 0, 1])).requires_grad


def test_centres_move_by_hand():
    """Two members, one and none: (c − f) summed, divided by one more than their number, times alpha."""
    centres = torch.tensor([[0., 0], [2, 2], [7, 7]])
    features, labels = torch.tensor([[3., 0], [0, 6], [4, 0]]), torch.tensor([0, 0, 1])
    # class 0: delta = ((0−3)+(0−0), (0−0)+(0−6)) / 3 = (−1, −2); class 1: (2−4, 2−0)/2 = (−1, 1); class 2: nothing
    torch.testing.assert_close(move_centres(centres, features, labels, alpha=.5), torch.tensor([[.5, 1], [2.5, 1.5], [7, 7]]))
    assert torch.equal(move_centres(centres, features, labels, alpha=0.), centres)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4), st.integers(1, 5), st.floats(0, 1))
def test_moving_equals_a_loop(seed, B, D, K, alpha):
    """Class by class, in Python."""
    g = torch.Generator().manual_seed(seed)
    features, centres = torch.randn(B, D, generator=g, dtype=torch.float64), torch.randn(K, D, generator=g, dtype=torch.float64)
    labels, before = torch.randint(K, (B,), generator=g), centres.clone()
    expected = centres.clone()
    for j in range(K):
        members = [b for b in range(B) if int(labels[b]) == j]
        expected[j] -= alpha * sum((centres[j] - features[b] for b in members), torch.zeros(D, dtype=torch.float64)) / (1 + len(members))
    torch.testing.assert_close(move_centres(centres, features, labels, alpha), expected)
    assert torch.equal(centres, before)


def test_wrong_labels_features_and_steps():
    """Out of range, of another type, of another length; alpha beyond 1."""
    f, c = torch.rand(2, 3), torch.rand(4, 3)
    for labels in (torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0., 1]), torch.tensor([0])):
        for call in (centre_loss, lambda a, b, d: move_centres(d, a, b)):
            with pytest.raises(DataError):
                call(f, labels, c)
    with pytest.raises(DataError, match="alpha"):
        move_centres(c, f, torch.tensor([0, 1]), 1.5)
    with pytest.raises(DataError, match="belong together"):
        centre_loss(f, torch.tensor([0, 1]), torch.rand(4, 2))


def test_several_processes_move_centres_by_the_whole_batch(monkeypatch):
    """Each has half of the batch; the sums and numbers of both are added up, as all_reduce does (here by hand)."""
    import wsss_nb.centres as module
    g = torch.Generator().manual_seed(0)
    centres, features, labels = torch.randn(3, 4, generator=g), torch.randn(6, 4, generator=g), torch.tensor([0, 0, 1, 0, 2, 2])
    expected, mine, other = move_centres(centres, features, labels), slice(0, 4), slice(4, 6)
    theirs = [torch.zeros(3, 4).index_add_(0, labels[other], features[other]), torch.tensor([[0.], [0], [2]])]
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "all_reduce", lambda value: value.add_(theirs.pop(0)))
    torch.testing.assert_close(move_centres(centres, features[mine], labels[mine]), expected)


# ---- training -----------------------------------------------------------------------------------------------------------

def trained(things, preset=TINY, folder=None, **options):
    """A small network after a few updates."""
    network = feature_network(preset, things.classes, seed=1)
    return network, train_features(things, network, preset, folder, seed=3, device="cpu", **options)


def test_resume_equals_uninterrupted(things, tmp_path):
    """Weights, centres and the log are the same, to the last bit, whether or not somebody stopped in between."""
    whole, history = trained(things)
    trained(things, folder=tmp_path, stop_after=4)
    again, resumed = trained(things, folder=tmp_path)
    assert whole.centres.abs().sum() > 0 and len(history) == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [row["loss"] for row in history] == [row["loss"] for row in resumed]


def test_another_preset_does_not_resume(things, tmp_path):
    """λ and α belong to the run."""
    trained(things, folder=tmp_path, stop_after=4)
    with pytest.raises(DataError, match="alpha is 0.25 now and was 0.5"):
        trained(things, replace(TINY, alpha=.25), tmp_path)


@pytest.mark.parametrize("alpha", [.5, .25])
def test_one_step_is_equations_3_and_4(things, alpha):
    """The first update: centres at 0, so distance 1 for everybody; then they stand at α·Σf/(1+n) of that batch."""
    seen = {}
    network = feature_network(TINY, things.classes, seed=1)
    embed = network.embed
    network.embed = lambda image: seen.setdefault("features", embed(image))
    history = train_features(things, network, replace(TINY, alpha=alpha, training=replace(TINY.training, iterations=1, batch_size=12)), seed=3, device="cpu")
    assert history[0]["centre"] == pytest.approx(1e-3)
    assert history[0]["loss"] == pytest.approx(history[0]["cross_entropy"] + 1e-3)
    sums = network.centres * (1 + 4) / alpha                            # every class has four pictures in the one batch
    torch.testing.assert_close(sums.sum(0), seen["features"].detach().sum(0), rtol=1e-4, atol=1e-4)


def test_the_centre_loss_gathers(things):
    """A large λ brings features nearer to their centres than a small one; without it centres stay nowhere."""
    long = replace(TINY, training=replace(TINY.training, epochs=8, learning_rate=.003))
    ends = {weight: trained(things, replace(long, centre=weight)) for weight in (10., 1e-6, 0.)}
    distance = {weight: history[-1]["centre"] / weight for weight, (_, history) in ends.items() if weight}
    assert 0 < distance[10.] < .7 * distance[1e-6]
    assert ends[1e-6][0].centres.any() and not ends[0.][0].centres.any() and "centre" not in ends[0.][1][-1]


def test_what_cannot_be_trained(things):
    """Other classes, several tags; a preset that is none."""
    network = feature_network(TINY, ("a", "b", "c"))
    with pytest.raises(DataError, match="classes of the data set"):
        train_features(things, network, TINY)
    two = replace(things, tags=np.ones((12, 3), bool))
    with pytest.raises(DataError, match="3 tags; expected one"):
        train_features(two, feature_network(TINY, things.classes), TINY)
    for wrong in ({"size": 0}, {"size": 24.}, {"low": 31}, {"centre": -1.}, {"centre": math.nan}, {"alpha": 2.}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            replace(TINY, **wrong)


def test_the_shorter_side_is_drawn():
    """Between low and high, both reached; the shape stays."""
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(60):
        h, w = random_side(Sample(torch.rand(3, 30, 60)), rng, 10, 13).image.shape[1:]
        sizes.add(h)
        assert w == 2 * h
    assert sizes == {10, 11, 12, 13}


def test_presets_are_the_papers():
    """λ, α, crop and width; the network they ask for has a 1×1 head and a buffer of centres."""
    preset = FEATURE_PRESETS["salient/features-imagenet"]
    assert (preset.centre, preset.alpha, preset.size, preset.backbone) == (1e-3, .5, 224, "resnet50")
    with torch.device("meta"):
        network = feature_network(preset, tuple(map(str, range(1000))))
        assert network.weight.shape == (1000, 2048) and network.centres.shape == (1000, 2048) and network.stride == 32
        assert network.embed(torch.zeros(2, 3, 224, 224)).shape == (2, 2048)


# ---- files --------------------------------------------------------------------------------------------------------------

def test_saved_and_loaded(things, tmp_path):
    """The same answers, centres included; read without running code."""
    network, _ = trained(things)
    save_features(tmp_path / "f.pt", network)
    again, image = load_features(tmp_path / "f.pt"), torch.rand(2, 3, 24, 24)
    assert torch.equal(again.embed(image), network.eval().embed(image)) and torch.equal(again.centres, network.centres)
    assert again.classes == things.classes and not again.training
    assert torch.load(tmp_path / "f.pt", weights_only=True)["backbone"] == "small"


def test_other_files_are_refused(things, tmp_path):
    """No file, another kind of file, half a file, a network that lacks its centres."""
    network = feature_network(TINY, things.classes)
    save_features(tmp_path / "whole.pt", network)
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    del stored["state"]["centres"]
    torch.save(stored, tmp_path / "poor.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:999])
    for name in ("lost", "other", "list", "half", "poor"):
        with pytest.raises(DataError, match=name):
            load_features(tmp_path / f"{name}.pt")


# ---- features of instances ----------------------------------------------------------------------------------------------

def test_a_crop_is_the_box_and_nothing_else(classifier):
    """A box of one colour gives a crop of that colour, whatever lies around it; a box half a pixel wide shows its pixel."""
    image = np.zeros((20, 30, 3), np.uint8)
    image[4:9, 10:22] = (255, 128, 0)
    crops = instance_crops(classifier, image, np.array([[10, 4, 22, 9], [10.2, 4.1, 10.6, 4.3]]), 16)
    colour = (torch.tensor([255, 128, 0]) / 255 - .45) / .25
    torch.testing.assert_close(crops, colour[None, :, None, None].expand(2, 3, 16, 16))


def test_a_masked_crop_is_mean_outside(classifier):
    """Left half masked out: 0 there, which is the mean colour; the image itself is not changed."""
    image = np.full((8, 8, 3), 255, np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :, 4:] = True
    crop = instance_crops(classifier, image, np.array([[0., 0, 8, 8]]), 8, mask)[0]
    assert not crop[:, :, :4].any() and torch.allclose(crop[:, :, 4:], torch.tensor(.55 / .25))
    assert image.min() == 255


def test_features_equal_one_by_one(classifier):
    """Each box cut out, resized, looked at and brought to length 1 alone; the last box but one reaches out of the picture."""
    image, boxes = picture(33, 47), np.array([[0, 0, 12, 9], [5, 5, 47, 33], [40, 30, 60, 50], [3, 2, 4, 3]], float)
    together = instance_features(classifier, image, boxes, 16, batch=3)
    x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - .45) / .25
    for row, (left, top, right, bottom) in zip(together, boxes.astype(int)):
        crop = torch.nn.functional.interpolate(x[..., top:bottom, left:right], (16, 16), mode="bilinear", antialias=True)
        with torch.no_grad():
            f = classifier.trunk(crop).mean((0, 2, 3))
        torch.testing.assert_close(row, f / f.norm(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_no_box_no_feature(classifier):
    """n = 0, with and without masks."""
    none = np.zeros((0, 4))
    assert instance_features(classifier, picture(9, 9), none, 8).shape == (0, 64)
    assert instance_features(classifier, picture(9, 9), none, 8, np.zeros((0, 9, 9), bool)).shape == (0, 64)


def test_zero_features_stay_zero(classifier):
    """A network that sees nothing: no NaN."""
    blind = FeatureNetwork(small(), ("a", "b"), "small").eval()
    with torch.no_grad():
        blind.trunk.block5.norm.weight.zero_()
    assert torch.equal(instance_features(blind, picture(9, 9), np.array([[0., 0, 5, 5]]), 8), torch.zeros(1, 64))


def test_features_that_are_not_finite_are_refused(classifier):
    """A network that diverged."""
    lost = FeatureNetwork(small(), ("a", "b"), "small").eval()
    with torch.no_grad():
        lost.trunk.block5.norm.bias.fill_(math.nan)
    with pytest.raises(DataError, match="NaN or infinity"):
        instance_features(lost, picture(9, 9), np.array([[0., 0, 5, 5]]), 8)


def test_boxes_masks_and_sizes_that_do_not_fit(classifier):
    """Outside, empty, masks of another number or size, crops of no size."""
    image, box = picture(9, 12), np.array([[0., 0, 5, 5]])
    for wrong in (dict(boxes=np.array([[20., 0, 30, 5]])), dict(boxes=mask_boxes(np.zeros((1, 9, 12), bool))), dict(masks=np.ones((2, 9, 12), bool)),
                  dict(masks=np.ones((1, 12, 9), bool)), dict(size=0), dict(size=22.5)):
        with pytest.raises(DataError):
            instance_features(classifier, image, **({"boxes": box, "size": 8} | wrong))


def test_training_mode_is_judged(classifier):
    """The same features from a network left in training mode, and it is in training mode after."""
    image, box = picture(20, 20), np.array([[1., 2, 15, 15]])
    before = instance_features(classifier, image, box, 16)
    classifier.train()
    assert torch.equal(instance_features(classifier, image, box, 16), before) and classifier.training
    classifier.eval()


@pytest.mark.parametrize("masked", [False, True])
def test_a_data_set_is_its_pictures(classifier, toyvoc, masked):
    """Batches that reach over pictures change nothing; order is pictures, then instances."""
    data = voc_folder(toyvoc, "train", instances=True).subset(range(7))
    rows = []
    for i in range(7):
        found = data.instances(i)
        rows.append(instance_features(classifier, data.image(i), found.boxes, 24, found.masks if masked else None))
    torch.testing.assert_close(features_of(classifier, data, data.read_instances, 24, masked, batch=4), torch.cat(rows), atol=1e-5, rtol=1e-4)
    assert features_of(classifier, data.subset([]), data.read_instances, 24).shape == (0, 64)
    bare = Instances(np.zeros((0, 9, 9), bool), np.zeros((0, 4)), np.zeros(0, int))
    def find(name):
        return bare if name == data.ids[0] else data.read_instances(name)
    if not masked:                                    # a picture without instances has no rows
        torch.testing.assert_close(features_of(classifier, data, find, 24, batch=4), torch.cat(rows[1:]), atol=1e-5, rtol=1e-4)


def test_the_toy_network_is_trained_once(things, tmp_path, monkeypatch):
    """The second call loads what the first one wrote; another preset is another file."""
    import wsss_nb.instance_features as module
    calls, classes = [], things.classes
    monkeypatch.setattr(module, "toy_things", lambda **_: calls.append("drawn"))
    monkeypatch.setattr(module, "class_folders", lambda _: things)
    monkeypatch.setattr(module, "toy_pretrained", lambda **_: new_network("small", classes, 5))
    quick = replace(TINY, training=replace(TINY.training, iterations=2))
    first, second = (module.toy_features(folder=tmp_path, preset=quick) for _ in range(2))
    assert calls == ["drawn"] and torch.equal(first.centres, second.centres) and first.centres.any() and not first.training
    module.toy_features(folder=tmp_path, preset=replace(quick, alpha=.25))
    assert len(calls) == 2 and len(list(tmp_path.glob("features_*.pt"))) == 2


# ---- the command --------------------------------------------------------------------------------------------------------

def command(*arguments):
    """Run data_scripts/train_features.py in this process."""
    path = Path(__file__).parents[1] / "data_scripts/train_features.py"
    spec = importlib.util.spec_from_file_location("train_features_command", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(a) for a in arguments])


def test_the_command_writes_a_file_and_goes_on(things, tmp_path, capsys):
    """Any folder of class folders; a finished run is not run again; the file is whole and holds no code."""
    images = things.image_file(things.ids[0]).parents[2]
    call = ("--images", images, "--out", tmp_path / "f.pt", "--preset", "salient/features-toy", "--epochs", 1, "--batch-size", 4, "--device", "cpu")
    command(*call)
    log, first = (tmp_path / "f.pt.run/log.jsonl").read_text(), load_features(tmp_path / "f.pt")
    command(*call)
    assert (tmp_path / "f.pt.run/log.jsonl").read_text() == log and "3 classes" in capsys.readouterr().out
    assert first.classes == things.classes and torch.equal(first.centres, load_features(tmp_path / "f.pt").centres)
    with pytest.raises(DataError, match="does not exist"):
        command("--images", tmp_path / "nowhere", "--out", tmp_path / "g.pt")
