"""Many seeds: equal to a loop over seeds and pixels, its limits and properties, its door; the pilot's noise."""
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

import wsss_nb.wst as wst
from wsss_nb.core import DataError, generator
from wsss_nb.losses import balanced_seeding_loss
from wsss_nb.wst import (
    balanced_multi_seed_loss,
    erase_blocks,
    fold_by_counting,
    fold_by_loop,
    multi_seed_loss,
    seed_shares,
    seed_weights,
    soft_labels,
    votes,
)

VOID = 255
SHARPNESS = (0., .3, 1., 4., math.inf)


def batch(B=2, K=4, n=5, h=6, w=7, quiet=.3, seed=0, dtype=torch.float64):
    """Probabilities, and seeds of which a share says nothing; one pixel nobody labels, one where all agree."""
    rng = generator(seed, "wst", B, K, n, h, w)
    H = torch.from_numpy(rng.normal(size=(B, n, h, w)) * 2).softmax(1).to(dtype)
    S = np.where(rng.random((B, K, h, w)) < quiet, VOID, rng.integers(0, n, (B, K, h, w))).astype(np.uint8)
    if B and h and w:
        S[0, :, 0, 0], S[0, :, -1, -1] = VOID, n - 1
    return H, torch.from_numpy(S)


def naive(H, S, sharpness):
    """Eq. 4–7 in Python's numbers, and the gradient with respect to H: −w/p at the label of each seed, mean over all pixels."""
    total, slope, pixels = 0., np.zeros(H.shape), H.shape[0] * H.shape[2] * H.shape[3]
    for b, y, x in product(range(H.shape[0]), range(H.shape[2]), range(H.shape[3])):
        p, said = [float(v) for v in H[b, :, y, x]], [int(v) for v in S[b, :, y, x]]
        best = max(range(len(p)), key=lambda c: p[c])                      # of equals the first
        agree = [c == best for c in said]
        if sharpness == math.inf:                                          # the limit: those who agree, or all
            loud = agree if any(agree) else [True] * len(said)
        else:
            loud = [math.exp(sharpness * a) for a in agree]
        for c, e in zip(said, loud):
            if c != VOID:
                w = e / sum(loud)
                total -= w * math.log(max(p[c], 1e-8)) / pixels
                slope[b, c, y, x] -= w / p[c] / pixels if p[c] >= 1e-8 else 0
    return total, slope


def both_roads(H, S, sharpness):
    """The loss and its gradient with either way of folding, on the CPU."""
    for fold in (fold_by_loop, fold_by_counting):
        p = H.clone().requires_grad_()
        y = fold(p.detach(), S, *seed_shares(S.shape[1], sharpness, p.dtype))
        loss = (y * wst.minus_log(p)).sum() / S[:, 0].numel()
        loss.backward()
        yield loss.item(), p.grad.numpy()


# ---- against the loop over seeds and pixels ------------------------------------------------------------------------------

