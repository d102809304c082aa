"""Graph cut: the cheapest cut by brute force, equal to loops over edges and to networkx, its properties, its neighbours, its door."""
import math
from itertools import product

import maxflow
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.core import DataError
from wsss_nb.graphcut import LINK, _nearest_by_halves, _nearest_by_topk, cut_image, graph_cut, join_features, min_cut, nearest, pairs_of

ROADS = {"topk": _nearest_by_topk, "halves": _nearest_by_halves}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


# ---- the paper, in Python's own loops -----------------------------------------------------------------------------------

def log_capacity(p):
    """−log p, finite at 0."""
    return -math.log(max(float(p), 2.2250738585072014e-308))


def neighbours_of(x, K):
    """The K nearest of each row of (n,D) in float64, and the union of both directions as a set of pairs."""
    far = ((x[:, None].astype(float) - x[None].astype(float)) ** 2).sum(2)
    np.fill_diagonal(far, np.inf)
    near = far.argsort(1, kind="stable")[:, :min(K, len(x) - 1)]
    return {(min(p, q), max(p, q)) for p, row in enumerate(near.tolist()) for q in row}


def cut_by_networkx(H, S, pairs, c, link):
    """One class: a source, a sink, a node for each pixel; cues hang on links without a limit."""
    graph = nx.DiGraph()
    graph.add_nodes_from(["S", "T"])
    for p in range(len(S)):
        if S[p] == 255:
            graph.add_edge("S", p, capacity=log_capacity(1 - float(H[c, p])))
            graph.add_edge(p, "T", capacity=log_capacity(H[c, p]))
        else:
            graph.add_edge(*(("S", p) if S[p] == c else (p, "T")))
    for p, q in pairs:
        graph.add_edge(p, q, capacity=link)
        graph.add_edge(q, p, capacity=link)
    _, (with_source, _) = nx.minimum_cut(graph, "S", "T")
    return np.array([p in with_source for p in range(len(S))])


def cut_by_edges(H, S, pairs, c, link):
    """One class, a node and an edge at a time; a cue costs more than all the rest."""
    graph = maxflow.GraphFloat()
    graph.add_nodes(len(S))
    dear = 1e7
    for p in range(len(S)):
        if S[p] == 255:
            graph.add_tedge(p, log_capacity(1 - float(H[c, p])), log_capacity(H[c, p]))
        elif S[p] == c:
            graph.add_tedge(p, dear, 0)
        else:
            graph.add_tedge(p, 0, dear)
    for p, q in pairs:
        graph.add_edge(p, q, link, link)
    graph.maxflow()
    return np.array([graph.get_segment(p) == 0 for p in range(len(S))])


def naive(H, features, S, T, K=9, theta=.7, theta_background=None, link=2.302585092994046, cut=cut_by_edges):
    """DGCN 3.3, image by image, class by class, pixel by pixel."""
    labels = S.numpy().copy()
    for h, f, out, tags in zip(H.numpy(), features.numpy(), labels, T.numpy()):
        h, cues = h.reshape(len(h), -1), out.ravel().copy()
        pairs = neighbours_of(f.reshape(len(f), -1).T, K)
        cuts = {c: cut(h, cues, pairs, c, link) for c in range(1, len(h)) if tags[c - 1]}
        for p in range(len(cues)):
            if cues[p] == 255:
                claims = {c: h[c, p] for c, held in cuts.items() if held[p] and h[c, p] > np.asarray(theta, h.dtype)}
                if theta_background is not None and h[0, p] > np.asarray(theta_background, h.dtype):
                    claims[0] = h[0, p]
                if claims:
                    out.flat[p] = max(sorted(claims), key=claims.get)
    return labels


