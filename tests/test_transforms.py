"""Image, mask and stored cues move together, at any resolution."""
import pickle

import numpy as np
import pytest
import torch

from wsss_nb.core import IGNORE, DataError
from wsss_nb.tagged import Sample, TrainingSet, collate
from wsss_nb.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    compose,
    crop,
    crop_transform,
    fixed,
    flip,
    look_up,
    normalise,
    random_crop,
    random_flip,
    random_scale,
    resize,
    warp,
    warp_transform,
)
from wsss_nb.voc import voc_folder


def rng(seed: int = 0) -> np.random.Generator:
    """A generator of the test's own."""
    return np.random.default_rng(seed)


def coloured_by_label(h: int, w: int, seed: int = 0) -> Sample:
    """An image whose red value is its label: whatever moves, the two must stay equal."""
    S = torch.from_numpy(rng(seed).integers(0, 21, (h, w)).astype(np.uint8))
    return Sample(S.float().repeat(3, 1, 1), S)


def marked(h: int, w: int, stored: tuple[int, int], row: int, column: int) -> Sample:
    """The pixels under one stored cell are white, and the cell says 7."""
    S = torch.zeros(stored, dtype=torch.uint8)
    S[row, column] = 7
    image = torch.zeros(3, h, w)
    top, bottom = (round(k * h / stored[0]) for k in (row, row + 1))
    left, right = (round(k * w / stored[1]) for k in (column, column + 1))
    image[:, top:bottom, left:right] = 1
    return Sample(image, S)


def centre(weight: torch.Tensor) -> np.ndarray:
    """The centre of some weight, as shares of height and width."""
    weight = weight.double().numpy()
    return np.array([(weight.sum(1) * (np.arange(weight.shape[0]) + .5)).sum() / weight.shape[0],
                     (weight.sum(0) * (np.arange(weight.shape[1]) + .5)).sum() / weight.shape[1]]) / weight.sum()


def test_mask_follows_image_pixel_by_pixel():
    """Flips and crops at full resolution, inside and over every edge: label and colour stay equal, and 255 meets the fill."""
    for seed in range(60):
        draw = rng(seed)
        sample = coloured_by_label(*draw.integers(1, 40, 2), seed)
        steps = [fixed(flip), random_flip, lambda s, g: random_crop(s, g, int(g.integers(1, 50)), fill=(255.,) * 3),
                 lambda s, g: crop(s, *g.integers(-30, 30, 2).tolist(), tuple(g.integers(1, 40, 2).tolist()), fill=(255.,) * 3)]
        moved = compose(*[steps[k] for k in draw.integers(0, 4, 5)])(sample, draw)
        assert torch.equal(moved.image[0], moved.S.float())


def test_crop_equals_plain_indexing():
    """Every window of a 3×4 image, looked up pixel by pixel."""
    sample = coloured_by_label(3, 4)
    for top in range(-4, 5):
        for left in range(-5, 6):
            moved = crop(sample, top, left, (2, 3), fill=(9., 8., 7.))
            for r in range(2):
                for c in range(3):
                    inside = 0 <= top + r < 3 and 0 <= left + c < 4
                    assert moved.S[r, c] == (sample.S[top + r, left + c] if inside else IGNORE)
                    assert moved.image[:, r, c].tolist() == (sample.image[:, top + r, left + c].tolist() if inside else [9, 8, 7])


