"""Lesson 41: views, the amended test, the CRF, and a folder of label maps that may be killed at any time."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import nn

from wsss_nb import inference
from wsss_nb.core import DataError, generator
from wsss_nb.files import folder_hash, read_labels, write_labels
from wsss_nb.inference import accepted_classes, amend, decide, note_predictions, predict_folder, predict_probabilities, view_sizes
from wsss_nb.tagged import TaggedImages
from wsss_nb.voc import voc_folder


class Tiny(nn.Module):
    """A segmenter of two convolutions with stride 4: what it says is arbitrary, and always the same."""

    def __init__(self, classes, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 1 + len(classes), 3, 2, 1))
        self.classes, self.n_classes, self.stride = tuple(classes), 1 + len(classes), 4
        self.mean, self.std = (.4, .5, .6), (.2, .3, .25)

    def forward(self, image):
        return 4 * self.layers(image)


@pytest.fixture(scope="module")
def data(toyvoc):
    """A few pictures with masks."""
    return voc_folder(toyvoc, "val", masks=True)


@pytest.fixture(scope="module")
def network(data):
    """The tiny segmenter for their classes."""
    return Tiny(data.classes)


def logits_by_hand(network, image):
    """The network's logits, enlarged between cell centres by scipy; no code of the lesson."""
    x = (image.astype(np.float32) / 255 - np.float32(network.mean)) / np.float32(network.std)
    with torch.no_grad():
        small = network(torch.from_numpy(x).permute(2, 0, 1)[None])[0].double().numpy()
    rows, columns = ((np.arange(n) + .5) * m / n - .5 for n, m in zip(image.shape[:2], small.shape[1:]))
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([map_coordinates(plane, grid, order=1, mode="nearest") for plane in small])


def softmax(z):
    """Over the first dimension."""
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


# ---- views -------------------------------------------------------------------------------------------------------------

def test_one_view_is_enlarge_and_softmax(network, data):
    """Against scipy, from bytes to probabilities."""
    for i in range(3):
        H = predict_probabilities(network, data.image(i))
        np.testing.assert_allclose(H.numpy(), softmax(logits_by_hand(network, data.image(i))), atol=2e-5)
        np.testing.assert_array_equal(decide(H, data.image(i), crf=False), logits_by_hand(network, data.image(i)).argmax(0))


def test_mirror_and_sums_against_loops(network, data):
    """Two views: logits added, logits averaged, probabilities averaged."""
    image = data.image(0)
    z = [logits_by_hand(network, image), logits_by_hand(network, image[:, ::-1])[..., ::-1]]
    expected = {"logits": softmax(z[0] + z[1]), "mean": softmax((z[0] + z[1]) / 2), "probabilities": (softmax(z[0]) + softmax(z[1])) / 2}
    for name, H in expected.items():
        np.testing.assert_allclose(predict_probabilities(network, image, flip=True, sum=name).numpy(), H, atol=3e-5)
    twice = predict_probabilities(network, image, scales=(1., 1.))
    np.testing.assert_allclose(twice.numpy(), softmax(2 * z[0]), atol=3e-5)


def test_scales_against_pillow(network, data):
    """A picture shown at half its size is the picture Pillow makes half as large, up to Pillow's rounding to bytes."""
    image = data.image(0)
    h, w = image.shape[:2]
    small = np.asarray(Image.fromarray(image).resize((round(w * .5), round(h * .5)), Image.BILINEAR))
    x = (small.astype(np.float32) / 255 - np.float32(network.mean)) / np.float32(network.std)
    with torch.no_grad():
        z = nn.functional.interpolate(network(torch.from_numpy(x).permute(2, 0, 1)[None]), (h, w), mode="bilinear")[0]
    np.testing.assert_allclose(predict_probabilities(network, image, (.5,)).numpy(), z.softmax(0).numpy(), atol=.05)
    assert (predict_probabilities(network, image, (.5,)) - predict_probabilities(network, image)).abs().max() > .2