def drawn(seed, h=7, w=6, B=2, n=4, D=5, cues=.2, sharp=.5):
    """Random images: H, features, S, T."""
    rng = np.random.default_rng(seed)
    H = torch.from_numpy(rng.dirichlet(np.full(n, sharp), (B, h, w))).permute(0, 3, 1, 2).float()
    S = torch.from_numpy(np.where(rng.random((B, h, w)) < cues, rng.integers(0, n, (B, h, w)), 255).astype(np.uint8))
    features = torch.from_numpy(rng.normal(size=(B, D, h, w)).astype(np.float32))
    return H, features, S, torch.from_numpy(rng.random((B, n - 1)) < .6)


# ---- min cut ------------------------------------------------------------------------------------------------------------

def test_the_cheapest_of_all_labellings():
    """500 random graphs of up to 12 nodes with random seeds: no labelling costs less than the cut, and the cut costs what it says."""
    rng = np.random.default_rng(0)
    seeds = 0
    for _ in range(500):
        n = int(rng.integers(1, 13))
        source, sink, link = rng.exponential(size=n), rng.exponential(size=n), rng.choice([0., .1, .5, 2.3])
        held = rng.random(n)
        source[held < .15], sink[held > .85] = 1e4, 1e4            # seeds of both sides
        seeds += ((held < .15) | (held > .85)).sum()
        every = [pair for pair in product(range(n), repeat=2) if pair[0] < pair[1]]
        pairs = np.array([pair for pair in every if rng.random() < .4] or np.zeros((0, 2)), dtype=int).reshape(-1, 2)
        x = np.array(list(product((False, True), repeat=n)))
        cost = np.where(x, sink, source).sum(1) + link * (x[:, pairs[:, 0]] != x[:, pairs[:, 1]]).sum(1)
        found, value = min_cut(source, sink, pairs, link)
        assert found.dtype == bool and found.shape == (n,)
        assert np.isclose(value, cost.min(), rtol=1e-9) and np.isclose(cost[(x == found).all(1)][0], cost.min(), rtol=1e-9)
        best = x[np.isclose(cost, cost.min(), rtol=0, atol=1e-12)]
        assert (found >= best).all()                               # of equals the one with the most foreground
    assert seeds > 500


def test_one_pixel():
    """{p,S} = −log(1−H), {p,T} = −log H: a likely pixel is foreground, and what is cut is −log H; table 1 as printed says the opposite."""
    unlike, like, no_pairs = np.array([-math.log(.1)]), np.array([-math.log(.9)]), np.zeros((0, 2), int)
    assert min_cut(unlike, like, no_pairs)[0].tolist() == [True] and math.isclose(min_cut(unlike, like, no_pairs)[1], .10536051565782628)
    assert min_cut(like, unlike, no_pairs)[0].tolist() == [False]
    for p, want in ((.9, 1), (.71, 1), (.69, 255), (.1, 255)):
        H = torch.tensor([1 - p, p]).view(1, 2, 1, 1)
        got = graph_cut(H, torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), 255, dtype=torch.uint8), torch.tensor([[True]]))
        assert got.item() == want


def test_no_nodes_no_pairs():
    """Nothing to cut costs nothing; without pairs each node decides alone, and a draw is foreground."""
    assert min_cut(np.zeros(0), np.zeros(0), np.zeros((0, 2), int))[0].shape == (0,)
    found, value = min_cut(np.array([1., 2., 3.]), np.array([2., 1., 3.]), np.zeros((0, 2), int))
    assert found.tolist() == [False, True, True] and value == 1 + 1 + 3


# ---- equal to the loops -------------------------------------------------------------------------------------------------

def tags_and_parameters(k):
    """Parameters of the k-th case: K, theta, theta_background, link."""
    return [(9, .7, None, LINK), (9, 0., None, .5), (4, .3, .6, LINK), (12, .2, .1, .1), (1, .5, None, 8.)][k % 5]


