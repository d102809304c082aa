"""Lesson 14a: cues by thresholds, snapping, subtracting, merging and the CRF, against loops and hand calculation."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.core import DataError
from wsss_nb.cues import (
    PRESETS,
    conflicts,
    crf_cues,
    cue_probabilities,
    cue_quality,
    merge_cues,
    snap_to_superpixels,
    subtract_others,
    threshold_counts,
    threshold_cues,
    threshold_curve,
)
from wsss_nb.evaluation import confusion, supervision_quality
from wsss_nb.saliency import robust_background
from wsss_nb.superpixels import felzenszwalb
from wsss_nb.voc import voc_folder

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, B: int = 2, C: int = 3, h: int = 5, w: int = 6):
    """Maps (some negative, one of them zero), saliency and tags."""
    rng = np.random.default_rng(seed)
    cam = torch.tensor(rng.random((B, C, h, w)) - .3).float()
    cam[0, 0] = 0
    return cam, torch.tensor(rng.random((B, h, w)) / 4).float(), torch.tensor(rng.random((B, C)) < .7)


def by_hand(cam, saliency, T, foreground, background, yields=False):
    """Pixel by pixel, as the sentence says it."""
    S = np.full(saliency.shape, 255)
    for b, y, x in np.ndindex(*saliency.shape):
        wants = []
        for c in range(cam.shape[1]):
            peak = cam[b, c].max()
            if T[b, c] and peak > 0 and cam[b, c, y, x] / peak > foreground:
                wants.append(1 + c)
        if saliency[b, y, x] < background and not (wants and yields):
            wants.append(0)
        if len(wants) == 1:
            S[b, y, x] = wants[0]
    return S


def test_threshold_cues_by_hand():
    """4×4: strictly more than a fifth of 10 and of 5; conflicts, absent classes and the edge of 0.06."""
    M = torch.tensor([[[10., 9, 3, 0], [8, 6, 2, 0], [3, 2, 1, 0], [0, 0, 0, 0]], [[0, 0, 2, 1], [0, 0, 4, 1], [0, 0, 5, 1], [0, 0, 0, 1]], [[7.] * 4] * 4])[None]
    s = torch.tensor([[[.9, .9, .9, .5], [.9, .9, .9, .5], [.03, .9, .9, .5], [.01, .01, .01, .06]]])
    S = threshold_cues(M, s, torch.tensor([[True, True, False]]))
    assert S.dtype == torch.uint8
    assert S[0].tolist() == [[1, 1, 255, 255], [1, 1, 2, 255], [255, 255, 2, 255], [0, 0, 0, 255]]


@given(seeds, st.sampled_from(list(PRESETS)), st.booleans())
def test_threshold_cues_equal_a_loop(seed, preset, yields):
    """Any maps, the papers' thresholds, both rules; the arguments are left alone."""
    cam, saliency, T = draw(seed)
    before = cam.clone(), saliency.clone(), T.clone()
    assert threshold_cues(cam, saliency, T, **PRESETS[preset], yields=yields).tolist() == by_hand(cam, saliency, T, **PRESETS[preset], yields=yields).tolist()
    assert all(torch.equal(a, b) for a, b in zip(before, (cam, saliency, T)))


def test_presets_are_the_papers():
    """DSRG 3.1, WST 4.2, modified cues 3.3."""
    assert {name: tuple(p.values()) for name, p in PRESETS.items()} == {"dsrg": (.2, .06), "wst": (.1, .06), "cues": (.3, .2)}


@pytest.mark.parametrize("tags", [False, True])
def test_no_tags_and_all_tags(tags):
    """No tag: only background. All tags: every class may speak; an absent class never does."""
    cam, saliency, _ = draw(3)
    T = torch.full((2, 3), tags)
    expected = by_hand(cam, saliency, T, .2, .06)
    assert threshold_cues(cam, saliency, T).tolist() == expected.tolist()
    assert set(np.unique(expected)) <= ({0, 1, 2, 3, 255} if tags else {0, 255})