def test_flip_is_equivariant(network, data):
    """With mirrored views a mirrored picture gets the mirrored answer; without, this network's does not."""
    image = data.image(1)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    both = predict_probabilities(network, image, (.75, 1.), flip=True)
    torch.testing.assert_close(predict_probabilities(network, mirrored, (.75, 1.), flip=True).flip(2), both, atol=1e-5, rtol=0)
    assert (predict_probabilities(network, mirrored).flip(2) - predict_probabilities(network, image)).abs().max() > .01


def test_sizes_of_views_by_hand():
    """Factors keep the shape, squares do not, nothing becomes smaller than a pixel."""
    assert view_sizes((100, 51), (.5, 2.)) == [(50, 26), (200, 102)]
    assert view_sizes((100, 50), (9.,), (241, 321)) == [(241, 241), (321, 321)]
    assert view_sizes((1, 3), (.1,)) == [(1, 1)]


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.,)}, {"scales": (float("nan"),)}, {"scales": (float("inf"),)}, {"sizes": (0, 321)}, {"sizes": ()}, {"sum": "logit"}])
def test_senseless_views_are_refused(network, wrong):
    """In one line."""
    with pytest.raises(DataError, match="expected .*To mend it"):
        predict_probabilities(network, np.zeros((8, 8, 3), np.uint8), **wrong)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (5, 64)])
@pytest.mark.parametrize("crf", [False, True])
def test_pictures_of_any_size(network, size, crf):
    """One pixel wide, or one pixel."""
    image = generator(0, "any size").integers(0, 256, (*size, 3)).astype(np.uint8)
    H = predict_probabilities(network, image, (.5, 1., 1.5), flip=True)
    assert H.shape == (network.n_classes, *size)
    torch.testing.assert_close(H.sum(0), torch.ones(size))
    S = decide(H, image, crf, accepted=np.ones(6, bool))
    assert S.shape == size and S.dtype == np.uint8


def test_a_network_stays_in_its_mode(network):
    """Judging is for the call alone, and leaves no gradient."""
    image = np.zeros((8, 8, 3), np.uint8)
    network.train()
    H = predict_probabilities(network, image)
    assert network.training and not H.requires_grad
    network.eval()


def test_a_large_picture_is_shown_smaller(data):
    """The network never sees more than `limit` pixels times the squared scale."""
    seen = []
    network = Tiny(data.classes)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    H = predict_probabilities(network, np.zeros((100, 400, 3), np.uint8), limit=10_000)
    assert seen == [(50, 200)] and H.shape[1:] == (100, 400)


# ---- the amended test --------------------------------------------------------------------------------------------------

def amend_by_hand(h, accepted, margin):
    """One pixel: h[0] background; plain Python floats."""
    ceiling = max([h[0]] + [p for p, a in zip(h[1:], accepted) if a])
    if ceiling == 0:
        out = [1.] + [1. if a else 0. for a in accepted]
    else:
        out = [h[0]] + [p if a else min(p, max(ceiling - margin, 0)) for p, a in zip(h[1:], accepted)]
    return [p / sum(out) for p in out]


@given(st.integers(0, 10**6), st.sampled_from([1e-4, .1, 1.]))
@settings(max_examples=60)
def test_amend_against_a_loop(seed, margin):
    """Any probabilities, ties and zeros among them; batches; an accepted class is always among the largest, in the order it was."""
    rng = generator(seed, "amend")
    H = rng.integers(0, 4, (2, 5, 3, 4)).astype(np.float64)
    H[:, 0] += H.sum(1) == 0
    H /= H.sum(1, keepdims=True)
    accepted = rng.random((2, 4)) < .4
    out = amend(torch.from_numpy(H), torch.from_numpy(accepted), margin).numpy()
    for b, y, x in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(out[b, :, y, x], amend_by_hand(list(H[b, :, y, x]), accepted[b], margin), atol=1e-12)
    allowed = np.concatenate([np.ones((2, 1), bool), accepted], 1)
    assert np.take_along_axis(allowed, out.argmax(1).reshape(2, -1), 1).all()
    np.testing.assert_allclose(out.sum(1), 1)
    assert (out >= 0).all()