def clear_features(rng, K, n=1681):
    """Features whose K nearest are no matter of rounding, and the union of everyone's choices."""
    while True:
        x = torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32))
        far, near = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf).topk(K + 1, largest=False)
        if (far[:, K] - far[:, K - 1]).min() > 1e-5:
            return x, {(min(p, q), max(p, q)) for p, row in enumerate(near[:, :K].tolist()) for q in row}


def test_equals_loops_over_nodes_and_edges():
    """100 random cases of 41×41: neighbours in float64, cuts an edge at a time, labels pixel by pixel."""
    rng = np.random.default_rng(1)
    changed = 0
    for k in range(100):
        K, theta, theta_background, link = tags_and_parameters(k // 4)
        if k % 4 == 0:
            x, pairs = clear_features(rng, K)
        H, _, S, T = drawn(1000 + k, 41, 41, B=1, n=int(rng.integers(2, 5)), cues=rng.choice([0, .05, .4, .7]))
        got = graph_cut(H, x.T.reshape(1, 8, 41, 41), S, T, K, theta, theta_background, link)
        want = naive_with(pairs, H, S, T, theta, theta_background, link)
        assert got.dtype == S.dtype and np.array_equal(got, want), k
        changed += (want != S.numpy()).sum()
    assert changed > 10000


def naive_with(pairs, H, S, T, theta, theta_background, link, cut=cut_by_edges):
    """`naive` for one image whose pairs are known."""
    h, cues, out = H[0].flatten(1).numpy(), S[0].flatten().numpy(), S[0].flatten().numpy().copy()
    cuts = {c: cut(h, cues, pairs, c, link) for c in range(1, len(h)) if T[0, c - 1]}
    for p in np.flatnonzero(cues == 255):
        claims = {c: h[c, p] for c, held in cuts.items() if held[p] and h[c, p] > np.float32(theta)}
        if theta_background is not None and h[0, p] > np.float32(theta_background):
            claims[0] = h[0, p]
        out[p] = max(sorted(claims), key=claims.get) if claims else 255
    return out.reshape(S.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_networkx(dtype):
    """Forty smaller batches, features in several dimensions, another program for the cut."""
    for k in range(20):
        H, features, S, T = drawn(k, sharp=(.3, 1.)[k % 2])
        H = H.to(dtype)
        given = H, features, S if k % 3 else S.long(), T
        want = naive(*given, *tags_and_parameters(k), cut=cut_by_networkx)
        assert np.array_equal(graph_cut(*given, *tags_and_parameters(k)), want), k


def test_each_cut_is_a_cut():
    """`cut_image` before any threshold: rows of present classes as networkx cuts them, absent ones hold their cues alone."""
    for k in range(20):
        H, features, S, T = drawn(50 + k, B=1)
        h, s, tags = H[0].flatten(1).numpy(), S[0].flatten().numpy(), T[0].numpy()
        pairs = neighbours_of(features[0].flatten(1).numpy().T, 5)
        got = cut_image(h, s, tags, np.array(sorted(pairs)), 1.)
        assert np.array_equal(got[0], s == 0)
        for c in range(1, len(h)):
            assert np.array_equal(got[c], cut_by_networkx(h, s, pairs, c, 1.) if tags[c - 1] else s == c)


# ---- by hand ------------------------------------------------------------------------------------------------------------

def line(p, cues, features, **kwargs):
    """A row of pixels with probabilities of class 1, as text."""
    H = torch.tensor([[1 - x for x in p], p]).view(1, 2, 1, -1)
    S = torch.tensor([255 if c == "." else int(c) for c in cues], dtype=torch.uint8).view(1, 1, -1)
    got = graph_cut(H, torch.tensor(features).view(1, 1, 1, -1), S, torch.tensor([[True]]), **kwargs)
    return "".join("." if c == 255 else str(c) for c in got.flatten().tolist())


def test_a_tie_wins_against_the_network():
    """A chain of three, a cue at its head, H .4: giving two up saves 2·(.916 − .511) = .811 and tears one tie: 2.303 is too dear, .1 is not."""
    alike = [0., .1, .21, 9., 9.1]                               # nearest: 1–2, 3→2, 4–5
    assert line([.9, .4, .4, .4, .4], "1...0", alike, neighbours=1, theta=0.) == "111.0"
    assert line([.9, .4, .4, .4, .4], "1...0", alike, neighbours=1, theta=0., link=.1) == "1...0"
    assert line([.9, .4, .4, .4, .4], "1...0", alike, neighbours=1, theta=.45) == "1...0"        # the second witness refuses
    assert line([.9, .6, .6, .6, .6], "1...0", alike, neighbours=1, theta=.5) == "111.0"         # the fourth is like the cue of background


def test_mutual_pairs_are_tied_once():
    """A cue and a pixel of H .2 chose each other. Holding it costs log(.8/.2) = 1.386: more than one tie of 1, less than two."""
    assert line([.9, .2], "1.", [0., 1.], neighbours=1, theta=0., link=1.) == "1."
    assert line([.9, .2], "1.", [0., 1.], neighbours=1, theta=0., link=1.5) == "11"


def test_cues_of_other_classes_push():
    """A free pixel tied to a cue of class 2 and to none of its own is not class 1, though H says .6; to its own cue it is."""
    H = torch.tensor([[.1, .1], [.6, .1], [.3, .8]]).view(1, 3, 1, 2)
    S, T, features = torch.tensor([[[255, 2]]], dtype=torch.uint8), torch.tensor([[True, True]]), torch.tensor([0., 1.]).view(1, 1, 1, 2)
    assert graph_cut(H, features, S, T, theta=.5).tolist() == [[[255, 2]]]
    assert graph_cut(H, features, S, T, theta=.2).tolist() == [[[2, 2]]]                         # the cut of 2 holds it
    assert graph_cut(H, features, torch.tensor([[[255, 1]]]), T, theta=.5).tolist() == [[[1, 1]]]


def test_larger_probability_wins():
    """A class against background, both accepted; and two classes of one half each, the only pixel that two cuts can hold: the lower number."""
    S, T, features = torch.tensor([[[255, 1]]]), torch.tensor([[True, True]]), torch.zeros(1, 1, 1, 2)
    for p, want in (((.45, .40, .15), 0), ((.40, .45, .15), 1)):                                 # held by its tie to the cue
        H = torch.tensor([p, p]).T.reshape(1, 3, 1, 2)
        assert graph_cut(H, features, S, T, theta=.3, theta_background=.3).tolist() == [[[want, 1]]]
        assert graph_cut(H, features, S, T, theta=.3).tolist() == [[[1, 1]]]
    half = torch.tensor([0., .5, .5]).view(1, 3, 1, 1)
    assert graph_cut(half, features[..., :1], S[..., :1], T, theta=.4).item() == 1
    assert graph_cut(half, features[..., :1], S[..., :1], torch.tensor([[False, True]]), theta=.4).item() == 2


@pytest.mark.parametrize("theta", [.7, .3, .9])
def test_a_threshold_is_exceeded_not_met(theta):
    """H equal to theta as H holds it is refused; the next larger number is taken. One class, so the cut holds both (or by its cue)."""
    exact = torch.tensor(theta)
    for p, want in ((exact, 255), (torch.nextafter(exact, torch.tensor(1.)), 1)):
        H = torch.stack([torch.stack([1 - p, torch.tensor(.01)]), torch.stack([p, torch.tensor(.99)])]).view(1, 2, 1, 2)
        got = graph_cut(H, torch.zeros(1, 1, 1, 2), torch.tensor([[[255, 1]]]), torch.tensor([[True]]), theta=theta)
        assert got.flatten().tolist() == [want, 1]


# ---- properties ---------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10**6)


@settings(max_examples=60)
@given(seeds, st.floats(0, 1), st.sampled_from([0., .3, .7]))
def test_raising_a_class_never_loses_it(seed, how_far, theta):
    """H of c raised at one pixel, the others renormalised: what was c there stays c, and the cut of c loses no pixel anywhere."""
    H, features, S, T = drawn(seed, B=1)
    T[:] = True
    before, rng = graph_cut(H, features, S, T, 5, theta), np.random.default_rng(seed)
    labelled = ((before != 255) & (before != 0) & (S == 255)).nonzero()
    if not len(labelled):
        return
    _, y, x = labelled[rng.integers(len(labelled))].tolist()
    c = before[0, y, x].item()
    raised = H.clone().double()
    raised[0, :, y, x] *= 1 - how_far
    raised[0, c, y, x] += how_far
    after = graph_cut(raised.float(), features, S, T, 5, theta)
    assert after[0, y, x] == c
    pairs = pairs_of(nearest(features, 5)[0].numpy())
    cuts = [cut_image(one[0].flatten(1).numpy(), S[0].flatten().numpy(), T[0].numpy(), pairs)[c] for one in (H, raised.float())]
    assert (cuts[1] >= cuts[0]).all()


@settings(max_examples=60)
@given(seeds, st.sampled_from([.05, .5, 2.3, 20.]))
def test_two_cuts_never_hold_one_pixel(seed, link):
    """Taking what both hold from both tears no more ties and believes the network better, as H_c + H_d < 1."""
    H, features, S, T = drawn(seed, B=1, n=5, cues=.1)
    pairs = np.array(sorted(neighbours_of(features[0].flatten(1).numpy().T, 4)))
    cuts = cut_image(H[0].flatten(1).numpy(), S[0].flatten().numpy(), np.ones(4, bool), pairs, link)
    assert cuts.sum(0).max() <= 1


@settings(max_examples=60)
@given(seeds)
def test_cues_stay_and_absent_classes_never_appear(seed):
    """Whatever the thresholds, with cues of absent classes and of numbers no class has."""
    H, features, S, T = drawn(seed)
    S[0, 0, 0] = 77
    for theta, theta_background in ((0., None), (.7, .5)):
        got = graph_cut(H, features, S, T, 4, theta, theta_background)
        assert (got[S != 255] == S[S != 255]).all()
        for one, cues, tags in zip(got, S, T):
            allowed = {255, *(tags.nonzero()[:, 0] + 1).tolist()} | ({0} if theta_background else set())
            assert set(one[cues == 255].tolist()) <= allowed


@settings(max_examples=30)
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_lower_thresholds_never_label_less(seed, a, b):
    """Pixels accepted at a threshold are accepted, as something, at any lower one; images know nothing of each other."""
    H, features, S, T = drawn(seed)
    less, more = graph_cut(H, features, S, T, 5, max(a, b)), graph_cut(H, features, S, T, 5, min(a, b))
    assert ((less == more) | (less == 255)).all()
    assert torch.equal(torch.cat([graph_cut(H[[b]], features[[b]], S[[b]], T[[b]], 5, a) for b in range(len(H))]), graph_cut(H, features, S, T, 5, a))


# ---- neighbours ---------------------------------------------------------------------------------------------------------

def distances(x, near):
    """Sorted distances to the chosen, in float64."""
    return np.sort(np.linalg.norm(x[:, None].astype(float) - x[near].astype(float), axis=2), axis=1)


@pytest.mark.parametrize("D, shape", [(1, (1, 2)), (3, (5, 4)), (64, (9, 9)), (512, (12, 11)), (2048, (10, 10))])
@pytest.mark.parametrize("K", [1, 5, 9])
def test_nearest_equals_cdist(D, shape, K):
    """As sets, from distances in float64 whose gaps are wider than float32's errors; relu features far from zero; both roads."""
    rng = np.random.default_rng(D + K)
    features = torch.from_numpy((np.maximum(rng.normal(size=(2, D, *shape)), -.5) + 3).astype(np.float32))
    got = nearest(features, K)
    assert got.dtype == torch.int64 and got.shape == (2, shape[0] * shape[1], min(K, shape[0] * shape[1] - 1))
    for x, near in zip(features.flatten(2).transpose(1, 2), got):
        far = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        want = far.topk(got.shape[2], largest=False)
        centred = x - x.mean(0)
        for found in (near, *(road(centred, got.shape[2]) for road in ROADS.values())):
            assert np.allclose(distances(x.numpy(), found.numpy()), want.values.sort(1).values.numpy(), rtol=1e-5, atol=1e-6)
            last = far.sort(1).values
            clear = last[:, got.shape[2]] - last[:, got.shape[2] - 1] > 1e-4 if got.shape[2] < len(x) else torch.ones(len(x), dtype=torch.bool)
            assert torch.equal(found.sort(1).values[clear], want.indices.sort(1).values[clear]) and clear.any()


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 15, 16, 17, 63, 65, 130])
def test_both_roads_at_every_size(n):
    """Blocks that do and don't divide the number of pixels."""
    x = torch.from_numpy(np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32))
    for K in {1, min(9, n - 1), n - 1}:
        a, b = (road(x, K).sort(1).values for road in ROADS.values())
        assert torch.equal(a, b) and not (a == torch.arange(n)[:, None]).any()


