"""Losses against loops over pixels, against sums done by hand, and on everything that happens."""
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from wsss_nb.core import DataError
from wsss_nb.losses import balanced_seeding_loss, boundary_loss, expansion_loss, pixel_loss, rank_pool, seeding_loss

VOID = 255
SEEDED = (seeding_loss, balanced_seeding_loss, pixel_loss)


def example(seed: int, B: int = 3, n: int = 4, h: int = 5, w: int = 6):
    """Random probabilities, a second opinion, labels of which half are unlabelled, tags."""
    rng = np.random.default_rng(seed)
    H, Q = (rng.dirichlet(np.full(n, .6), (B, h, w)).transpose(0, 3, 1, 2) + 1e-4 for _ in range(2))
    S = rng.integers(0, n, (B, h, w))
    S[rng.random(S.shape) < .5] = VOID
    return H / H.sum(1, keepdims=True), Q / Q.sum(1, keepdims=True), S, rng.random((B, n - 1)) < .5


def by_pixel(H, S, choose=lambda c: c != VOID):
    """−log of the label's probability, of each chosen pixel of one picture."""
    return [-math.log(H[S[y, x], y, x]) for y, x in product(*map(range, S.shape)) if choose(S[y, x])]


def average(values, empty=0.):
    """The mean, or 0 of nothing."""
    return sum(values) / len(values) if values else empty


def loop_seeding(H, S):
    """SEC eq. 2, picture by picture."""
    return average([average(by_pixel(h, s)) for h, s in zip(H, S)])


def loop_balanced(H, S):
    """DSRG eq. 1, picture by picture."""
    return average([average(by_pixel(h, s, lambda c: c not in (0, VOID))) + average(by_pixel(h, s, lambda c: c == 0)) for h, s in zip(H, S)])


def loop_pixel(H, S):
    """All labelled pixels of the batch, in one list."""
    return average([value for h, s in zip(H, S) for value in by_pixel(h, s)])


def loop_boundary(H, Q, low=0., high=math.inf):
    """KL(Q‖H), pixel by pixel; the ratio clipped."""
    B, _, h, w = H.shape
    return average([sum(q * math.log(min(max(q / p, low), high)) for p, q in zip(H[b, :, y, x], Q[b, :, y, x]))
                    for b, y, x in product(range(B), range(h), range(w))])


def loop_pool(values, decay):
    """Sorted, largest first; the j-th weighs decay^(j-1)."""
    ranked = sorted(values, reverse=True)
    weight = [decay ** j for j in range(len(ranked))]
    return sum(w * v for w, v in zip(weight, ranked)) / sum(weight)


def loop_expansion(H, T, present, background):
    """SEC's three terms, picture by picture."""
    total = []
    for h, tags in zip(H, T):
        here = [-math.log(loop_pool(h[1 + c].ravel(), present)) for c in range(len(tags)) if tags[c]]
        nowhere = [-math.log(1 - h[1 + c].max()) for c in range(len(tags)) if not tags[c]]
        total.append(average(here) + average(nowhere) - math.log(loop_pool(h[0].ravel(), background)))
    return average(total)


@given(st.integers(0, 10**6))
def test_equal_to_loops(seed):
    """Each loss says what its loop over pixels says."""
    H, Q, S, T = example(seed)
    tensors = H64, Q64, S64, T64 = [torch.from_numpy(x) for x in (H, Q, S, T)]
    for fast, slow in zip(SEEDED, (loop_seeding, loop_balanced, loop_pixel)):
        np.testing.assert_allclose(fast(H64, S64), slow(H, S), rtol=1e-10)
        np.testing.assert_allclose(fast(H64, S64.to(torch.uint8)), slow(H, S), rtol=1e-10)
        np.testing.assert_allclose(fast(H64.float(), S64), slow(H, S), rtol=1e-5)
    np.testing.assert_allclose(boundary_loss(H64, Q64), loop_boundary(H, Q), rtol=1e-10)
    np.testing.assert_allclose(boundary_loss(H64, Q64, (.5, 2.)), loop_boundary(H, Q, .5, 2.), rtol=1e-10)
    np.testing.assert_allclose(expansion_loss(H64, T64, .9, .97), loop_expansion(H, T, .9, .97), rtol=1e-10)
    assert [x.dtype for x in tensors] == [torch.float64, torch.float64, torch.int64, torch.bool]