def test_amend_by_hand():
    """.2 .3 .5: ceiling .3, or .2 when all are rejected; the rest is not touched but for the division."""
    H = torch.tensor([.2, .3, .5], dtype=torch.float64)[:, None, None]
    both = amend(H.expand(3, 1, 2), torch.tensor([True, False]))
    np.testing.assert_allclose(both[:, 0, 0], np.array([.2, .3, .2999]) / .7999)
    np.testing.assert_allclose(amend(H, torch.tensor([False, False])).flatten(), np.array([.2, .1999, .1999]) / .5998)
    assert amend(H, torch.tensor([True, True])).equal(H)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_amend_in_16_bits(dtype):
    """The rejected class, first of the two, stays strictly below, though 16 bits hold no number so close."""
    out = amend(torch.tensor([.25, .5, .25], dtype=dtype)[:, None, None], torch.tensor([False, True]))
    assert out.dtype == torch.float32 and out.argmax(0).item() in (0, 2)
    np.testing.assert_allclose(out.flatten(), np.array([.25, .2499, .25]) / .7499, rtol=1e-6)


def test_amend_hides_no_nan():
    """A pixel of NaN stays one, wherever the NaN stood; its neighbours are what they were."""
    H = torch.full((3, 1, 4), 1/3)
    for c in range(3):
        H[c, 0, c] = float("nan")
    out = amend(H, torch.tensor([True, False]))
    assert out[:, 0, :3].isnan().all() and out[:, 0, 3].isfinite().all()


@pytest.mark.parametrize("margin", [0., -.1, float("nan")])
def test_a_margin_that_is_none_is_refused(margin):
    """Level is not below."""
    with pytest.raises(DataError, match="the margin is"):
        amend(torch.rand(3, 4, 4).softmax(0), torch.tensor([True, False]), margin)


def test_amend_changes_nothing_it_is_given():
    """Neither probabilities nor tags."""
    H = torch.rand(3, 4, 4).softmax(0)
    before = H.clone()
    amend(H, torch.tensor([False, True]))
    assert H.equal(before)


@pytest.mark.parametrize("accepted", [torch.ones(3, dtype=torch.bool), torch.ones(2), torch.ones(1, 2, dtype=torch.bool)])
def test_accepted_of_another_shape_is_refused(accepted):
    """Background has no place in it."""
    with pytest.raises(DataError, match="without background"):
        amend(torch.rand(3, 4, 4).softmax(0), accepted)


def test_accepted_classes_by_hand():
    """Above, not at, the threshold; a silent row is possible; NaN is refused."""
    assert accepted_classes(np.array([[0., .1], [-1., -2.]])).tolist() == [[False, True], [False, False]]
    assert accepted_classes(torch.tensor([[0., -3.]]), -2.).tolist() == [[True, False]]
    assert accepted_classes(torch.tensor([[1., -1.]], dtype=torch.bfloat16, requires_grad=True)).tolist() == [[True, False]]
    assert accepted_classes(np.zeros((0, 3))).shape == (0, 3)
    for scores, threshold in (([[np.nan, 1.]], 0.), ([[np.inf, 1.]], 0.), ([1., 2.], 0.), ([[1., 2.]], float("nan"))):
        with pytest.raises(DataError, match="finite"):
            accepted_classes(np.array(scores), threshold)


# ---- deciding ----------------------------------------------------------------------------------------------------------