@pytest.mark.parametrize("K", [8, 9, 1000])
def test_as_many_neighbours_as_there_are(K):
    """K from the number of others upwards: all others, each once."""
    for near in nearest(torch.randn(1, 4, 3, 3), K)[0].sort(1).values:
        assert len(near) == 8 and len(set(near.tolist())) == 8
    assert len(pairs_of(nearest(torch.randn(1, 4, 3, 3), K)[0].numpy())) == 36
    H, features, S, T = drawn(3, 3, 3)
    assert np.array_equal(graph_cut(H, features, S, T, K, .2), naive(H, features, S, T, K, .2))


def test_all_pairs_of_a_whole_map():
    """41×41 with all others as neighbours: the union needs a table of n², not n³."""
    near = np.array([[q for q in range(1681) if q != p] for p in range(1681)])
    assert len(pairs_of(near)) == 1681 * 1680 // 2


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_equal_features(road):
    """All distances 0: K different others each, never the pixel itself; twins find each other."""
    for near, p in zip(road(torch.zeros(20, 5), 9), range(20)):
        assert len(set(near.tolist())) == 9 and p not in near.tolist()
    twins = torch.arange(10.).repeat_interleave(2)[:, None] * 7
    assert road(twins - twins.mean(), 1)[:, 0].tolist() == [p ^ 1 for p in range(20)]


