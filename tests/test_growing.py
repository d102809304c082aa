"""Growing: equal to the naive visit on every kind of map, the least fixpoint, its properties, its door."""
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import wsss_nb.growing as growing
from wsss_nb.core import DataError
from wsss_nb.growing import connected, grow, grow_by_flood, grow_by_hooking, growth_rings, propose

ROADS = {"flood": grow_by_flood, "hooking": grow_by_hooking, "grow": grow}


# ---- the naive visit, in Python's own numbers ---------------------------------------------------------------------------

def naive(H, S, T, theta_foreground=.85, theta_background=.99):
    """The paper's visit, image by image, class by class, pixel by pixel; eq. 3 is asked anew each time."""
    grown = S.numpy().copy()
    for values, labels, tags in zip(H.numpy(), grown, T.numpy()):
        allowed = [0] + [c for c in range(1, len(values)) if tags[c - 1]]
        for c in allowed:
            todo = list(zip(*np.nonzero(labels == c)))
            theta = H.numpy().dtype.type(theta_background if c == 0 else theta_foreground)
            while todo:
                y, x = todo.pop()
                for i, j in product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                    if 0 <= i < labels.shape[0] and 0 <= j < labels.shape[1] and labels[i, j] == 255:
                        p = values[:, i, j]
                        if p[c] > theta and all(p[c] > p[d] if d < c else p[c] >= p[d] for d in allowed):
                            labels[i, j] = c
                            todo.append((i, j))
    return grown


def sure_of(label, n, p=.998):
    """Probabilities that are sure of a label map (B,h,w), and undecided at 255."""
    one = label[:, None] == np.arange(n)[:, None, None]
    return torch.from_numpy(np.where((label == 255)[:, None], 1 / n, p * one + (1 - p) / n).astype(np.float32))


def snake(h, w, c=1):
    """A path one pixel wide through the whole map: as many steps as it has pixels."""
    label = np.full((h, w), 255)
    label[::2] = c
    label[1::4, -1] = label[3::4, 0] = c
    return label


def spiral(n, c=1):
    """A path one pixel wide that winds inwards."""
    label, (y, x), (dy, dx) = np.full((n + 4, n + 4), 255), (2, 2), (0, 1)
    label[2, 2] = c
    inside = lambda a, b: 2 <= a < n + 2 and 2 <= b < n + 2
    for _ in range(4 * n):
        while inside(y + dy, x + dx) and label[y + dy, x + dx] == 255 and label[y + 2 * dy, x + 2 * dx] == 255:
            y, x = y + dy, x + dx
            label[y, x] = c
        dy, dx = dx, -dy
    return label[2:-2, 2:-2]


def tags_of(rng, B, n):
    return torch.from_numpy(rng.random((B, n - 1)) < rng.random())


def batch(rng, kind):
    """A batch of one kind as H, S, T; a quarter of them has int64 cues."""
    B, n = int(rng.integers(1, 4)), int(rng.integers(2, 7))
    h, w = {"1x1": (1, 1), "1xn": (1, int(rng.integers(2, 60))), "nx1": (int(rng.integers(2, 60)), 1), "41x41": (41, 41)}.get(kind, rng.integers(2, 24, 2))
    T = torch.ones(B, 0 if kind == "one class" else n - 1, dtype=torch.bool) if kind in ("one class", "snake", "spiral") else tags_of(rng, B, n)
    n = 1 + T.shape[1]
    cues, sure = rng.choice([0, .003, .02, .1, .5]), rng.random()
    if kind == "snake":
        label = np.stack([np.rot90(snake(h, w, int(rng.integers(n))), k) if h == w else snake(h, w, int(rng.integers(n))) for k in range(B)])
    elif kind == "spiral":
        label = np.stack([spiral(int(h), int(rng.integers(n))) for _ in range(B)])
    else:
        sure = {"percolation": .407, "41x41": .407}.get(kind, sure)
        classes = 1 if kind in ("percolation", "41x41") else n       # one class: the whole share percolates
        label = np.where(rng.random((B, h, w)) < sure, rng.integers(n - classes, n, (B, h, w)), 255)
    S = np.where(rng.random(label.shape) < {"no cue": 0, "all cue": 1}.get(kind, cues), rng.integers(0, n, label.shape), 255)
    if kind in ("snake", "spiral"):
        S[:] = 255
        S[:, 0, 0] = label[:, 0, 0]
    H = sure_of(label, n) if kind != "soft" else torch.from_numpy(rng.dirichlet(np.full(n, .1), label.shape)).permute(0, 3, 1, 2).float()
    return H, torch.from_numpy(S.astype(np.int64 if rng.random() < .25 else np.uint8)), T