def test_the_crf_runs_on_what_was_amended(network, data):
    """Against pydensecrf on the amended probabilities, in its own words: amend first, then the CRF."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    image, accepted = data.image(2), np.array([True, False, False, True, False, False])
    H = predict_probabilities(network, image)
    h, w = image.shape[:2]
    field, scale = densecrf.DenseCRF2D(w, h, 7), 500 / max(h, w)
    hand = np.array([[amend_by_hand(list(H[:, y, x].double().numpy()), accepted, 1e-4) for x in range(w)] for y in range(h)])
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(hand.clip(1e-5)).transpose(2, 0, 1).reshape(7, -1).astype(np.float32)))
    field.addPairwiseGaussian(sxy=3 / scale, compat=3)
    field.addPairwiseBilateral(sxy=80 / scale, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    expected = np.array(field.inference(10)).argmax(0).reshape(h, w)
    S = decide(H, image, accepted=accepted)
    assert (S == expected).mean() > .995
    assert (decide(H, image) == expected).mean() < .98   # other picture, were it not amended


def test_a_ban_is_a_ban(network, data):
    """With margin 1 no rejected class is left, CRF or not; with the paper's margin the CRF may bring one back."""
    board = torch.from_numpy(np.indices((10, 10)).sum(0) % 2).float()
    H = torch.stack([torch.full_like(board, .02), .1 + .3 * board, .4 - .3 * board, torch.full_like(board, .48)])
    grey, accepted = np.full((10, 10, 3), 90, np.uint8), np.array([True, True, False])
    assert 3 not in decide(H, grey, False, accepted)
    assert (decide(H, grey, True, accepted) == 3).all()
    for crf in (False, True, {"classes_above": None}):
        assert 3 not in decide(H, grey, crf, accepted, margin=1.)
        image, nothing = data.image(0), np.zeros(6, bool)
        assert not decide(predict_probabilities(network, image), image, crf, nothing, margin=1.).any()


def test_crf_settings_reach_the_crf(network, data):
    """No iteration is no CRF; an unknown engine is refused."""
    image = data.image(0)
    H = predict_probabilities(network, image)
    np.testing.assert_array_equal(decide(H, image, {"iterations": 0, "classes_above": None}), decide(H, image, False))
    with pytest.raises(DataError, match="no engine"):
        decide(H, image, {"engine": "nunba"})


# ---- a folder ----------------------------------------------------------------------------------------------------------

def test_the_folder_holds_what_the_functions_say(network, data, tmp_path):
    """Every file, as one would make it alone; palette PNGs; the same for any number of threads."""
    settings = {"scales": (.75, 1.), "flip": True, "sum": "mean"}
    predict_folder(network, data, tmp_path / "a", **settings, accepted=data.tags, workers=1)
    predict_folder(network, data, tmp_path / "b", **settings, accepted=data.tags, workers=3)
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    for i in (0, 5, 11):
        H = predict_probabilities(network, data.image(i), **settings)
        path = tmp_path / "a" / f"{data.ids[i]}.png"
        np.testing.assert_array_equal(read_labels(path, 7), decide(H, data.image(i), accepted=data.tags[i]))
        assert Image.open(path).mode == "P"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted([*(f"{name}.png" for name in data.ids), "predictions.json"])