def test_equal_features_are_cut():
    """An image of one colour goes through the door and keeps its cues."""
    H, features, S, T = drawn(0)
    got = graph_cut(H, torch.ones_like(features) * 1e5, S, T, theta=.1)
    assert torch.equal(got[S != 255], S[S != 255])


def test_no_neighbours():
    """K = 0: every pixel for itself; the cut of c holds where H_c is at least one half."""
    H, features, S, T = drawn(4)
    got = graph_cut(H, features, S, T, neighbours=0, theta=.5)
    best = torch.where((H[:, 1:] > .5) & T[:, :, None, None], H[:, 1:], 0).max(1)
    assert torch.equal(got.long(), torch.where(S != 255, S.long(), torch.where(best.values > 0, best.indices + 1, 255)))


def test_pairs_are_the_union():
    """By hand, and as sets on random choices, each pair once."""
    assert sorted(sorted(pair) for pair in pairs_of(np.array([[1], [2], [1], [0]])).tolist()) == [[0, 1], [0, 3], [1, 2]]
    rng = np.random.default_rng(0)
    for n in (2, 5, 30):
        near = np.array([rng.choice([q for q in range(n) if q != p], min(4, n - 1), replace=False) for p in range(n)])
        want = sorted({(min(p, q), max(p, q)) for p in range(n) for q in near[p].tolist()})
        assert sorted(tuple(sorted(pair)) for pair in pairs_of(near).tolist()) == want
    assert pairs_of(np.zeros((4, 0), int)).shape == (0, 2)