@pytest.mark.parametrize("sharpness", SHARPNESS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_loss_and_gradient_equal_the_loop(sharpness, kind):
    """To 1e-10 in float64, with unlabelled pixels present, for both kinds of labels and both roads."""
    H, S = batch()
    want, slope = naive(H, S, sharpness)
    p = H.clone().requires_grad_()
    loss = multi_seed_loss(p, S.to(kind), sharpness)
    loss.backward()
    assert abs(loss.item() - want) < 1e-10 and np.abs(p.grad.numpy() - slope).max() < 1e-10
    for value, gradient in both_roads(H, S.to(kind), sharpness):
        assert abs(value - want) < 1e-10 and np.abs(gradient - slope).max() < 1e-10


@given(st.integers(1, 3), st.integers(1, 7), st.integers(2, 6), st.integers(1, 5), st.integers(1, 5), st.sampled_from((0., .3, .9, 1.)),
       st.sampled_from(SHARPNESS), st.integers(0, 99))
def test_any_shape(B, K, n, h, w, quiet, sharpness, seed):
    """Any number of pictures, seeds, classes and pixels; from seeds that say all to seeds that say nothing."""
    H, S = batch(B, K, n, h, w, quiet, seed)
    want, slope = naive(H, S, sharpness)
    for value, gradient in both_roads(H, S, sharpness):
        assert abs(value - want) < 1e-10 and np.abs(gradient - slope).max() < 1e-9 * max(1, np.abs(slope).max())


def test_sharpness_zero_is_eq_4():
    """The plain multi-seed loss: the mean over seeds and pixels of −log p, where there is a label."""
    H, S = batch(3, 12, 7, 9, 8)
    plain = sum(-math.log(H[b, int(S[b, k, y, x]), y, x]) for b, k, y, x in np.ndindex(*S.shape) if S[b, k, y, x] != VOID) / S.numel()
    assert abs(multi_seed_loss(H, S, 0.).item() - plain) < 1e-12


def test_gradcheck():
    """The derivative through a softmax is that of the loss, wherever the largest probability is alone."""
    H, S = batch(1, 3, 4, 3, 3)
    assert (H.sort(1).values[:, -1] - H.sort(1).values[:, -2]).min() > 1e-3
    for sharpness in (0., 1., math.inf):
        assert gradcheck(lambda logits, s=sharpness: multi_seed_loss(logits.softmax(1), S, s), H.log().requires_grad_())


def test_float32_and_bfloat16():
    """Single precision agrees to its rounding; 16 bits are computed in 32, and the gradient has H's kind."""
    H, S = batch(4, 12, 21, 11, 12)
    want = naive(H, S, 1.)[0]
    assert abs(multi_seed_loss(H.float(), S).item() - want) < 1e-5 * want
    p = H.bfloat16().requires_grad_()
    loss = multi_seed_loss(p, S)
    loss.backward()
    assert loss.dtype == torch.float32 and p.grad.dtype == torch.bfloat16
    assert abs(loss.item() - naive(H.bfloat16().double(), S, 1.)[0]) < 1e-5 * want


def test_channels_last_and_slices():
    """What lies scattered in memory has the same loss."""
    H, S = batch(2, 6, 5, 8, 10)
    want = multi_seed_loss(H, S).item()
    assert multi_seed_loss(H.contiguous(memory_format=torch.channels_last), S).item() == want
    wide, many = torch.zeros(2, 5, 16, 20, dtype=H.dtype), torch.full((2, 12, 8, 10), VOID, dtype=torch.uint8)
    wide[..., ::2, ::2], many[:, ::2] = H, S
    assert multi_seed_loss(wide[..., ::2, ::2], many[:, ::2]).item() == want


# ---- balanced ------------------------------------------------------------------------------------------------------------

def test_balanced_by_hand():
    """Two pixels, two seeds: ½ ln 2 + ½ ln 4 of foreground over a weight of 1, ln 2 of background over ½; then without any foreground."""
    H = torch.tensor([[[[.5, .5]], [[.5, .25]], [[0., .25]]]], dtype=torch.float64)
    S = torch.tensor([[[[1, 2]], [[VOID, 0]]]], dtype=torch.uint8)
    hand = (math.log(2) / 2 + math.log(4) / 2) / 1 + math.log(2)
    assert balanced_multi_seed_loss(H, S, 0.).item() == pytest.approx(hand, abs=1e-12)
    S = torch.tensor([[[[0, 0]], [[VOID, 0]]]], dtype=torch.uint8)
    assert balanced_multi_seed_loss(H, S, 0.).item() == pytest.approx(math.log(2), abs=1e-12)
    assert balanced_multi_seed_loss(H, torch.full_like(S, VOID), 0.).item() == 0


def test_balanced_with_one_seed_is_dsrgs():
    """Also per image and then the mean; with a gradient that gradcheck confirms."""
    H, S = batch(B=3, K=4)
    for k in range(4):
        assert balanced_multi_seed_loss(H, S[:, k:k + 1]).item() == pytest.approx(balanced_seeding_loss(H, S[:, k]).item(), abs=1e-12)
    assert gradcheck(lambda p: balanced_multi_seed_loss(p, S[:1, :, :2, :2], .7), batch(B=1, h=2, w=2)[0].requires_grad_())


# ---- by hand ------------------------------------------------------------------------------------------------------------

def pixel(*p, seeds):
    """One pixel: its probabilities, and what each seed says of it."""
    return torch.tensor(p, dtype=torch.float64).view(1, -1, 1, 1), torch.tensor(seeds, dtype=torch.uint8).view(1, -1, 1, 1)


def test_weights_by_hand():
    """e and 1: two agree of three, one of three beside a silent one, nobody, everybody."""
    e = math.e
    for seeds, want in (([1, 1, 0], [e, e, 1]), ([VOID, 1, 2], [1, e, 1]), ([0, 2, VOID], [1, 1, 1]), ([1, 1, 1], [1, 1, 1])):
        H, S = pixel(.25, .5, .25, seeds=seeds)
        np.testing.assert_allclose(seed_weights(H, S).flatten(), np.array(want) / sum(want), atol=1e-15)


def test_soft_labels_by_hand():
    """The weights of seeds that say the same are added; what silence has goes nowhere."""
    H, S = pixel(.25, .5, .25, seeds=[1, 1, 0, VOID])
    e = math.e
    np.testing.assert_allclose(soft_labels(H, S).flatten(), np.array([1, 2 * e, 0]) / (2 * e + 2), atol=1e-15)
    np.testing.assert_allclose(soft_labels(H, S, 0.).flatten(), [.25, .5, 0], atol=1e-15)


def test_infinite_sharpness_is_the_hard_choice():
    """Only those who agree count; where nobody does, all do; nothing is NaN."""
    H, S = pixel(.25, .5, .25, seeds=[1, 0, 2, 1])
    assert seed_weights(H, S, math.inf).flatten().tolist() == [.5, 0, 0, .5]
    H, S = pixel(.25, .5, .25, seeds=[0, VOID, 2, 0])
    assert seed_weights(H, S, math.inf).flatten().tolist() == [.25] * 4
    assert multi_seed_loss(H, S, math.inf).item() == pytest.approx(.75 * math.log(4))


def test_ties_go_to_the_first_class():
    """Of equally probable classes the first is the network's, on both roads."""
    H, S = pixel(.1, .45, .45, seeds=[1, 2])
    e = math.e
    np.testing.assert_allclose(seed_weights(H, S).flatten(), np.array([e, 1]) / (e + 1))
    for fold in (fold_by_loop, fold_by_counting):
        np.testing.assert_allclose(fold(H, S, *seed_shares(2)).flatten(), np.array([0, e, 1]) / (e + 1))


def test_one_seed_weighs_one():
    """K = 1 is cross-entropy, whatever the sharpness."""
    H, S = batch(2, 1)
    losses = [multi_seed_loss(H, S, sharpness).item() for sharpness in SHARPNESS]
    np.testing.assert_allclose(losses, naive(H, S, 0.)[0], atol=1e-14)
    assert bool((seed_weights(H, S, 3.) == 1).all())


def test_everything_unlabelled_and_empty_batches():
    """No loss and no gradient; also without pictures, and without pixels."""
    H, S = batch()
    p = H.clone().requires_grad_()
    loss = multi_seed_loss(p, torch.full_like(S, VOID))
    loss.backward()
    assert loss.item() == 0 and not p.grad.any()
    for empty in ((0, 3, 5, 6), (2, 3, 0, 6)):
        H, S = batch(empty[0], empty[1], 4, *empty[2:])
        p = H.requires_grad_()
        loss = multi_seed_loss(p, S)
        loss.backward()
        assert loss.item() == 0 and seed_weights(H, S).shape == S.shape


def test_probability_zero():
    """H of exactly 0 at a seed's class: a finite loss, no gradient there; H of exactly 1 costs nothing."""
    H, S = pixel(0., 1., 0., seeds=[0, 1, 1])
    p = H.requires_grad_()
    loss = multi_seed_loss(p, S, 0.)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8) / 3)
    np.testing.assert_allclose(p.grad.flatten(), [0, -2 / 3, 0])