KINDS = ("any", "soft", "percolation", "41x41", "snake", "spiral", "one class", "no cue", "all cue", "1x1", "1xn", "nx1")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_naive_visit(kind):
    """17 batches of each of twelve kinds, 204 in all; thresholds of the paper, loose ones and switched-off ones. Bit-equal, same type."""
    rng = np.random.default_rng(KINDS.index(kind))
    grew = 0
    for k in range(17):
        H, S, T = batch(rng, kind)
        thetas = [(.85, .99), (.5, .9), (.3, .3), (1., .9), (.85, np.inf)][k % 5]
        want = naive(H, S, T, *thetas)
        for name, road in ROADS.items():
            got = road(H, S, T, *thetas)
            assert got.dtype == S.dtype and np.array_equal(got, want), f"{name}, batch {k} of {kind}"
        grew += (want != S.numpy()).sum()
    assert (grew > 0) == (kind not in ("no cue", "all cue", "1x1"))


@pytest.mark.parametrize("h, w", [(41, 41), (97, 64), (5, 300)])
def test_snakes_and_mazes_beyond(h, w):
    """The whole snake from one end; percolation clusters against scipy's components; larger than the papers' maps."""
    rng = np.random.default_rng(h)
    label = np.stack([snake(h, w), *np.where(rng.random((3, h, w)) < .407, 1, 255)])
    S = np.where(rng.random(label.shape) < .01, 1, 255)
    S[0] = 255
    S[0, 0, 0] = 1
    want = np.full(label.shape, 255)
    for one, cues, out in zip(label, S, want):
        region, _ = ndimage.label((one == 1) | (cues == 1), np.ones((3, 3)))
        out[np.isin(region, region[cues == 1])] = 1
    given = sure_of(label, 2), torch.from_numpy(S), torch.ones(4, 1, dtype=torch.bool)
    assert (want[0] == 1).sum() == (label[0] == 1).sum() > 3 * max(h, w)
    for road in ROADS.values():
        assert np.array_equal(road(*given), want)


def test_large_maps():
    """Several classes at the size of small pictures: both roads agree, and threads that call at once don't disturb each other."""
    rng = np.random.default_rng(0)
    label = np.where(rng.random((4, 150, 150)) < .5, rng.integers(0, 3, (4, 150, 150)), 255)
    S = torch.from_numpy(np.where(rng.random(label.shape) < .01, rng.integers(0, 3, label.shape), 255).astype(np.uint8))
    given = sure_of(label, 3), S, torch.ones(4, 2, dtype=torch.bool)
    want = grow_by_hooking(*given)
    assert torch.equal(grow_by_flood(*given), want)
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(got, want) for got in pool.map(lambda _: grow_by_flood(*given), range(6)))


# ---- regions ------------------------------------------------------------------------------------------------------------

def partition(root, label):
    """Regions in a form that does not depend on their numbers."""
    _, first, inverse = np.unique(np.where(label == 255, -1, root).ravel(), return_index=True, return_inverse=True)
    return first[inverse]


def by_scipy(label):
    """Regions of one label map by scipy, class by class."""
    root = np.full(label.shape, -1)
    for c in np.unique(label[label != 255]):
        region, n = ndimage.label(label == c, np.ones((3, 3)))
        root = np.where(region > 0, root.max() + 1 + region, root)
    return root