def test_expansion_sorts_the_tagged_only():
    """On a CPU untagged classes are not sorted; any mixture of tags, also none at all, gives the loop's value and gradient."""
    H, _, _, _ = example(11, B=4)
    T = np.array([[True, False, True], [False] * 3, [True] * 3, [False, True, False]])
    p = torch.from_numpy(H).requires_grad_()
    value = expansion_loss(p, torch.from_numpy(T), .8, .9)
    value.backward()
    np.testing.assert_allclose(value.item(), loop_expansion(H, T, .8, .9), rtol=1e-10)
    assert ((p.grad[:, 1:].flatten(2) != 0).sum(2) == torch.where(torch.from_numpy(T), 30, 1)).all()    # all pixels, or the best one
    np.testing.assert_allclose(expansion_loss(p, torch.zeros(4, 3, dtype=torch.bool)).item(), loop_expansion(H, np.zeros((4, 3), bool), .996, .999), rtol=1e-10)


def test_defaults_are_the_authors():
    """0.996 for classes that are there, 0.999 for background, no clipping."""
    H, Q, _, T = example(0, h=9, w=9)
    tensors = [torch.from_numpy(x) for x in (H, Q, T)]
    np.testing.assert_allclose(expansion_loss(tensors[0], tensors[2]), loop_expansion(H, T, .996, .999), rtol=1e-10)
    np.testing.assert_allclose(boundary_loss(*tensors[:2]), loop_boundary(H, Q), rtol=1e-10)


def test_by_hand():
    """Halvings: 1/2 costs one log 2, 1/8 three."""
    H = torch.full((1, 3, 3, 3), 1/4)
    H[:, 0] = 1/2
    S = torch.tensor([[[0, 0, 0], [1, 0, VOID], [VOID, 2, 0]]])           # five background, two objects
    assert seeding_loss(H, S).item() == pytest.approx((5 * 1 + 2 * 2) / 7 * math.log(2))
    assert balanced_seeding_loss(H, S).item() == pytest.approx((1 + 2) * math.log(2))
    assert pixel_loss(H, S).item() == pytest.approx(9 / 7 * math.log(2))
    assert boundary_loss(torch.full((1, 2, 1, 1), .5), torch.tensor([1., 0]).view(1, 2, 1, 1)).item() == pytest.approx(math.log(2))
    half = torch.full((1, 3, 1, 2), 1/4) + torch.tensor([1/4, 0, 0]).view(1, 3, 1, 1)
    assert expansion_loss(half, torch.tensor([[True, False]])).item() == pytest.approx(3 * math.log(2) - math.log(3/4))


def test_pictures_weigh_alike():
    """Averaged by picture the size of the labelled part does not count; over the batch it does."""
    H = torch.full((2, 2, 2, 2), .5)
    H[1, 0], H[1, 1] = 1/4, 3/4
    S = torch.tensor([[[0, 0], [0, 0]], [[0, VOID], [VOID, VOID]]])
    assert seeding_loss(H, S).item() == pytest.approx((1 + 2) / 2 * math.log(2))
    assert balanced_seeding_loss(H, S).item() == pytest.approx((1 + 2) / 2 * math.log(2))
    assert pixel_loss(H, S).item() == pytest.approx((4 * 1 + 1 * 2) / 5 * math.log(2))