def test_lookup_equals_the_formula_in_exact_fractions():
    """Coarse supervision through windows of any place and size, with Python's fractions instead of floats."""
    from fractions import Fraction
    draw = rng(5)
    for _ in range(100):
        h, stored, wanted, top, window = (int(draw.integers(a, b)) for a, b in ((4, 60), (1, 20), (1, 20), (-20, 60), (1, 60)))
        S = torch.arange(stored)[:, None]
        got = look_up(S, (h, 1), top, 0, (window, 1), (wanted, 1))[:, 0].tolist()
        rows = [(Fraction(top) + Fraction(2 * r + 1, 2 * wanted) * window) * stored / h for r in range(wanted)]
        near = [abs(row - round(row)) < Fraction(1, 10**9) for row in rows]
        expected = [row // 1 if 0 <= row < stored else IGNORE for row in rows]
        assert all(a == b or n for a, b, n in zip(got, expected, near))


@pytest.mark.parametrize("move", [flip, lambda s: resize(s, (160, 107)), lambda s: warp(s, (321, 321), (41, 41)), lambda s: warp(s, (321, 321), (81, 81)),
                                  lambda s: crop(s, 40, 32, (160, 160), (20, 20)), lambda s: crop(s, -40, -64, (400, 400), (50, 50)),
                                  lambda s: flip(crop(resize(s, (160, 164)), 20, 10, (120, 120), (60, 60)))])
def test_marked_pixel_is_where_its_label_is(move):
    """At 1/8 of the resolution and at 41×41; the two centres differ by less than a cell, and by more when the image alone is flipped."""
    for stored in ((40, 41), (41, 41)):
        moved = move(marked(320, 328, stored, 14, 15))
        slip = np.abs(centre(moved.image[0]) - centre(moved.S == 7))
        assert (slip * moved.S.shape < 1).all(), slip * moved.S.shape
        assert (np.abs(centre(moved.image[0].flip(-1)) - centre(moved.S == 7)) * moved.S.shape).max() > 1


def test_random_chain_keeps_the_mark():
    """Eighty random chains at 321 with 41×41 cues: whenever all of the mark is in view, it is at its label."""
    checked, chain = 0, compose(random_scale, random_flip, lambda s, g: random_crop(s, g, 321, (41, 41)))
    for seed in range(80):
        moved = chain(marked(375, 500, (41, 41), 20, 17), rng(seed))
        white = moved.image[0]
        if not (moved.S == 7).any() or white[[0, -1]].any() or white[:, [0, -1]].any():
            continue
        checked += 1
        assert (np.abs(centre(white) - centre(moved.S == 7)) * 41 < 1).all()
    assert checked > 20


def test_stored_cues_pass_a_warp_unchanged():
    """41×41 cues for 321×321 training stay as they are, several seeds too."""
    S = torch.from_numpy(rng().integers(0, 256, (3, 41, 41)).astype(np.uint8))
    sample = Sample(torch.rand(3, 375, 500), S)
    assert torch.equal(warp_transform(321, (41, 41), mirror=False)(sample, rng()).S, S)
    assert torch.equal(flip(sample).S, torch.from_numpy(S.numpy()[:, :, ::-1].copy()))


def test_several_seeds_move_like_one():
    """A stack of K label maps gives the stack of the moved maps."""
    maps, image = [coloured_by_label(20, 30, k).S for k in range(3)], torch.rand(3, 20, 30)
    chain = crop_transform(17, (9, 9))
    alone = [chain(Sample(image, S), rng(8)).S for S in maps]
    assert torch.equal(chain(Sample(image, torch.stack(maps)), rng(8)).S, torch.stack(alone))


def test_no_supervision_is_fine():
    """Classifier training has none; the image moves in the same way."""
    sample = coloured_by_label(20, 30)
    for chain in (crop_transform(17), warp_transform(17)):
        bare = chain(Sample(sample.image), rng(3))
        assert bare.S is None and torch.equal(bare.image, chain(sample, rng(3)).image)


def test_padding_is_the_mean_and_255():
    """After normalisation the padding is zero, and nothing is learned there."""
    small = Sample(torch.rand(3, 50, 40) + 2, torch.ones(50, 40, dtype=torch.uint8))
    moved = crop_transform(321)(small, rng(1))
    outside = moved.S == IGNORE
    assert outside.sum() > 321 * 321 - 75 * 60 - 1 and not moved.image[:, outside].abs().max() > 1e-6
    assert (moved.image[:, ~outside] > 1).all()


def test_normalise_by_hand():
    """(x − mean) / std for each channel."""
    moved = normalise(Sample(torch.full((3, 1, 1), .5)), IMAGENET_MEAN, IMAGENET_STD).image.flatten().tolist()
    assert np.allclose(moved, [.015 / .229, .044 / .224, .094 / .225], atol=1e-5)


def test_scales_span_half_to_one_and_a_half():
    """Drawn evenly, height and width by one factor."""
    sizes = np.array([random_scale(Sample(torch.zeros(3, 200, 400)), rng(k)).image.shape[1:] for k in range(300)])
    assert (np.abs(sizes[:, 1] - 2 * sizes[:, 0]) <= 1).all()
    assert 100 <= sizes[:, 0].min() < 104 and 296 < sizes[:, 0].max() <= 300 and 185 < sizes[:, 0].mean() < 215


def test_crop_reaches_both_ends():
    """All places and no other, for larger and for smaller images."""
    sample = coloured_by_label(1, 1)._replace(image=torch.zeros(3, 7, 5), S=torch.arange(35, dtype=torch.uint8).reshape(7, 5))
    corners = {(int(s[0, 0]) // 5, int(s[0, 0]) % 5) for s in (random_crop(sample, rng(k), 3).S for k in range(300))}
    assert corners == {(r, c) for r in range(5) for c in range(3)}
    starts = {tuple(np.argwhere(random_crop(sample, rng(k), 8).S.numpy() == 0)[0]) for k in range(300)}
    assert starts == {(r, c) for r in range(2) for c in range(4)}


def test_arguments_are_not_changed():
    """Every move returns a new sample."""
    sample = coloured_by_label(30, 30)
    image, S = sample.image.clone(), sample.S.clone()
    for chain in (crop_transform(41), warp_transform(17)):
        chain(sample, rng())
    assert torch.equal(sample.image, image) and torch.equal(sample.S, S)


def test_transforms_can_be_sent_to_workers_and_repeated():
    """Pickled and run with an equal generator they give the same tensors, whatever torch's global seed is."""
    sample = coloured_by_label(60, 80)
    for chain in (crop_transform(33, (5, 5)), warp_transform(33)):
        torch.manual_seed(1)
        first = chain(sample, rng(4))
        torch.manual_seed(2)
        second = pickle.loads(pickle.dumps(chain))(sample, rng(4))
        assert torch.equal(first.image, second.image) and torch.equal(first.S, second.S)


def test_a_batch_of_samples_is_refused():
    """One image at a time."""
    with pytest.raises(DataError, match="one image at a time"):
        crop_transform(9)(Sample(torch.zeros(3, 9, 9), torch.zeros(2, 3, 9, 9)), rng())


def test_training_batch_of_toyvoc(toyvoc):
    """From files to a batch of one size, image sizes differing."""
    data = voc_folder(toyvoc, "train")
    training = TrainingSet(data, crop_transform(97, (13, 13)), lambda name: np.ones((20, 20), np.uint8))
    batch = collate([training[0, i] for i in range(6)])
    assert batch.image.shape == (6, 3, 97, 97) and batch.S.shape == (6, 13, 13)
    assert len({data.image(i).shape for i in range(6)}) > 1