def test_what_is_whole_is_kept_and_the_rest_is_made_again(network, data, tmp_path):
    """Cut off, empty, of another size, of an unknown class, unlabelled, no picture at all; litter of a dead process."""
    ruin = {0: lambda p: p.write_bytes(p.read_bytes()[:-30]), 1: lambda p: p.write_bytes(b""), 2: lambda p: write_labels(p, np.zeros((4, 5), np.uint8)),
            3: lambda p: write_labels(p, np.full_like(read_labels(p), 7)), 4: lambda p: write_labels(p, np.full_like(read_labels(p), 255)), 5: lambda p: p.write_text("hello"), 6: lambda p: p.unlink()}
    predict_folder(network, data, tmp_path, crf=False)
    files, before = [tmp_path / f"{name}.png" for name in data.ids], folder_hash(tmp_path)
    for i, spoil in ruin.items():
        spoil(files[i])
    (tmp_path / f".{data.ids[0]}.png.99999999.part.png").write_bytes(b"half")
    kept = {path: os.stat(path).st_mtime_ns for path in files[7:]}
    predict_folder(network, data, tmp_path, crf=False)
    assert folder_hash(tmp_path) == before
    assert all(os.stat(path).st_mtime_ns == then for path, then in kept.items())


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[3])
from test_inference import Tiny
from wsss_nb.inference import predict_folder
from wsss_nb.voc import voc_folder
torch.set_num_threads(1)
data = voc_folder(sys.argv[1], "train").subset(range(16))
predict_folder(Tiny(data.classes), data, sys.argv[2], (.75, 1.), flip=True, workers=2)
"""


def test_killed_half_way_and_called_again_gives_the_same_bytes(toyvoc, tmp_path):
    """SIGKILL once a few label maps are there."""
    command = [sys.executable, "-c", SCRIPT, str(toyvoc)]
    here = os.path.dirname(__file__)
    process = subprocess.Popen([*command, str(tmp_path / "killed"), here], stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list((tmp_path / "killed").glob("train*.png"))) < 4 and time.time() < deadline and process.poll() is None:
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "killed").glob("train*.png")}
    assert 4 <= len(done) < 16
    data = voc_folder(toyvoc, "train").subset(range(16))
    for folder in ("killed", "whole"):
        predict_folder(Tiny(data.classes), data, tmp_path / folder, (.75, 1.), flip=True)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)
    assert all(os.stat(path).st_mtime_ns == then for path, then in done.items())


@pytest.mark.parametrize("change, word", [({"flip": True}, "flip"), ({"scales": (1., .5)}, "scales"), ({"crf": False}, "crf"), ({"crf": {"iterations": 5}}, "crf"),
                                          ({"sizes": (64,)}, "sizes"), ({"sum": "mean"}, "sum"), ({"accepted": True}, "amended"), ({"limit": 5000}, "limit")])
def test_other_settings_are_refused(network, data, tmp_path, change, word):
    """By name; one folder holds one kind of label maps."""
    one = data.subset([0])
    predict_folder(network, one, tmp_path)
    before = folder_hash(tmp_path)
    with pytest.raises(DataError, match=f"other {word} .*To mend it"):
        predict_folder(network, one, tmp_path, **({"accepted": one.tags} if "accepted" in change else change))
    assert folder_hash(tmp_path) == before


def test_another_network_or_folder_is_refused(network, data, tmp_path):
    """Other weights; label maps of unknown making; a note that is no note."""
    one = data.subset([0])
    predict_folder(network, one, tmp_path / "a")
    with pytest.raises(DataError, match="other network"):
        predict_folder(Tiny(data.classes, seed=1), one, tmp_path / "a")
    write_labels(tmp_path / "b" / f"{data.ids[0]}.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="no predictions.json"):
        predict_folder(network, one, tmp_path / "b")
    (tmp_path / "a" / "predictions.json").write_text("[1")
    with pytest.raises(DataError, match="made with other"):
        predict_folder(network, one, tmp_path / "a")


def test_a_lost_setting_is_noticed(tmp_path):
    """Also one that only the older note has."""
    note_predictions(tmp_path, {"a": 1, "b": (1, 2)})
    write_labels(tmp_path / "x.png", np.zeros((2, 2), np.uint8))
    note_predictions(tmp_path, {"a": 1, "b": [1, 2]})
    with pytest.raises(DataError, match="other b "):
        note_predictions(tmp_path, {"a": 1})


@pytest.mark.parametrize("mistake", [{"scales": ()}, {"scales": 1.}, {"sizes": (.4,)}, {"sum": "logit"}, {"crf": {"engine": "nunba"}}, {"crf": None}])
def test_a_call_that_made_nothing_binds_nobody(network, data, tmp_path, mistake):
    """A mistake is refused in one line, and the corrected call may use the same folder."""
    one = data.subset([0])
    with pytest.raises(DataError, match="expected .*To mend it"):
        predict_folder(network, one, tmp_path, **mistake)
    predict_folder(network, one, tmp_path, crf=False)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_settings_of_any_kind_are_one(network, data, tmp_path):
    """Numbers of numpy, lists and tuples, whole numbers; accepted classes as a list or a tensor."""
    one = data.subset([0])
    predict_folder(network, one, tmp_path / "scales", np.array([1.]), crf=False, accepted=one.tags)
    before = os.stat(tmp_path / "scales" / f"{data.ids[0]}.png").st_mtime_ns
    for scales, accepted in (([1], one.tags.tolist()), ((1.,), torch.from_numpy(one.tags))):
        predict_folder(network, one, tmp_path / "scales", scales, crf=False, accepted=accepted)
    assert os.stat(tmp_path / "scales" / f"{data.ids[0]}.png").st_mtime_ns == before
    predict_folder(network, one, tmp_path / "sizes", sizes=np.array([16, 24]), crf=False)
    predict_folder(network, one, tmp_path / "sizes", sizes=(16, 24), crf=False)


def test_the_upper_bound_is_labelled(network, data, tmp_path):
    """The true tags leave a note that nobody can overlook; other classes don't."""
    two = data.subset([0, 1])
    predict_folder(network, two, tmp_path / "true", crf=False, accepted=two.tags.copy())
    predict_folder(network, two, tmp_path / "other", crf=False, accepted=~two.tags)
    predict_folder(network, two, tmp_path / "no", crf=False)
    said = {name: json.loads((tmp_path / name / "predictions.json").read_text())["amended"] for name in ("true", "other", "no")}
    assert "upper bound" in said["true"] and "upper bound" not in said["other"] and said["no"] == "no"