def test_regions_are_scipys():
    """Random label maps of every density and shape."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        h, w, n = *rng.integers(1, 30, 2), rng.integers(1, 5)
        label = np.where(rng.random((h, w)) < rng.random(), rng.integers(0, n, (h, w)), 255)
        root = connected(torch.from_numpy(label)[None])[0].numpy()
        assert np.array_equal(partition(root, label), partition(by_scipy(label), label))
        assert (root[label == 255] == np.arange(h * w).reshape(h, w)[label == 255]).all()


def test_the_proof_needs_no_luck_with_numbers(monkeypatch):
    """Whatever order the pairs are numbered in, the rounds suffice."""
    rng, usual = np.random.default_rng(1), growing._touching
    for _ in range(25):
        label = [snake(15, 15), spiral(16), np.where(rng.random((20, 20)) < .407, 1, 255), np.ones((9, 31), int)][rng.integers(4)]
        def shuffled(h, w, device):
            a, b = usual(h, w, device)
            order = torch.from_numpy(rng.permutation(len(a)))
            return a[order], b[order]
        monkeypatch.setattr(growing, "_touching", shuffled)
        root = connected(torch.from_numpy(label)[None])[0].numpy()
        assert np.array_equal(partition(root, label), partition(by_scipy(label), label))


def test_the_bound_is_tight(monkeypatch):
    """A path numbered so that regions only pair up: 64 pixels need all six rounds, and five leave two regions."""
    order = sorted(range(63), key=lambda k: ((k + 1) & -(k + 1), k))      # pairs 0|1, 2|3, … first, then 1|2, 5|6, …
    a = torch.tensor(order)
    monkeypatch.setattr(growing, "_touching", lambda h, w, device: (a, a + 1))
    path = torch.ones(1, 1, 64, dtype=torch.uint8)
    assert [len(connected(path, rounds=k).unique()) for k in range(7)] == [64, 32, 16, 8, 4, 2, 1] and len(connected(path).unique()) == 1


def test_hooking_asks_nothing_of_the_device():
    """Tensors without values go all the way through: no step depends on a value, so nothing waits for a GPU."""
    H, S, T = (torch.empty(shape, dtype=kind, device="meta") for shape, kind in (((2, 4, 41, 41), torch.float32), ((2, 41, 41), torch.uint8), ((2, 3), torch.bool)))
    assert grow(H, S, T).shape == S.shape and grow(H, S.long(), T).dtype == torch.int64
    with pytest.raises((RuntimeError, NotImplementedError)):      # the probe does notice a question
        growth_rings(H, S, T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_equals_cpu_without_synchronising():
    """Bit-equal, and torch itself would raise if the processor waited."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        given = batch(rng, kind)
        there = [x.cuda() for x in given]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = grow(*there, .5, .9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(got.cpu(), grow(*given, .5, .9))


# ---- properties ---------------------------------------------------------------------------------------------------------

def drawn(seed, soft=True):
    """A batch for hypothesis; soft probabilities have no ties."""
    rng = np.random.default_rng(seed)
    B, n, h, w = rng.integers(1, 4), rng.integers(2, 6), *rng.integers(1, 12, 2)
    H = torch.from_numpy(rng.dirichlet(np.full(n, .15), (B, h, w))).permute(0, 3, 1, 2).float()
    S = torch.from_numpy(np.where(rng.random((B, h, w)) < .1, rng.integers(0, n, (B, h, w)), 255).astype(np.uint8))
    return H, S, tags_of(rng, B, n)


seeds = st.integers(0, 10**6)
roads = st.sampled_from(sorted(ROADS))


@given(seeds, roads)
def test_contains_the_cues(seed, road):
    """No cue is ever lost or changed, tagged or not."""
    H, S, T = drawn(seed)
    got = ROADS[road](H, S, T, .4, .6)
    assert (got[S != 255] == S[S != 255]).all()


@given(seeds, roads)
def test_idempotent(seed, road):
    """Growing from the result adds nothing; growing again from the cues gives the same."""
    H, S, T = drawn(seed)
    once = ROADS[road](H, S, T, .4, .6)
    assert torch.equal(ROADS[road](H, once, T, .4, .6), once) and torch.equal(ROADS[road](H, S, T, .4, .6), once)


@given(seeds, roads)
def test_never_adds_an_absent_class(seed, road):
    """New labels are background or tags of the image."""
    H, S, T = drawn(seed)
    got = ROADS[road](H, S, T, .1, .1)
    for one, cues, tags in zip(got, S, T):
        assert set(one[cues == 255].tolist()) <= {0, 255, *(tags.nonzero()[:, 0] + 1).tolist()}


@given(seeds, roads)
def test_permuting_classes_changes_nothing(seed, road):
    """Foreground classes in another order, where no two are equally probable."""
    H, S, T = drawn(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(T.shape[1]))       # new class k is old class order[k]
    new = torch.full((256,), 255, dtype=torch.uint8)
    new[0], new[order + 1] = 0, torch.arange(1, 1 + len(order), dtype=torch.uint8)
    permuted = torch.cat([H[:, :1], H[:, order + 1]], 1), new[S.long()], T[:, order]
    assert torch.equal(ROADS[road](*permuted, .4, .6), new[ROADS[road](H, S, T, .4, .6).long()])


@given(seeds, roads)
def test_flips_and_turns(seed, road):
    """A mirrored or turned image grows mirrored or turned."""
    H, S, T = drawn(seed)
    want = ROADS[road](H, S, T, .4, .6)
    for move in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        assert torch.equal(ROADS[road](move(H), move(S), T, .4, .6), move(want))


@given(seeds, roads)
def test_a_batch_is_its_images(seed, road):
    """Images of a batch know nothing of each other."""
    H, S, T = drawn(seed)
    singles = [ROADS[road](H[[b]], S[[b]], T[[b]], .4, .6) for b in range(len(H))]
    assert torch.equal(torch.cat(singles), ROADS[road](H, S, T, .4, .6))


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_lower_thresholds_never_label_less(seed, a, b):
    """What grows at a threshold grows, with the same label, at any lower one."""
    H, S, T = drawn(seed)
    less, more = grow(H, S, T, max(a, b), max(a, b)), grow(H, S, T, min(a, b), min(a, b))
    assert ((less == more) | (less == 255)).all()


@given(seeds)
def test_rings_are_distances(seed):
    """Ring 0 is the cues; every later pixel touches one of its class in the ring before and none in an earlier one; all of grow's pixels have a ring."""
    H, S, T = drawn(seed)
    grown, rings = grow(H, S, T, .4, .6).numpy(), growth_rings(H, S, T, .4, .6).numpy()
    assert ((rings >= 0) == (grown != 255)).all() and ((rings == 0) == (S.numpy() != 255)).all()
    for (b, y, x), ring in np.ndenumerate(rings):
        if ring > 0:
            around = (b, slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2))
            near = rings[around][(grown[around] == grown[b, y, x]) & (rings[around] >= 0)]
            assert near[near < ring].tolist() and near.min() == ring - 1