def test_empty_terms_are_zero():
    """No foreground leaves background's mean, no background foreground's, no cues 0."""
    H = torch.full((1, 2, 1, 2), .5)
    for values, expected in (([0, 0], 1), ([1, 1], 1), ([0, 1], 2), ([VOID, VOID], 0)):
        assert balanced_seeding_loss(H, torch.tensor([[values]])).item() == pytest.approx(expected * math.log(2))
    assert seeding_loss(H, torch.full((1, 1, 2), VOID)) == pixel_loss(H, torch.full((1, 1, 2), VOID)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finite(dtype):
    """Value and gradient are numbers for certain networks, pictures without this or that, and short floats."""
    certain = torch.eye(3)[[0, 1, 2, 2]].T.reshape(1, 3, 2, 2)            # every class is somewhere 1 and elsewhere 0
    vague = torch.full((1, 3, 2, 2), 1/3)
    everything = torch.zeros(1, 3, 2, 2) + torch.tensor([0., 1, 0]).view(1, 3, 1, 1)
    labels = [torch.tensor(v).view(1, 2, 2) for v in ([0, 0, 0, VOID], [1, 2, 1, VOID], [VOID] * 4, [2, 2, 0, 1])]
    tags = [torch.tensor([v]) for v in ([False, False], [True, True], [True, False], [False, True])]
    calls = [(loss, S, {}) for loss in SEEDED for S in labels] + [(expansion_loss, T, {}) for T in tags]
    calls += [(expansion_loss, tags[2], {"present": d, "background": d}) for d in (0., 1.)]
    calls += [(boundary_loss, Q.to(dtype), {"ratio": ratio}) for Q in (certain.roll(1, 1), vague, everything) for ratio in (None, (.05, 20.))]
    for start, (loss, second, options) in product((certain, vague, everything), calls):
        H = start.to(dtype).requires_grad_()
        value = loss(H, second, **options)
        value.backward()
        assert value.ndim == 0 and value.isfinite() and H.grad.isfinite().all(), (loss.__name__, second, options)
        assert value.dtype == (dtype if dtype in (torch.float32, torch.float64) else torch.float32)


def test_short_floats_are_close():
    """In bfloat16 a loss is the loss of the rounded probabilities, not a rounded loss."""
    H, Q, S, T = (torch.from_numpy(x) for x in example(1))
    short = H.bfloat16()
    for loss, second in ((seeding_loss, S), (balanced_seeding_loss, S), (pixel_loss, S), (boundary_loss, Q), (expansion_loss, T)):
        torch.testing.assert_close(loss(short, second), loss(short.double(), second).float(), rtol=1e-5, atol=1e-6)


def test_gradients():
    """Against measured slopes, in 64 bits, through a softmax."""
    _, Q, S, T = (torch.from_numpy(x) for x in example(2, B=2, n=3, h=2, w=3))
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 3, 2, 3))).requires_grad_()
    for loss, second in ((seeding_loss, S), (balanced_seeding_loss, S), (pixel_loss, S), (boundary_loss, Q), (expansion_loss, T)):
        assert gradcheck(lambda z: loss(z.softmax(1), second), logits)


def test_boundary_teaches_the_difference():
    """Its gradient on the logits is (H − Q)/pixels; none reaches Q; none is left where the ratio is clipped."""
    _, Q, _, _ = (torch.from_numpy(x) for x in example(4))
    Q.requires_grad_()
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=Q.shape)).requires_grad_()
    H = logits.softmax(1)
    boundary_loss(H, Q).backward()
    torch.testing.assert_close(logits.grad, ((H - Q) / (Q.shape[0] * Q.shape[2] * Q.shape[3])).detach())
    assert Q.grad is None
    short = Q.detach().bfloat16().requires_grad_()
    boundary_loss(logits.softmax(1).bfloat16(), short).backward()
    assert short.grad is None
    H = H.detach().requires_grad_()
    boundary_loss(H, Q, (.5, 2.)).backward()
    ratio = Q.detach() / H.detach()
    assert ((H.grad != 0) == ((ratio > .5) & (ratio < 2))).all()


def test_balance_moves_the_gradient():
    """5 % of the pixels have 5 % of the gradient under seeding, and half under the balanced loss."""
    S = torch.zeros(1, 10, 10, dtype=torch.long)
    S[0, 4, 2:7] = 1
    for loss, expected in ((seeding_loss, .05), (balanced_seeding_loss, .5)):
        logits = torch.zeros(1, 2, 10, 10, requires_grad=True)
        loss(logits.softmax(1), S).backward()
        mass = logits.grad.abs().sum(1)
        assert (mass[S == 1].sum() / mass.sum()).item() == pytest.approx(expected, abs=1e-6)