# ---- properties ---------------------------------------------------------------------------------------------------------

def test_weights_sum_to_one_and_the_soft_label_to_who_speaks():
    """At each pixel, for any sharpness."""
    H, S = batch(3, 12, 6, 9, 9)
    for sharpness in SHARPNESS:
        w = seed_weights(H, S, sharpness)
        np.testing.assert_allclose(w.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(soft_labels(H, S, sharpness).sum(1), (w * (S != VOID)).sum(1), atol=1e-12)


def test_order_of_seeds_does_not_matter():
    """Shuffled seeds: the same loss, the same weights in the new order."""
    H, S = batch(2, 7)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    assert multi_seed_loss(H, S[:, order]).item() == pytest.approx(multi_seed_loss(H, S).item(), abs=1e-14)
    assert torch.equal(seed_weights(H, S[:, order]), seed_weights(H, S)[:, order])


def test_sharper_means_louder():
    """The more sharpness, the more those who agree weigh, wherever somebody agrees and somebody does not."""
    for K in (2, 5, 12):
        shares = np.stack([seed_shares(K, s)[0].numpy() for s in (0., .5, 1., 2., 8.)])
        assert (np.diff(shares[:, 1:K], axis=0) > 0).all() and (shares[:, 0] == 1 / K).all() and np.allclose(shares[:, K], 1 / K)


def test_votes_count():
    """Against numpy's counting, for both kinds of labels."""
    _, S = batch(2, 9, 4, 5, 6)
    want = np.stack([(S.numpy() == c).sum(1) for c in range(4)], 1)
    assert np.array_equal(votes(S, 4), want) and np.array_equal(votes(S.long(), 4, torch.float64), want)


def test_arguments_never_change_and_no_gradient_reaches_the_weights():
    """H and S are as they were; weights and soft labels carry no gradient."""
    H, S = batch()
    p, before, seeds = H.clone().requires_grad_(), H.clone(), S.clone()
    for kind in (torch.uint8, torch.int64):
        multi_seed_loss(p, S.to(kind)).backward()
    assert not soft_labels(p, S).requires_grad and not seed_weights(p, S).requires_grad
    fold_by_counting(H, S, *seed_shares(S.shape[1]))
    votes(S, 5)
    assert torch.equal(p.detach(), before) and torch.equal(H, before) and torch.equal(S, seeds)


def test_the_loop_is_its_own_machine_code():
    """The plain Python function and what numba makes of it give the same."""
    H, S = batch(1, 3, 4, 3, 4)
    yes, no = (x.numpy() for x in seed_shares(3))
    y = np.zeros((1, 4, 12))
    assert wst._fold(H.flatten(2).numpy(), S.flatten(2).numpy(), yes, no, y) == VOID
    np.testing.assert_allclose(y, fold_by_loop(H, S, *seed_shares(3)).flatten(2), atol=1e-15)


def test_more_seeds_than_a_byte_counts():
    """300 seeds that all agree."""
    H, S = pixel(.25, .75, seeds=[1] * 300)
    assert multi_seed_loss(H, S).item() == pytest.approx(-math.log(.75))


# ---- the door -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mend, words", [
    (lambda H, S: (H, S[:, 0]), "B,K,h,w"),
    (lambda H, S: (H, S[:, :0]), "at least one seed"),
    (lambda H, S: (H, S[..., 1:]), "size of the prediction"),
    (lambda H, S: (H, S[:1]), "size of the prediction"),
    (lambda H, S: (H, S.float()), "uint8 or int64"),
    (lambda H, S: (H, S.int()), "uint8 or int64"),
    (lambda H, S: (H[0], S), "floats"),
    (lambda H, S: (H.argmax(1, keepdim=True), S), "floats"),
    (lambda H, S: (H, S.to("meta")), "one device"),
])
def test_wrong_shapes_and_kinds_are_refused(mend, words):
    """In one line, by the loss and by the weights."""
    for function in (multi_seed_loss, seed_weights, soft_labels):
        with pytest.raises(DataError, match=words) as error:
            function(*mend(*batch()))
        assert "To mend it" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("sharpness", [-1., -1e-9, math.nan, -math.inf])