def test_join_features():
    """Sizes made one, layers in order, mean length 1 in each image; unscaled ones as they were; a layer of zeros stays zero; no gradient."""
    a, b = torch.randn(2, 3, 8, 8) * torch.tensor([1., 50.]).view(2, 1, 1, 1), torch.randn(2, 5, 4, 4, requires_grad=True)
    joined = join_features([a, b], (4, 4))
    assert joined.shape == (2, 8, 4, 4) and not joined.requires_grad and joined.dtype == torch.float32
    for part in (joined[:, :3], joined[:, 3:]):
        assert torch.allclose(part.norm(dim=1).mean((1, 2)), torch.ones(2))
    plain = join_features([a, b], (4, 4), scaled=False)
    assert torch.equal(plain[:, 3:], b) and torch.allclose(plain[:, :3], a.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)), atol=1e-4)     # halving averages 2×2
    assert torch.equal(join_features([torch.zeros(1, 2, 3, 3)], (3, 3)), torch.zeros(1, 2, 3, 3))
    assert join_features([a.half(), b.bfloat16()], (4, 4)).dtype == torch.float32
    with pytest.raises(DataError, match="no layer was named"):
        join_features([], (4, 4))


# ---- the door -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("label", [255, 0, 1])
def test_cues_of_one_kind_or_none(label):
    """No cue at all; background or one class everywhere, or in one corner."""
    H, features, S, T = drawn(6)
    T[:] = True
    whole, corner = torch.full_like(S, label), torch.full_like(S, 255)
    corner[:, 0, 0] = label
    for cues in (whole, corner):
        got = graph_cut(H, features, cues, T, 5, .3)
        assert np.array_equal(got, naive(H, features, cues, T, 5, .3))
    if label != 255:
        assert torch.equal(graph_cut(H, features, whole, T), whole)


