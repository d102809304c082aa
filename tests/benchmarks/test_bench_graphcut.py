"""How fast the graph and its cuts are against the ways one would write them first, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_graphcut.py -s
    python tests/benchmarks/test_bench_graphcut.py

A batch of 16 maps of 41×41 (1,681 nodes) with 21 classes, one to three of them present, and nine neighbours, as in DGCN's
training. Times are measured alternately, one core, and the ratio printed is that of the best of each. All ways give the same
neighbours and cuts, which is asserted.
"""
import math
import time

import maxflow
import numpy as np
import pytest
import torch

from wsss_nb.core import generator
from wsss_nb.graphcut import LINK, cut_image, graph_cut, join_features, nearest, pairs_of
from wsss_nb.losses import balanced_seeding_loss

B, CLASSES, SIZE, K = 16, 21, (41, 41), 9


def smooth(rng, channels, size, width=6):
    "Random maps with patches, as features and probabilities have them, and a little noise."
    coarse = torch.from_numpy(rng.normal(size=(B, channels, -(-size[0] // width) + 1, -(-size[1] // width) + 1)).astype(np.float32))
    fine = torch.from_numpy(rng.normal(size=(B, channels, *size)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear") + .3 * fine


def batch(channels, cues, size=SIZE):
    "H, features, S, T; a share of the pixels has a cue, in patches, most of them background's."
    rng = generator(0, "graph cut", channels)
    T = np.zeros((B, CLASSES - 1), bool)
    for tags in T:
        tags[rng.choice(CLASSES - 1, rng.integers(1, 4), replace=False)] = True
    allowed = torch.from_numpy(np.concatenate([np.ones((B, 1), bool), T], 1))[:, :, None, None]
    H = (2 * smooth(rng, CLASSES, size)).masked_fill(~allowed, -4).softmax(1)
    known = smooth(rng, 1, size)[:, 0]
    known = known <= known.flatten(1).quantile(cues, dim=1)[:, None, None]
    best = torch.where(allowed, H, 0).argmax(1)
    S = torch.where(known, best, 255).to(torch.uint8)
    return H, smooth(rng, channels, size).clamp_min(0), S, torch.from_numpy(T)


def by_cdist(features):
    "All distances, and the nine smallest; the pixel itself is pushed away."
    x = features.flatten(2).transpose(1, 2)
    far = torch.cdist(x, x)
    far.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return far.topk(K, largest=False).indices


def pairs_by_sets(near):
    "The union of both directions, choice by choice."
    return sorted({(min(p, q), max(p, q)) for p, row in enumerate(near.tolist()) for q in row})


def cuts_by_loops(H, S, T, pairs):
    "A graph for each present class, a node and an edge at a time, cues as nodes."
    foreground = np.zeros(H.shape, bool)
    for c in np.flatnonzero(T) + 1:
        graph = maxflow.GraphFloat(len(S), len(pairs))
        graph.add_nodes(len(S))
        for p in range(len(S)):
            if S[p] == 255:
                graph.add_tedge(p, -math.log(1 - H[c, p]), -math.log(H[c, p]))
            else:
                graph.add_tedge(p, 1e7 * (S[p] == c), 1e7 * (S[p] != c))
        for p, q in pairs:
            graph.add_edge(p, q, LINK, LINK)
        graph.maxflow()
        foreground[c] = [graph.get_segment(p) == 0 for p in range(len(S))]
    return foreground


def cuts_by_arrays(H, S, T, pairs):
    "The same graph from arrays: cues are still nodes."
    foreground, capacity = np.zeros(H.shape, bool), np.full(len(pairs), LINK)
    free, p = S == 255, H.astype(float)
    for c in np.flatnonzero(T) + 1:
        graph = maxflow.GraphFloat(len(S), len(pairs))
        nodes = graph.add_nodes(len(S))
        graph.add_edges(pairs[:, 0], pairs[:, 1], capacity, capacity)
        graph.add_grid_tedges(nodes, np.where(free, -np.log(1 - p[c]), 1e7 * (S == c)), np.where(free, -np.log(p[c]), 1e7 * (S != c)))
        graph.maxflow()
        foreground[c] = ~graph.get_grid_segments(nodes)
    return foreground


def alternately(*functions, rounds=5):
    "Best seconds of each on the clock; long ones less often."
    best = [math.inf] * len(functions)
    for k in range(rounds):
        for i, function in enumerate(functions):
            if k < 2 or best[i] < 1:
                start = time.perf_counter()
                function()
                best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.fixture(autouse=True)
def one_core():
    "As a worker beside a training has it."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cues", [0., .24, .75])
def test_cut(cues):
    "The cuts of a batch: without cues, with VOC's share of them (24 %), with ToyVOC's."
    H, features, S, T = batch(64, cues)
    near = nearest(features, K).numpy()
    h, s, tags = H.flatten(2).numpy(), S.flatten(1).numpy(), T.numpy()
    ties, listed = [pairs_of(one) for one in near], [pairs_by_sets(one) for one in near]
    ours = lambda: [cut_image(*one) for one in zip(h, s, tags, ties)]
    for way, pairs in ((cuts_by_loops, listed), (cuts_by_arrays, ties)):
        assert all(np.array_equal(a[1:][t], b[1:][t]) for a, b, t in zip(ours(), map(way, h, s, tags, pairs), tags)), way
    fast, loops, arrays, union, sets = alternately(ours, lambda: [cuts_by_loops(*one) for one in zip(h, s, tags, listed)], lambda: [cuts_by_arrays(*one) for one in zip(h, s, tags, ties)],
                                                   lambda: [pairs_of(one) for one in near], lambda: [pairs_by_sets(one) for one in near])
    print(f"\n{cues:.0%} of pixels have a cue, {tags.sum() / B:.1f} classes an image: ties and cuts {1e3 * (fast + union) / B:.2f} ms an image, loops over choices and edges {(loops + sets) / (fast + union):.1f} times as long; "
          f"ties alone {1e3 * union / B:.2f} ms and {sets / union:.0f} times; cuts alone {1e3 * fast / B:.2f} ms and {loops / fast:.1f} times, arrays with cues as nodes {arrays / fast:.2f}")


@pytest.mark.parametrize("channels", [88, 512, 2048])
def test_neighbours(channels):
    "The nine nearest of each pixel, in a batch, against torch.cdist and topk; and the one product that a GPU computes."
    from wsss_nb.graphcut import _nearest_by_topk
    features = batch(channels, .24)[1]
    x = features.flatten(2).transpose(1, 2)
    x = x - x.mean(1, keepdim=True)
    distance = lambda near: torch.stack([(one[:, None] - one[of]).norm(dim=2).sort(1).values for one, of in zip(x[:2, :, :64], near[:2])])
    product = lambda: torch.stack([_nearest_by_topk(image, K) for image in x])
    for near in (nearest(features, K), product()):
        assert (near.sort(2).values == by_cdist(features).sort(2).values).float().mean() > .999 and distance(near).shape == (2, 1681, K)
    ours, cdist, topk = alternately(lambda: nearest(features, K), lambda: by_cdist(features), product, rounds=4)
    print(f"\n{channels} channels: neighbours {1e3 * ours / B:.1f} ms an image; cdist and topk {cdist / ours:.2f} times as long, one product and topk {topk / ours:.2f}")


@pytest.mark.parametrize("channels", [88, 512, 2048])
def test_parts(channels):
    "Where the milliseconds of an image go, and of a training's update with the toy network at ToyVOC's size."
    H, features, S, T = batch(channels, .24)
    near = nearest(features, K).numpy()
    h, s, tags, ties = H.flatten(2).numpy(), S.flatten(1).numpy(), T.numpy(), [pairs_of(one) for one in near]
    parts = alternately(lambda: join_features([features], SIZE), lambda: nearest(features, K), lambda: [pairs_of(one) for one in near],
                        lambda: [cut_image(*one) for one in zip(h, s, tags, ties)], lambda: graph_cut(H, features, S, T), rounds=3)
    print(f"\n{channels} channels, ms an image: " + ", ".join(f"{name} {1e3 * part / B:.2f}" for name, part in zip(("join and scale", "neighbours", "ties", "cuts", "graph_cut in all (without joining)"), parts)))


def test_part_of_an_update():
    "A step of the small network on 16 pictures of 164×164, whose maps are 41×41, alone and with the cut on two of its layers."
    from wsss_nb.segmenter import segmenter
    torch.manual_seed(0)
    network, (H, _, S, T) = segmenter("small", CLASSES, weights="random"), batch(88, .24)
    image = torch.randn(B, 3, 164, 164)
    def update():
        network.zero_grad()
        balanced_seeding_loss(network(image).softmax(1), S).backward()
    layers = list(network.eval().taps(image, ("trunk.block1", "trunk.block3")).values())
    step, cut = alternately(update, lambda: graph_cut(H, join_features(layers, SIZE), S, T), rounds=3)
    print(f"\na batch of {B}: forward and backward {1e3 * step:.0f} ms, graph cut {1e3 * cut:.0f} ms, {cut / (step + cut):.0%} of both")


def test_gpu():
    "Neighbours on a GPU, and how long the CPU needs for the rest."
    if not torch.cuda.is_available():
        print("\nno GPU here, nothing measured")
        return
    for channels in (512, 2048):
        there = [x.cuda() for x in batch(channels, .24)]
        def done(function, *given):
            function(*given)
            torch.cuda.synchronize()
        near, cdist, whole = alternately(lambda: done(nearest, there[1], K), lambda: done(by_cdist, there[1]), lambda: done(graph_cut, *there))
        print(f"\n{channels} channels on {torch.cuda.get_device_name()}, ms an image: neighbours {1e3 * near / B:.2f} (cdist {cdist / near:.2f} times), graph_cut in all {1e3 * whole / B:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cues in (0., .24, .75):
        test_cut(cues)
    for channels in (88, 512, 2048):
        test_neighbours(channels)
        test_parts(channels)
    test_part_of_an_update()
    test_gpu()