def test_a_wrong_sharpness_is_refused(sharpness):
    """Negative and NaN."""
    for function in (multi_seed_loss, seed_weights, soft_labels):
        with pytest.raises(DataError, match="sharpness is"):
            function(*batch(), sharpness)


@pytest.mark.parametrize("wrong, kind", [(5, torch.uint8), (6, torch.uint8), (254, torch.uint8), (5, torch.int64), (256, torch.int64), (-1, torch.int64)])
def test_a_class_that_does_not_exist_is_refused(wrong, kind):
    """Also the first one above the list, and what would be 0 or 255 in eight bits."""
    H, S = batch()
    S = S.to(kind)
    S[1, 2, 3, 4] = wrong
    for function in (multi_seed_loss, soft_labels, seed_weights):
        with pytest.raises(DataError, match=f"label {wrong}.*0…4"):
            function(H, S)
    with pytest.raises((RuntimeError, IndexError)):
        fold_by_counting(H, S, *seed_shares(S.shape[1]))


def test_nan_is_not_hidden():
    """A network that diverged has a loss of NaN, not a small one."""
    H, S = batch()
    H[0, :, 2, 2] = math.nan
    assert math.isnan(multi_seed_loss(H, S).item())


# ---- the pilot's noise --------------------------------------------------------------------------------------------------