def test_certain_probabilities():
    """H of exactly 0 and 1 has finite links; a sure pixel is held, a pixel of 0 never accepted; rounding above 1 is no error."""
    H, features, S, T = drawn(7)
    H = torch.nn.functional.one_hot(H.argmax(1), H.shape[1]).permute(0, 3, 1, 2).float()
    T[:] = True
    with np.errstate(divide="raise", invalid="raise"):           # no logarithm of 0 on the way
        got = graph_cut(H, features, S, T, 5)
    want = torch.where(S != 255, S.long(), torch.where(H.argmax(1) > 0, H.argmax(1), 255))        # 708 for a sure pixel; no ten ties of 2.3 are dearer
    assert torch.equal(got.long(), want)
    assert torch.equal(graph_cut(H * 1.000001, features, S, T, 5), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """H and features of half precision: as the same numbers in float32."""
    H, features, S, T = drawn(8)
    low = H.to(dtype), features.to(dtype)
    assert torch.equal(graph_cut(*low, S, T, 5, .3), graph_cut(*(x.float() for x in low), S, T, 5, .3))
    assert np.array_equal(graph_cut(*low, S, T, 5, .3), naive(*(x.float() for x in low), S, T, 5, .3))


def test_arguments_stay_and_no_gradient_comes():
    """A new tensor of S's type; nothing is written to; strange strides are read rightly."""
    H, features, S, T = drawn(9)
    want = graph_cut(H, features, S, T, 5, .3)
    given = [H.contiguous(memory_format=torch.channels_last).requires_grad_(), features.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(), S, T]
    before = [x.detach().clone() for x in given]
    got = graph_cut(*given, 5, .3)
    assert torch.equal(got, want) and not got.requires_grad and got.dtype == S.dtype and got.data_ptr() != S.data_ptr()
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, given)) and given[0].grad is None
    assert graph_cut(H, features, S.long(), T, 5, .3).dtype == torch.int64
    near = nearest(features.requires_grad_(), 3)
    assert not near.requires_grad


