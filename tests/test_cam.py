"""Class activation maps: the naive dot product, scales, flips, merging, odd pictures."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.cam import SCALES, activation_maps, by_maximum, class_activation, class_scores, maps_of, merge_scales
from wsss_nb.core import DataError
from wsss_nb.pretraining import new_network
from wsss_nb.tagged import TaggedImages
from wsss_nb.voc import voc_folder


def naive(features, weight, T):
    """WST eq. 2–3, pixel by pixel, in Python's own numbers."""
    B, D, h, w = features.shape
    M = np.zeros((B, len(weight), h, w))
    for b, c, y, x in np.ndindex(*M.shape):
        M[b, c, y, x] = max(0., sum(float(weight[c, d]) * float(features[b, d, y, x]) for d in range(D))) if T[b, c] else 0.
    for b, c in np.ndindex(*M.shape[:2]):
        if M[b, c].max() > 0:
            M[b, c] /= M[b, c].max()
    return M


@pytest.fixture(scope="module")
def network():
    """The small network with random weights that do something everywhere, and statistics that are not the first ones."""
    made = new_network("small", tuple("abcdef"), seed=2)
    with torch.no_grad():
        made.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    made.train()(torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(1)))
    return made.eval()


def picture(h, w, seed=0):
    """A normalised image."""
    return torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(seed))


ALL = torch.ones(1, 6, dtype=torch.bool)


# ---- one map ------------------------------------------------------------------------------------------------------------

@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_equals_the_naive_dot_product(seed, B, C, D, h, w):
    """Any shape."""
    g = torch.Generator().manual_seed(seed)
    features, weight, T = torch.randn(B, D, h, w, generator=g), torch.randn(C, D, generator=g), torch.rand(B, C, generator=g) < .6
    np.testing.assert_allclose(class_activation(features, weight, T), naive(features, weight, T), atol=1e-5)


def test_four_by_four_by_hand():
    """Two features, three classes; the third is seen only where its features are negative, the second is not tagged."""
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, 1, 1], features[0, 0, 1, 2], features[0, 1, 1, 2], features[0, 1, 3, 3] = 4., 2, 1, 5
    weight = torch.tensor([[1., -1], [0, 1], [-1, -1]])
    expected = torch.zeros(1, 3, 4, 4)
    expected[0, 0, 1, 1], expected[0, 0, 1, 2] = 1, .25            # 4 and 2 − 1, divided by 4; −5 becomes 0
    assert torch.equal(class_activation(features, weight, torch.tensor([[True, False, True]])), expected)


def test_tiny_features_are_divided_all_the_same():
    """No small constant in the division: a map of 1e-12 has a maximum of 1 too."""
    M = class_activation(torch.full((1, 1, 2, 2), 1e-12), torch.ones(1, 1), torch.tensor([[True]]))
    assert torch.equal(M, torch.ones(1, 1, 2, 2))