def test_rank_pool():
    """0 is the maximum, 1 the mean, in between a loop; order does not count, and it grows with each value."""
    values = torch.tensor([.1, .7, .2, .9], dtype=torch.float64)
    assert rank_pool(values, 0) == .9 and rank_pool(values, 1).item() == pytest.approx(values.mean().item())
    assert rank_pool(values, .6).item() == pytest.approx(loop_pool(values.tolist(), .6)) == pytest.approx(rank_pool(values.flip(0), .6).item())
    for wrong in (-.1, 1.1):
        with pytest.raises(DataError, match="the decay is"):
            rank_pool(values, wrong)


def test_unlabelled_pixels_get_no_gradient():
    """Seeding speaks of labelled pixels only, and of their label only."""
    H, _, S, _ = (torch.from_numpy(x) for x in example(6))
    for loss in SEEDED:
        p = H.clone().requires_grad_()
        loss(p, S).backward()
        touched = torch.stack([S == c for c in range(H.shape[1])], 1)
        assert ((p.grad != 0) == touched).all() and (p.grad <= 0).all()


def test_arguments_stay_as_they_are():
    """Nothing that is handed over is changed."""
    H, Q, S, T = (torch.from_numpy(x) for x in example(7))
    copies = [x.clone() for x in (H, Q, S, T)]
    for loss, second in ((seeding_loss, S), (balanced_seeding_loss, S), (pixel_loss, S), (boundary_loss, Q), (expansion_loss, T)):
        loss(H, second)
    assert all(map(torch.equal, (H, Q, S, T), copies))


@pytest.mark.parametrize(("call", "says"), [
    (lambda H, S, T: seeding_loss(H, S[:, :2]), "nearest neighbour"),
    (lambda H, S, T: balanced_seeding_loss(H, S[:, None]), "(B,h,w)"),
    (lambda H, S, T: pixel_loss(H, S[:1]), "(B,h,w)"),
    (lambda H, S, T: seeding_loss(H, S.float()), "uint8 or int64"),
    (lambda H, S, T: seeding_loss(H, S.to(torch.int32)), "uint8 or int64"),
    (lambda H, S, T: seeding_loss(H[0], S), "(B,1+C,h,w)"),
    (lambda H, S, T: seeding_loss((H > 0).long(), S), "(B,1+C,h,w)"),
    (lambda H, S, T: seeding_loss(H.to("meta"), S), "one device"),
    (lambda H, S, T: boundary_loss(H, H[:, :, :2]), "the same"),
    (lambda H, S, T: boundary_loss(H, H, ratio=(20., .05)), "around 1"),
    (lambda H, S, T: expansion_loss(H, T[:, :1]), "a column for each class"),
    (lambda H, S, T: expansion_loss(H, T[:1]), "(B,C)"),
    (lambda H, S, T: expansion_loss(H, T.float()), "bool"),
])
def test_refused(call, says):
    """Another size, type or device is refused at the door, in one line."""
    H, _, S, T = (torch.from_numpy(x) for x in example(8))
    with pytest.raises(DataError) as error:
        call(H, S, T)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("loss", [seeding_loss, balanced_seeding_loss, pixel_loss, boundary_loss, expansion_loss])
def test_no_look_at_values(loss):
    """Works on tensors without values: so nothing in it can make Python wait for a GPU."""
    H, Q, S, T = (torch.from_numpy(x).to("meta") for x in example(9))
    second = {boundary_loss: Q, expansion_loss: T}.get(loss, S)
    assert loss(H, second).shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_says_the_same():
    """The same numbers and gradients on a GPU, and no wait for it."""
    H, Q, S, T = (torch.from_numpy(x) for x in example(10))
    for loss, second in ((seeding_loss, S), (balanced_seeding_loss, S), (pixel_loss, S), (boundary_loss, Q), (expansion_loss, T)):
        cpu, gpu, there = H.clone().requires_grad_(), H.cuda().requires_grad_(), second.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            value = loss(gpu, there)
            value.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loss(cpu, second).backward()
        torch.testing.assert_close(value.cpu(), loss(H, second))
        torch.testing.assert_close(gpu.grad.cpu(), cpu.grad)