def test_bad_input_is_refused(network, data, tmp_path):
    """No pictures, other classes, classes in another order, accepted of another shape."""
    with pytest.raises(DataError, match="no images"):
        predict_folder(network, data.subset([]), tmp_path)
    with pytest.raises(DataError, match="tells 4 classes apart"):
        predict_folder(Tiny(data.classes[:3]), data, tmp_path)
    with pytest.raises(DataError, match="tells 7 classes apart, background and sheep"):
        predict_folder(Tiny(data.classes[::-1]), data, tmp_path)
    for accepted in (data.tags[:2], data.tags.astype(int)):
        with pytest.raises(DataError, match="accepted is"):
            predict_folder(network, data, tmp_path, accepted=accepted)
    assert not list(tmp_path.iterdir())


def test_a_network_that_diverged_is_refused(data, tmp_path):
    """By the name of the picture."""
    network = Tiny(data.classes)
    with torch.no_grad():
        network.layers[2].bias[2] = float("nan")
    with pytest.raises(DataError, match=f"{data.ids[0]} holds NaN"):
        predict_folder(network, data, tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_a_corrupt_picture_is_named(network, data, tmp_path):
    """And what was made before stays."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(data.image_file(data.ids[1]).read_bytes()[:500])
    bad = TaggedImages(data.classes, data.ids, data.tags, lambda name: broken if name == data.ids[1] else data.image_file(name))
    with pytest.raises(DataError, match="broken.jpg cannot be read"):
        predict_folder(network, bad, tmp_path / "out", crf=False)


def test_a_large_picture_gets_a_label_map_of_its_size(network, tmp_path):
    """Predicted small, enlarged by the nearest label."""
    image = generator(0, "large").integers(0, 256, (120, 90, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    data = TaggedImages(network.classes, ("x",), np.ones((1, 6), bool), lambda name: tmp_path / "x.png")
    predict_folder(network, data, tmp_path / "out", limit=120 * 90 // 4)
    S = read_labels(tmp_path / "out" / "x.png", 7, (120, 90))
    assert (S == S[::2, ::2].repeat(2, 0).repeat(2, 1)).all()
    small = inference._smaller(image, 120 * 90 // 4)
    assert small.shape == (60, 45, 3)
    np.testing.assert_array_equal(S[::2, ::2], decide(predict_probabilities(network, small), small))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_says_the_same(network, data, tmp_path):
    """Probabilities to 1e-3, and label maps of the CRF that runs on the CPU beside it."""
    image = data.image(0)
    H = predict_probabilities(Tiny(data.classes).cuda(), image, (.75, 1.), flip=True)
    assert H.is_cuda
    torch.testing.assert_close(H.cpu(), predict_probabilities(network, image, (.75, 1.), flip=True), atol=1e-3, rtol=0)
    torch.testing.assert_close(amend(H, torch.from_numpy(data.tags[0]).cuda()).cpu(), amend(H.cpu(), torch.from_numpy(data.tags[0])))
    predict_folder(Tiny(data.classes).cuda(), data, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == len(data)