masks = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999)).map(
    lambda a: np.where(generator(a[2], "mask").random(a[:2]) < .05, VOID, np.kron(generator(a[2], "blobs").integers(0, 3, (5, 5)), np.ones((8, 8)))[:a[0], :a[1]]).astype(np.uint8))


@given(masks, st.sampled_from((0., .1, .2, .3, .5, 1.)), st.sampled_from((1/16, 1/8, .3, 1.)), st.sampled_from((0, VOID)), st.integers(0, 9))
def test_only_foreground_is_erased(S, ratio, block, to, seed):
    """Foreground alone changes, to what was asked; the share is within half a block of the ratio; the mask stays as it was."""
    before = S.copy()
    spoiled = erase_blocks(S, ratio, generator(seed, "erase"), block, to)
    thing, changed = (S > 0) & (S < VOID), spoiled != S
    assert np.array_equal(S, before) and spoiled.dtype == np.uint8 and spoiled.shape == S.shape
    assert not changed[~thing].any() and (spoiled[changed] == to).all()
    side = max(1, round(block * max(S.shape)))
    assert abs(changed.sum() - ratio * thing.sum()) <= min(side, S.shape[0]) * min(side, S.shape[1]) / 2 + 1e-9
    assert np.array_equal(spoiled, erase_blocks(S, ratio, generator(seed, "erase"), block, to))


def test_what_is_erased_is_blocks():
    """On a map full of foreground whole squares of one grid are gone, and the grid begins elsewhere each time."""
    offsets = set()
    for seed in range(12):
        hole = erase_blocks(np.ones((32, 32), np.uint8), .3, generator(seed, "blocks"), block=1/8) == 0
        cells = {(y, x): hole[y:y + 28, x:x + 28].reshape(7, 4, 7, 4).sum((1, 3)) for y in range(4) for x in range(4)}
        fits = [offset for offset, count in cells.items() if np.isin(count, (0, 16)).all()]
        assert len(fits) == 1
        offsets |= set(fits)
    assert len(offsets) > 5


def test_independent_draws_differ_and_no_ratio_changes_nothing():
    """Two sets for the pilot: other blocks; and at ratio 0 and 1 there is no choice."""
    S = np.zeros((64, 48), np.uint8)
    S[10:50, 8:40] = 2
    one, two = (erase_blocks(S, .3, generator(0, "pilot", which)) for which in (0, 1))
    both = ((one == 0) & (two == 0) & (S > 0)).sum() / (S > 0).sum()
    assert not np.array_equal(one, two) and .02 < both < .2       # independent: about .3²
    assert np.array_equal(erase_blocks(S, 0, generator(0)), S) and not erase_blocks(S, 1, generator(0)).any()


def test_nothing_to_erase():
    """Masks without foreground, and without pixels."""
    for S in (np.zeros((9, 9), np.uint8), np.full((4, 5), VOID, np.uint8), np.zeros((0, 7), np.uint8)):
        assert np.array_equal(erase_blocks(S, .5, generator(0)), S)


@pytest.mark.parametrize("bad, words", [
    (dict(S=np.zeros((2, 9, 9), np.uint8)), "picture by picture"), (dict(S=np.zeros((9, 9))), "uint8"), (dict(ratio=-.1), "share in"), (dict(ratio=1.1), "share in"),
    (dict(ratio=math.nan), "share in"), (dict(block=0), "block is 0"), (dict(block=2.), "block is 2"), (dict(to=3), "labelled 3")])
def test_bad_noise_is_refused(bad, words):
    """In one line, with the mend."""
    with pytest.raises(DataError, match=words) as error:
        erase_blocks(**dict(S=np.ones((9, 9), np.uint8), ratio=.2, rng=generator(0)) | bad)
    assert "To mend it" in str(error.value)


# ---- GPU ----------------------------------------------------------------------------------------------------------------

def test_gpu_equals_cpu():
    """Loss, gradient and weights on a GPU, for both kinds of labels, without waiting for it."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: the road for GPUs was compared on the CPU")
    H, S = batch(4, 12, 21, 41, 41)
    p, q = H.clone().requires_grad_(), H.cuda().requires_grad_()
    multi_seed_loss(p, S).backward()
    seeds = S.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = multi_seed_loss(q, seeds)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert abs(loss.item() - multi_seed_loss(H, S).item()) < 1e-10 and (q.grad.cpu() - p.grad).abs().max() < 1e-10
    assert torch.allclose(seed_weights(q, seeds).cpu(), seed_weights(H, S), atol=1e-12)