def test_empty_batch():
    """No image: no labels, and a tensor of its own."""
    H, features, S, T = (x[:0] for x in drawn(0))
    got = graph_cut(H, features, S, T)
    assert got.shape == S.shape and got.dtype == S.dtype and nearest(features).shape == (0, 42, 9)


NAN, INF = float("nan"), float("inf")


def spoilt(k, change):
    """A batch whose k-th part is changed."""
    parts = list(drawn(0))
    parts[k] = change(parts[k].clone())
    return parts


def filled(value):
    def change(x):
        x[0, 0, 0, 0] = value
        return x
    return change


@pytest.mark.parametrize("given, kwargs, words", [
    (spoilt(1, filled(NAN)), {}, "features hold NaN.*smaller learning rate"), (spoilt(1, filled(INF)), {}, "infinity"), (spoilt(1, filled(1e30)), {}, "overflow"),
    (spoilt(0, filled(NAN)), {}, "H holds NaN.*softmax"), (spoilt(0, filled(-.1)), {}, "below 0"), (spoilt(0, filled(3.)), {}, "above 1"),
    (spoilt(0, lambda x: x[:, :, :3]), {}, "shrink the labels"), (spoilt(1, lambda x: x[:, :, :3]), {}, "resizes them"), (spoilt(1, lambda x: x[:1]), {}, "resizes them"),
    (spoilt(2, lambda x: x[0]), {}, r"S has shape \(7, 6\)"), (spoilt(2, lambda x: x.float()), {}, "uint8 or int64"), (spoilt(2, lambda x: x.int()), {}, "uint8 or int64"),
    (spoilt(3, lambda x: x.float()), {}, "a bool tensor"), (spoilt(3, lambda x: x[:, :2]), {}, "H has a channel for background"), (spoilt(3, lambda x: x[:1]), {}, "for tags"),
    (spoilt(0, lambda x: (x * 9).long()), {}, "floats"), (spoilt(1, lambda x: x.long()), {}, "features are torch.int64"),
    (spoilt(2, lambda x: x.to("meta")), {}, "one device"), (drawn(0), {"neighbours": -1}, "neighbours is -1"),
    (drawn(0), {"theta": 1.5}, "theta is 1.5"), (drawn(0), {"theta": NAN}, "theta is nan"), (drawn(0), {"link": -1.}, "link -1"), (drawn(0), {"link": INF}, "finite capacity"),
    (drawn(0), {"theta_background": -.5}, "theta_background -0.5"), (drawn(0), {"theta_background": NAN}, "theta_background nan")])
def test_bad_input(given, kwargs, words):
    """Refused in one line that names what, what was expected and the mend."""
    with pytest.raises(DataError, match=words) as caught:
        graph_cut(*given, **kwargs)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value) and "To mend it" in str(caught.value)


# ---- on a GPU -----------------------------------------------------------------------------------------------------------

@cuda
def test_gpu_equals_cpu():
    """Labels of a batch on a GPU, where its neighbours are found: the same, and on its device."""
    given = drawn(11, 20, 20, D=16)
    got = graph_cut(*(x.cuda() for x in given), 5, .3)
    assert got.is_cuda and torch.equal(got.cpu(), graph_cut(*given, 5, .3))


@cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_half_precision(dtype):
    """Features under autocast's types: distances are still computed in float32."""
    _, features, _, _ = drawn(12, 20, 20, D=64)
    low = features.to(dtype)
    for x, a, b in zip(low, nearest(low.cuda(), 5).cpu(), nearest(low, 5)):
        x = x.float().flatten(1).T.numpy()
        assert np.allclose(distances(x, a.numpy()), distances(x, b.numpy()), atol=1e-3)