@pytest.mark.parametrize("value", [0., -1.])
def test_a_classifier_that_sees_nothing_gives_no_cue(value):
    """Maps that are zero or negative everywhere, even at the threshold 0."""
    cam = torch.full((1, 2, 4, 4), value)
    assert (threshold_cues(cam, torch.ones(1, 4, 4), torch.ones(1, 2, dtype=torch.bool), foreground=0) == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3000)])
def test_all_sizes(size):
    """One pixel, one row, six million pixels."""
    cam = torch.linspace(0, 1, size[0] * size[1]).view(1, 1, *size).clone()
    cam[..., -1, -1] = 1
    S = threshold_cues(cam, torch.ones(1, *size), torch.ones(1, 1, dtype=torch.bool), foreground=.5)
    assert S.shape == (1, *size) and (S == 1).sum() == (cam > .5).sum()
    segments = torch.arange(size[1]).expand(1, *size) // 100
    snapped = snap_to_superpixels(cam, segments)
    assert abs(float(snapped[0, 0, 0, 0]) - float(cam[0, 0, :, :100].double().mean())) < 1e-6


def bad_inputs():
    """name -> (call, what the message names)."""
    cam, s, T = draw(1)
    nan = cam.clone()
    nan[1, 2, 3, 3] = torch.nan
    low = cam.clone()
    low[0, 1, 0, 0] = -torch.inf
    return {
        "NaN": (lambda: threshold_cues(nan, s, T), "image 1 of the batch hold NaN"),
        "infinity": (lambda: subtract_others(cam * torch.inf, T), "NaN or infinity"),
        "minus infinity in one place": (lambda: threshold_cues(low, s, T), "image 0 of the batch hold NaN"),
        "saliency of another size": (lambda: threshold_cues(cam, s[:, :4], T), r"\(2, 4, 6\)"),
        "saliency of one image": (lambda: cue_probabilities(cam, s[:1], T), r"\(1, 5, 6\)"),
        "saliency up to 255": (lambda: threshold_cues(cam, s * 255, T), "in \\[0,1\\]"),
        "saliency with NaN": (lambda: threshold_cues(cam, s * torch.nan, T), "in \\[0,1\\]"),
        "saliency in bytes": (lambda: threshold_cues(cam, s.byte(), T), "uint8"),
        "tags of other classes": (lambda: threshold_cues(cam, s, T[:, :2]), r"\(2, 2\)"),
        "tags as numbers": (lambda: threshold_cues(cam, s, T.long()), "bool"),
        "integers": (lambda: threshold_cues(cam.long(), s, T), "int64"),
        "percent": (lambda: threshold_cues(cam, s, T, foreground=20), "0.2 is a fifth"),
        "no images": (lambda: threshold_cues(cam[:0], s[:0], T[:0]), "floats"),
        "255 classes": (lambda: threshold_cues(torch.zeros(1, 255, 2, 2), torch.zeros(1, 2, 2), torch.ones(1, 255, dtype=torch.bool)), "C < 255"),
        "an unknown rule": (lambda: merge_cues(s.byte(), s.byte(), rule="or"), "unlabel, first or foreground"),
        "nothing to merge": (lambda: merge_cues(), "one shape"),
        "maps of two sizes": (lambda: merge_cues(s.byte(), s.byte()[:, :3]), "one shape"),
        "floats to merge": (lambda: merge_cues(s, s), "uint8"),
        "thresholds that fall": (lambda: threshold_counts(cam, s.byte(), T, [.5, .2]), "rising"),
        "segments of another size": (lambda: snap_to_superpixels(cam, torch.zeros(2, 5, 5, dtype=torch.int64)), r"segments \(2, 5, 5\)"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_refused(name):
    """One line: what, what was expected, how to mend it."""
    call, message = bad_inputs()[name]
    with pytest.raises(DataError, match=message) as error:
        call()
    assert "expected" in str(error.value) and "To mend it" in str(error.value)


@given(seeds, st.integers(1, 8))
def test_snapping_equals_a_loop(seed, n):
    """The mean of each region; regions of different images never mix."""
    cam, saliency, _ = draw(seed)
    pieces = torch.tensor(np.random.default_rng(seed).integers(0, n, (2, 5, 6)))
    expected, flat = torch.zeros_like(cam), torch.zeros_like(saliency)
    for b in range(2):
        for k in pieces[b].unique():
            here = pieces[b] == k
            flat[b][here] = saliency[b][here].mean()
            for c in range(3):
                expected[b, c][here] = cam[b, c][here].mean()
    torch.testing.assert_close(snap_to_superpixels(cam, pieces), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(snap_to_superpixels(saliency, pieces), flat, atol=1e-6, rtol=0)


def test_snapping_by_hand():
    """Quarters of a 4×4 map; snapping twice changes nothing more."""
    M = torch.tensor([[10., 9, 3, 0], [8, 6, 2, 0], [3, 2, 1, 0], [0, 0, 0, 0]])[None, None]
    quarters = torch.tensor([[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2)[None]
    snapped = snap_to_superpixels(M, quarters)
    assert snapped[0, 0, ::3, ::3].tolist() == [[8.25, 1.25], [1.25, .25]]
    assert torch.equal(snap_to_superpixels(snapped, quarters), snapped)


@given(seeds, st.booleans())
def test_subtracting_equals_a_loop(seed, summed):
    """The largest of the other tags, or the sum of rectified differences; alone, a class keeps its map."""
    cam, _, T = draw(seed)
    expected = torch.zeros_like(cam)
    for b, c in np.ndindex(*T.shape):
        others = [k for k in range(3) if T[b, k] and k != c]
        if T[b, c] and not others:
            expected[b, c] = cam[b, c].clamp(min=0)
        elif T[b, c] and summed:
            expected[b, c] = sum((cam[b, c] - cam[b, k]).clamp(min=0) for k in others)
        elif T[b, c]:
            expected[b, c] = (cam[b, c] - torch.stack([cam[b, k] for k in others]).amax(0)).clamp(min=0)
    torch.testing.assert_close(subtract_others(cam, T, summed), expected)


@given(seeds, st.integers(1, 4), st.sampled_from(["unlabel", "first", "foreground"]))
def test_merging_equals_a_loop(seed, K, rule):
    """Any number of maps, each rule, the conflicts, and what is never changed: a label nobody disputes."""
    rng = np.random.default_rng(seed)
    maps = [torch.tensor(rng.choice([0, 1, 2, 254, 255, 255], (2, 3, 4)).astype(np.uint8)) for _ in range(K)]
    merged, disputed = merge_cues(*maps, rule=rule), conflicts(*maps)
    for place in np.ndindex(2, 3, 4):
        said = [int(m[place]) for m in maps if m[place] != 255]
        assert bool(disputed[place]) == (len(set(said)) > 1)
        if rule == "foreground" and any(said):
            said = [c for c in said if c]
        expected = said[0] if said and (rule == "first" or len(set(said)) == 1) else 255
        assert int(merged[place]) == expected


@given(seeds)
def test_merging_does_not_depend_on_the_order(seed):
    """With conflicts unlabelled, colour and grey are equals."""
    maps = [torch.tensor(np.random.default_rng(seed + k).choice([0, 1, 2, 255], (1, 4, 4)).astype(np.uint8)) for k in range(3)]
    assert torch.equal(merge_cues(*maps), merge_cues(*maps[::-1]))


@given(seeds, st.booleans())
def test_curve_equals_the_long_way(seed, with_background):
    """At every threshold: make the cues, count them, take the ratios."""
    cam, saliency, T = draw(seed, C=np.random.default_rng(seed).integers(1, 4))
    target = torch.tensor(np.random.default_rng(seed).choice([0, 1, min(2, cam.shape[1]), 255], saliency.shape).astype(np.uint8))
    saliency = saliency if with_background else torch.ones_like(saliency)
    thresholds = [0, .1, .2, .5, .95]
    counts = threshold_counts(cam, target, T, thresholds, saliency < .06)
    curve = threshold_curve(counts)
    for k, t in enumerate(thresholds):
        N = confusion(threshold_cues(cam, saliency, T, t), target, 1 + cam.shape[1], partial=True)
        assert counts[0, :, k].tolist() == N.diagonal()[1:].tolist()
        assert counts[1, :, k].tolist() == N[:, 1:-1].sum(0).tolist()
        assert counts[2, :, k].tolist() == N[1:].sum(1).tolist()
        q = supervision_quality(N)
        np.testing.assert_allclose([curve[name][k] for name in ("precision", "recall", "iou")], [q[name] for name in ("precision", "recall", "iou")])


def test_cue_probabilities_by_hand():
    """1 − saliency against the share of the maximum; where nothing is seen the allowed classes are equal."""
    cam = torch.tensor([[[[4., 1]], [[0, 2]], [[9, 9]]]])
    H = cue_probabilities(cam, torch.tensor([[[.75, 1]]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(H[0, :, 0], torch.tensor([[.25 / 1.25, 0], [1 / 1.25, .25 / 1.25], [0, 1 / 1.25], [0, 0]]))
    H = cue_probabilities(cam * 0, torch.ones(1, 1, 2), torch.tensor([[True, False, False]]))
    torch.testing.assert_close(H[0, :, 0, 0], torch.tensor([.5, .5, 0, 0]))


def test_crf_cues_label_every_pixel_with_an_allowed_class():
    """No 255, no absent class; no tag is all background; without iterations it is the argmax."""
    cam, saliency, T = draw(7, C=4, h=20, w=24)
    image = torch.tensor(np.random.default_rng(0).integers(0, 256, (2, 3, 20, 24)), dtype=torch.uint8)
    S = crf_cues(cam, saliency, image, T, scale=10.)
    assert S.dtype == torch.uint8 and S.shape == (2, 20, 24)
    for b in range(2):
        assert set(S[b].unique().tolist()) <= {0, *(1 + T[b].nonzero()[:, 0]).tolist()}
    assert not crf_cues(cam, saliency * 0 + 1, image, T & False, scale=10.).any()
    assert torch.equal(crf_cues(cam, saliency, image, T, iterations=0).long(), cue_probabilities(cam, saliency, T).argmax(1))


def test_crf_cues_keep_out_absent_classes(monkeypatch):
    """Even if the CRF preferred a class that is not tagged, it would not be a cue."""
    monkeypatch.setattr("wsss_nb.cues.mean_field", lambda H, image: H.roll(1, 1))
    cam, T = torch.ones(1, 2, 3, 3), torch.tensor([[True, False]])
    assert (crf_cues(cam, torch.ones(1, 3, 3), torch.zeros(1, 3, 3, 3, dtype=torch.uint8), T) == 0).all()


def test_crf_cues_follow_the_picture():
    """A map that is sure of two thirds of a red square, and weaker than background in the rest, becomes the square."""
    image = torch.full((1, 3, 30, 40), 90, dtype=torch.uint8)
    image[:, 0, 8:22, 10:30] = 220
    cam, saliency = torch.zeros(1, 1, 30, 40), torch.zeros(1, 30, 40)
    cam[..., 8:22, 10:30], saliency[..., 8:22, 10:30] = .2, .7
    cam[..., 8:22, 10:24] = 1
    T = torch.ones(1, 1, dtype=torch.bool)
    assert not cue_probabilities(cam, saliency, T).argmax(1)[0, 8:22, 24:30].any()
    S = crf_cues(cam, saliency, image, torch.ones(1, 1, dtype=torch.bool), scale=4.)
    square = torch.zeros(30, 40, dtype=torch.bool)
    square[8:22, 10:30] = True
    assert ((S[0] == 1) == square).float().mean() > .98


def test_quality_of_small_cues(toyvoc):
    """Cues of a quarter of the size are enlarged; the numbers are those of the enlarged maps."""
    data = voc_folder(toyvoc, "val", masks=True)
    small = {name: np.where(data.mask(i)[::4, ::4] == 255, 255, data.mask(i)[::4, ::4]) for i, name in enumerate(data.ids)}
    N = 0
    for i, name in enumerate(data.ids):
        mask = data.mask(i)
        large = np.array(Image.fromarray(small[name]).resize(mask.shape[::-1], Image.Resampling.NEAREST))
        N = N + confusion(large, mask, data.n_classes, partial=True)
    assert cue_quality(small.__getitem__, data) == supervision_quality(N)
    assert cue_quality(small.__getitem__, data)["precision"] > .8


def test_the_whole_way_on_toyvoc(toyvoc):
    """Masks as perfect maps, snapped and thresholded on real superpixels: nearly perfect cues."""
    data = voc_folder(toyvoc, "val", masks=True)

    def cues(name):
        i = data.ids.index(name)
        image, mask, T = data.image(i), data.mask(i), torch.tensor(data.tags[i:i + 1])
        segments = torch.tensor(felzenszwalb(image))[None]
        cam = torch.stack([torch.tensor(mask == c).float() for c in range(1, data.n_classes)])[None]
        return threshold_cues(snap_to_superpixels(cam, segments), torch.tensor(robust_background(image))[None], T, foreground=.5)[0].numpy()
    q = cue_quality(cues, data)
    assert q["precision"] > .9 and q["recall"] > .7 and q["background_precision"] > .9


def more_bad_inputs():
    """name -> (call, what the message names)."""
    cam, s, T = draw(2)
    mask, S = torch.zeros(2, 5, 6, dtype=torch.uint8), s.byte()
    return {
        "arrays": (lambda: threshold_cues(cam.numpy(), s, T), "activation maps are float32"),
        "means of whole numbers": (lambda: snap_to_superpixels(cam > 0, mask.long()), "maps are torch.bool"),
        "superpixels below 0": (lambda: snap_to_superpixels(cam, mask.long() - 1), "numbered -1"),
        "superpixels as floats": (lambda: snap_to_superpixels(cam, s), "whole numbers"),
        "conflicts of nothing": (lambda: conflicts(), "one shape"),
        "conflicts of two sizes": (lambda: conflicts(S, S[:, :3]), "one shape"),
        "no thresholds": (lambda: threshold_counts(cam, mask, T, []), "rising"),
        "a mask of another size": (lambda: threshold_counts(cam, mask[:, :3], T, [.2]), "enlarge the maps"),
        "a mask of other classes": (lambda: threshold_counts(cam, mask + 9, T, [.2]), "S holds|supervision|label"),
        "background of another size": (lambda: threshold_counts(cam, mask, T, [.2], s[:1] < .1), "enlarge the maps"),
    }


@pytest.mark.parametrize("name", more_bad_inputs())
def test_what_would_be_silent_is_refused(name):
    """Whole numbers are not averaged to whole numbers, and no mask is counted that does not fit."""
    call, message = more_bad_inputs()[name]
    with pytest.raises(DataError, match=message):
        call()


def test_crf_cues_in_half_precision():
    """Maps from mixed precision are divided in float32: the shares sum to 1, and the CRF takes them."""
    cam, s, T = draw(3)
    H = cue_probabilities(cam.bfloat16(), s.bfloat16(), T)
    assert H.dtype == torch.float32 and torch.allclose(H.sum(1), torch.ones(2, 5, 6))
    assert crf_cues(cam.bfloat16(), s.bfloat16(), torch.zeros(2, 3, 5, 6, dtype=torch.uint8), T).shape == s.shape


@pytest.mark.parametrize("tags", [[], [2], [0, 3], [0, 1, 2, 3]], ids=str)
def test_active_classes_are_the_tags(tags):
    """classes_above=0 gives the cues of background and tagged classes alone."""
    g = torch.Generator().manual_seed(0)
    cam, s, image = torch.rand(1, 4, 15, 20, generator=g), torch.rand(1, 15, 20, generator=g), torch.randint(0, 256, (1, 3, 15, 20), generator=g, dtype=torch.uint8)
    T = torch.zeros(1, 4, dtype=torch.bool)
    T[0, tags] = True
    found = crf_cues(cam, s, image, T, scale=5, classes_above=0.)
    alone = crf_cues(cam[:, tags or [0]], s, image, T[:, tags or [0]], scale=5)
    assert torch.equal(torch.tensor([0, *[1 + t for t in tags or [0]]])[alone.long()], found.long())