def test_zero_maps_stay_zero():
    """Nothing speaks for the class, no tag, or no map at all: zeros, no NaN."""
    T = torch.tensor([[True, False]])
    assert not class_activation(-torch.ones(1, 3, 2, 2), torch.ones(2, 3), T).any()
    assert not class_activation(torch.ones(1, 3, 2, 2), torch.ones(2, 3), torch.zeros(1, 2, dtype=torch.bool)).any()
    assert not by_maximum(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_name_the_image(network, value):
    """The id where there is one, else the place in the batch; also through activation_maps."""
    features, T = torch.ones(2, 3, 2, 2), torch.ones(2, 4, dtype=torch.bool)
    features[1, 2, 0, 1] = value
    with pytest.raises(DataError, match="2007_000039.*To mend it"):
        class_activation(features, torch.ones(4, 3), T, ("2007_000032", "2007_000039"))
    with pytest.raises(DataError, match="image 1 of the batch"):
        class_activation(features, torch.ones(4, 3), T)
    image = picture(20, 20)
    image[0, 0, 5, 5] = value
    with pytest.raises(DataError, match="2007_000032"):
        activation_maps(network, image, ALL, ids=("2007_000032",))


@pytest.mark.parametrize("features, weight, T", [
    (torch.ones(1, 3, 2, 2), torch.ones(4, 2), torch.ones(1, 4, dtype=torch.bool)), (torch.ones(3, 2, 2), torch.ones(4, 3), torch.ones(1, 4, dtype=torch.bool)),
    (torch.ones(1, 3, 2, 2), torch.ones(4, 3), torch.ones(2, 4, dtype=torch.bool)), (torch.ones(1, 3, 2, 2), torch.ones(4, 3), torch.ones(1, 4)),
    (torch.ones(1, 3, 2, 2), torch.ones(4, 3), torch.ones(1, 5, dtype=torch.bool))])
def test_parts_that_do_not_belong_together_are_refused(features, weight, T):
    """Wrong widths, no batch, tags of another batch, tags that are numbers, background among the tags."""
    with pytest.raises(DataError):
        class_activation(features, weight, T)


def test_average_and_weights_commute(network):
    """The mean of the scores over places, plus the bias, is the logit."""
    with torch.no_grad():
        network.linear.bias.normal_(generator=torch.Generator().manual_seed(3))
        image = picture(37, 50)
        scores = class_scores(network.features(image), network.weight)
        torch.testing.assert_close(scores.mean((2, 3)) + network.linear.bias, network(image), atol=1e-4, rtol=1e-4)
        assert scores.min() < 0                                         # before relu: negative places count


# ---- scales, flip, size ---------------------------------------------------------------------------------------------------

def test_scale_one_is_the_activation_enlarged(network):
    """Enlarged first, divided by its maximum after: the other order gives a maximum below 1."""
    image = picture(30, 44)
    with torch.no_grad():
        coarse = class_scores(network.features(image), network.weight).relu()
        large = torch.nn.functional.interpolate(coarse, (30, 44), mode="bilinear", align_corners=False)
    expected = large / large.amax((2, 3), keepdim=True)
    torch.testing.assert_close(activation_maps(network, image, ALL, scales=(1.,), flip=False)[0], expected)
    torch.testing.assert_close(activation_maps(network, image, ALL, scales=(1.,), flip=False, normalise=False)[0], large)


def test_scales_are_apart_and_in_order(network):
    """Each scale alone equals its place among several, and differs from the others."""
    image, T = picture(40, 60), torch.tensor([[True, False, True, False, False, True]])
    every = activation_maps(network, image, T)
    assert every.shape == (3, 1, 6, 40, 60)
    for k, scale in enumerate(SCALES):
        torch.testing.assert_close(activation_maps(network, image, T, scales=(scale,))[0], every[k])
    assert (every[0] - every[2]).abs().max() > .1
    torch.testing.assert_close(every.amax((3, 4)), T.float().expand(3, 1, 6))


@pytest.mark.parametrize("size", [(40, 60), (41, 57), (5, 7)])
def test_the_mirrored_image_has_the_mirrored_map(network, size):
    """With flip; without, a stride that does not divide the width shows."""
    image = picture(*size)
    mirrored = activation_maps(network, image.flip(-1), ALL)
    torch.testing.assert_close(mirrored, activation_maps(network, image, ALL).flip(-1), atol=1e-4, rtol=0)
    one_way = activation_maps(network, image.flip(-1), ALL, flip=False) - activation_maps(network, image, ALL, flip=False).flip(-1)
    assert one_way.abs().max() > 1e-3


def test_flip_averages_scores_before_the_relu(network):
    """Where one view says +1 and the other −3 the class is not seen."""
    image = picture(16, 16)
    with torch.no_grad():
        a, b = (class_scores(network.features(x), network.weight) for x in (image, image.flip(-1)))
    expected = ((a + b.flip(-1)) / 2).relu()
    torch.testing.assert_close(activation_maps(network, image, ALL, (1.,), size=tuple(a.shape[2:]), normalise=False)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("h, w", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_tiny_pictures(network, h, w):
    """Half a pixel is one pixel."""
    maps = activation_maps(network, picture(h, w), ALL)
    assert maps.shape == (3, 1, 6, h, w) and maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1


def test_a_batch_equals_its_images(network):
    """Tags of one image do not reach another."""
    image, T = torch.cat([picture(24, 32, k) for k in range(3)]), torch.tensor([[True, False] * 3, [False] * 6, [True] * 6])
    maps = activation_maps(network, image, T, size=(41, 41))
    assert maps.shape == (3, 3, 6, 41, 41) and not maps[:, 1].any()
    for b in range(3):
        torch.testing.assert_close(maps[:, [b]], activation_maps(network, image[[b]], T[[b]], size=(41, 41)), atol=1e-5, rtol=1e-4)


def test_no_gradient_and_the_mode_comes_back(network):
    """Cues never carry gradients; a network in training is judged in evaluation mode, and trains on."""
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    maps = activation_maps(network, picture(16, 16), ALL)
    assert network.training and not maps.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())      # batch norm kept its statistics
    network.eval()


@pytest.mark.parametrize("features, weight", [
    (torch.ones(1, 3, 2, 2), torch.full((4, 3), math.nan)), (torch.full((1, 3, 2, 2), 1e38), torch.full((4, 3), 100.)),
    (torch.full((1, 3, 2, 2), 6e4, dtype=torch.float16), torch.ones(4, 3, dtype=torch.float16)), (torch.full((1, 3, 2, 2), -math.inf), torch.ones(4, 3))])
def test_scores_that_are_not_finite_are_refused(features, weight):
    """Weights that hold NaN, and sums that run over, though the features are finite."""
    with pytest.raises(DataError, match="image 0 of the batch"):
        class_activation(features, weight, torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("image, T, size, message", [
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ALL, None, "uint8"), (torch.zeros(1, 1, 8, 8), ALL, None, r"\(1, 1, 8, 8\)"),
    (torch.zeros(3, 8, 8), ALL, (8, 8), r"\(3, 8, 8\)"), (torch.zeros(1, 3, 8, 8), ALL[0], None, "tags T"), (torch.zeros(1, 3, 8, 8), ALL.float(), None, "tags T"),
    (torch.zeros(1, 3, 8, 8), ALL, (0, 5), "maps of size"), (torch.zeros(1, 3, 8, 8), ALL, (5,), "maps of size")])
def test_images_tags_and_sizes_that_cannot_be(network, image, T, size, message):
    """One line instead of a traceback out of a convolution."""
    with pytest.raises(DataError, match=message):
        activation_maps(network, image, T, size=size)


@pytest.mark.parametrize("scales", [(), (0.,), (1., -.5), (math.nan,), (math.inf,)])
def test_senseless_scales_are_refused(network, scales):
    """At least one, and positive."""
    with pytest.raises(DataError, match="positive"):
        activation_maps(network, picture(8, 8), ALL, scales=scales)


# ---- merging ------------------------------------------------------------------------------------------------------------

def test_merging_by_hand():
    """Two scales, two classes, three places."""
    maps = torch.tensor([[[[1., .5, 0]], [[0, 0, 0]]], [[[0., 1, .4]], [[0, 0, 0]]]])
    torch.testing.assert_close(merge_scales(maps, "average", normalise=False)[0], torch.tensor([[.5, .75, .2]]))
    torch.testing.assert_close(merge_scales(maps)[0], torch.tensor([[2 / 3, 1, 4 / 15]]))
    torch.testing.assert_close(merge_scales(maps, "maximum")[0], torch.tensor([[1., 1, .4]]))
    assert not merge_scales(maps)[1].any()
    with pytest.raises(DataError, match="median"):
        merge_scales(maps, "median")


def test_no_scale_cannot_be_merged():
    """The mean of nothing would be NaN."""
    for maps in (torch.zeros(0, 2, 3, 3), torch.zeros(3, 3)):
        with pytest.raises(DataError, match="at least one scale"):
            merge_scales(maps)


# ---- from files -----------------------------------------------------------------------------------------------------------

def test_maps_of_a_data_set(toyvoc, network):
    """The picture is read and normalised, its own tags are taken, the maps have its size or the one asked for."""
    data = voc_folder(toyvoc, "train")
    image = ((torch.from_numpy(data.image(3)).permute(2, 0, 1)[None] / 255) - .45) / .25
    expected = activation_maps(network, image, torch.from_numpy(data.tags[[3]]), ids=(data.ids[3],))[:, 0]
    torch.testing.assert_close(maps_of(network, data, 3), expected, atol=1e-5, rtol=1e-4)
    assert maps_of(network, data, 3, scales=(.5,), size=(41, 41)).shape == (1, 6, 41, 41)


def test_large_pictures_are_bounded(tmp_path, network):
    """2000×3000: the network never sees more pixels than the limit, the maps have the size asked for; without tags they are zero."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8).repeat(100, 0).repeat(100, 1)).save(tmp_path / "big.jpg")
    data = TaggedImages(tuple("abcdef"), ("big",), np.ones((1, 6), bool), lambda i: tmp_path / "big.jpg")
    seen = []
    hook = network.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-2] * inputs[0].shape[-1]))
    maps = maps_of(network, data, 0, size=(41, 41), limit=100_000)
    full = maps_of(network, replace(data, tags=np.eye(6, dtype=bool)[[2]]), 0, scales=(.5,), limit=100_000)
    hook.remove()
    assert maps.shape == (3, 6, 41, 41) and max(seen) <= 100_000 and full.shape == (1, 6, 2000, 3000)
    assert full[0, 2].max() == 1 and not full[0, [0, 1, 3, 4, 5]].any()
    assert not maps_of(network, replace(data, tags=np.zeros((1, 6), bool)), 0, size=(41, 41), limit=10_000).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_maps_on_a_gpu_equal_those_on_the_cpu(network):
    """The same numbers on the network's device."""
    from copy import deepcopy
    image = picture(48, 64)
    there = activation_maps(deepcopy(network).cuda(), image.cuda(), ALL.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), activation_maps(network, image, ALL), atol=2e-2, rtol=0)      # cuDNN may use TF32