# ---- by hand ------------------------------------------------------------------------------------------------------------

def row(text):
    return torch.tensor([[[255 if c == "." else int(c) for c in text]]], dtype=torch.uint8)


@pytest.mark.parametrize("sure, cues, want", [
    ("1111", "1...", "1111"), ("11.1", "1...", "11.."),               # a gap stops it
    ("21111", ".2.1.", "22111"), ("11111", ".2.1.", ".2111"),         # a cue that H denies counts, and is not grown through
    ("1111", "....", "...."), ("0011", "0..1", "0011"), ("1100", "0..1", "0..1")])
def test_rows_by_hand(sure, cues, want):
    """The visit rule on a row of pixels."""
    given = sure_of(row(sure)[0].numpy()[None], 3)[:, :, :1], row(cues), torch.ones(1, 2, dtype=torch.bool)
    for road in ROADS.values():
        assert torch.equal(road(*given), row(want))


def test_corners_touch():
    """A diagonal of single pixels is a chain."""
    label = np.where(np.eye(6, dtype=bool), 1, 255)[None]
    S = torch.full((1, 6, 6), 255, dtype=torch.uint8)
    S[0, 5, 5] = 1
    for road in ROADS.values():
        assert np.array_equal(road(sure_of(label, 2), S, torch.ones(1, 1, dtype=torch.bool)), label)


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_is_exceeded_not_met(road, dtype):
    """H equal to theta, as H's own numbers hold it, does not grow; the next larger number does."""
    S, T = row("1."), torch.tensor([[True]])
    for theta in (.85, .1, .7):
        exact = torch.tensor(theta, dtype=dtype)
        for p, want in ((exact, "1."), (torch.nextafter(exact, torch.tensor(1., dtype=dtype)), "11")):
            H = torch.stack([torch.zeros(2, dtype=dtype), p.expand(2)]).view(1, 2, 1, 2)
            assert torch.equal(road(H, S, T, theta, .99), row(want))


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_ties_go_to_the_lowest_class(road):
    """Background first, then the lower number; absent classes do not take part."""
    H = torch.tensor([.3, .3, .3]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    both, second = torch.tensor([[True, True]]), torch.tensor([[False, True]])
    assert torch.equal(road(H, row("0."), both, .2, .2), row("00")) and torch.equal(road(H, row("1."), both, .2, .2), row("1."))
    H = torch.tensor([.1, .4, .4]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    assert torch.equal(road(H, row("1."), both, .2, .2), row("11")) and torch.equal(road(H, row("2."), both, .2, .2), row("2."))
    assert torch.equal(road(H, row("2."), second, .2, .2), row("22"))


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_a_side_switched_off(road):
    """One, more, or infinity; also where rounding made a probability larger than one."""
    H = torch.tensor([[1.0000001, 1.0000001, 0, 0], [0, 0, 1.0000001, 1.0000001]]).view(1, 2, 1, 4)
    T = torch.tensor([[True]])
    for off in (1, 1., 1.5, float("inf")):
        assert torch.equal(road(H, row("0..1"), T, off, .99), row("00.1"))
        assert torch.equal(road(H, row("0..1"), T, .85, off), row("0.11"))
        assert torch.equal(road(H, row("0..1"), T, off, off), row("0..1"))


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_cues_of_absent_classes_stay(road):
    """They are the caller's word; nothing joins them, however sure H is."""
    H = sure_of(row("2222")[0].numpy()[None], 3)[:, :, :1]
    for S in (row("2..0"), row("2..0").long(), row("2..9")):
        assert torch.equal(road(H, S, torch.tensor([[True, False]]), .5, .5), S)


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_nan_never_grows(road):
    """A pixel with one NaN among its allowed classes stays as it is; other pixels don't mind."""
    H = sure_of(row("1111")[0].numpy()[None], 3)[:, :, :1].clone()
    H[0, 0, 0, 2] = torch.nan
    T = torch.tensor([[True, False]])
    assert torch.equal(road(H, row("1..."), T), row("11.."))
    later = sure_of(row("0000")[0].numpy()[None], 3)[:, :, :1].clone()
    later[0, 1, 0, 2] = torch.nan              # of a class that is looked at after the most probable one
    assert torch.equal(road(later, row("0..."), T), row("00.."))
    H[0, 0, 0, 2], H[0, 2] = 0, torch.nan      # of a class that is not allowed
    assert torch.equal(road(H, row("1..."), T), row("1111"))


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_arguments_stay_and_no_gradient_comes(road):
    """A new tensor; neither H nor S is written to; strange strides are read rightly."""
    H, S, T = drawn(5)
    H = H.contiguous(memory_format=torch.channels_last).requires_grad_()
    before = [x.detach().clone() for x in (H, S, T)]
    got = road(H, S, T, .3, .3)
    assert not got.requires_grad and got.data_ptr() != S.data_ptr() and got.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(before, (H.detach(), S, T)))
    assert np.array_equal(got, naive(H.detach(), S, T, .3, .3))
    shifted = S.new_full((*S.shape, 2), 7)
    shifted[..., 1] = S
    assert torch.equal(road(H, shifted[..., 1], T, .3, .3), got)
    got[:] = 3
    assert torch.equal(S, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Half numbers are compared as floats."""
    H, S, T = drawn(11)
    assert torch.equal(grow(H.to(dtype), S, T, .4, .6), grow(H.to(dtype).float(), S, T, .4, .6))


@pytest.mark.parametrize("B, C", [(0, 3), (2, 0)])
def test_nothing_to_grow(B, C):
    """An empty batch; a data set without classes."""
    given = torch.full((B, 1 + C, 3, 4), 1 / (1 + C)), torch.full((B, 3, 4), 255, dtype=torch.uint8), torch.ones(B, C, dtype=torch.bool)
    for road in ROADS.values():
        assert torch.equal(road(*given), given[1])


def test_proposals_by_hand():
    """Eq. 3 at five pixels: strictly above theta, background's own theta, absent classes out."""
    H = torch.tensor([[.995, .97, .10, .05, .05], [.004, .02, .88, .80, .05], [.001, .01, .02, .15, .90]]).view(1, 3, 1, 5)
    assert propose(H, torch.tensor([[True, False]])).flatten().tolist() == [0, 255, 1, 255, 255]
    assert propose(H, torch.tensor([[False, True]])).flatten().tolist() == [0, 255, 255, 255, 2]


# ---- the door -----------------------------------------------------------------------------------------------------------

H0, S0, T0 = torch.full((2, 3, 4, 5), 1 / 3), torch.full((2, 4, 5), 255, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize("given, words", [
    ((H0.long(), S0, T0), "H is torch.int64"), ((H0[0], S0, T0), "H is torch.float32 of shape"), ((H0[:, :2], S0, T0), "a channel for background"),
    ((H0[:1], S0, T0), "H is"), ((H0, S0.float(), T0), "cues S are torch.float32"), ((H0, S0.bool(), T0), "cues S are torch.bool"),
    ((H0, S0[:, :3], T0), "nearest label"), ((H0, S0[:, None], T0), "one by one"), ((H0, S0, T0.float()), "tags T are"),
    ((H0, S0.to("meta"), T0), "one device"), ((H0, S0, T0, -.1), "the thresholds are"), ((H0, S0, T0, .85, float("nan")), "the thresholds are"),
    ((torch.zeros(1, 300, 2, 2), S0[:1, :2, :2], torch.ones(1, 299, dtype=torch.bool)), "H is")])
def test_refused_in_one_line(given, words):
    """What, expected, mend."""
    with pytest.raises(DataError) as error:
        grow(*given)
    assert words in str(error.value) and "; expected " in str(error.value) and "\n" not in str(error.value)
