"""How fast cues are made, against the loops that say the same, and what a picture costs. Asserts no time.

    pytest tests/benchmarks/test_bench_cues.py -s
"""
import time

import numpy as np
import torch

from wsss_nb.core import generator
from wsss_nb.cues import merge_cues, snap_to_superpixels, threshold_counts, threshold_cues
from wsss_nb.evaluation import confusion
from wsss_nb.saliency import robust_background
from wsss_nb.stored import read_seeds, write_seeds
from wsss_nb.superpixels import felzenszwalb, slic

SIZE, C, VOID = (375, 500), 20, 255


def picture(h: int = SIZE[0], w: int = SIZE[1]) -> np.ndarray:
    """A photograph's statistics, roughly: smooth noise at several scales, and two discs."""
    rng, (y, x) = generator(0, "bench"), np.mgrid[:h, :w]
    image = np.zeros((h, w, 3))
    for step in (4, 16, 64):
        coarse = rng.normal(0, 12 * np.log2(step) / 2, (-(-h // step), -(-w // step), 3))
        image += coarse.repeat(step, 0).repeat(step, 1)[:h, :w]
    for k in range(2):
        image[np.hypot(y - h * (.4 + .2 * k), x - w * (.3 + .4 * k)) < h / 5] += rng.normal(0, 60, 3)
    return (120 + image).clip(0, 255).astype(np.uint8)


def maps():
    """Smooth maps of 20 classes of which two are tagged, and a saliency."""
    rng = generator(1, "bench")
    cam = torch.nn.functional.interpolate(torch.tensor(rng.random((1, C, 12, 16))).float(), SIZE, mode="bilinear")
    saliency = torch.nn.functional.interpolate(torch.tensor(rng.random((1, 1, 12, 16))).float(), SIZE, mode="bilinear")[:, 0] / 4
    T = torch.zeros(1, C, dtype=torch.bool)
    T[0, [3, 11]] = True
    return cam, saliency, T


def seconds(call, times: int = 5) -> float:
    """The best of a few calls."""
    best = np.inf
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def loop_threshold(cam, saliency, T):
    """Class by class and then pixel by pixel where two want it, as scripts of the field do."""
    S = np.full(SIZE, VOID, np.uint8)
    claims = {0: saliency[0] < .06} | {1 + c: cam[0, c] > .2 * cam[0, c].max() for c in np.flatnonzero(T[0])}
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            wants = [c for c, where in claims.items() if where[y, x]]
            if len(wants) == 1:
                S[y, x] = wants[0]
    return S


def loop_snap(cam, segments):
    """A mask for each region, for each map."""
    out = np.zeros_like(cam[0])
    for s in range(segments.max() + 1):
        here = segments == s
        for c in range(C):
            out[c][here] = cam[0, c][here].mean()
    return out


def loop_merge(a, b):
    """Pixel by pixel."""
    out = np.full(a.shape, VOID, np.uint8)
    for place in np.ndindex(a.shape):
        said = {int(m[place]) for m in (a, b)} - {VOID}
        if len(said) == 1:
            out[place] = said.pop()
    return out


def report(what: str, slow: float, fast: float) -> None:
    """One line."""
    print(f"\n{what}: loop {1e3 * slow:.1f} ms, here {1e3 * fast:.2f} ms, {slow / fast:.0f} times as fast", end="")


def test_ratio_to_loops():
    """Thresholds, snapping, merging and the curve of one picture of VOC's size; the results are equal."""
    cam, saliency, T = maps()
    segments = felzenszwalb(picture())
    on_numpy = cam.numpy(), saliency.numpy(), T.numpy()
    S = threshold_cues(cam, saliency, T)
    np.testing.assert_array_equal(S[0], loop_threshold(*on_numpy))
    report("threshold", seconds(lambda: loop_threshold(*on_numpy), 1), seconds(lambda: threshold_cues(cam, saliency, T)))
    pieces = torch.from_numpy(segments)[None]
    np.testing.assert_allclose(snap_to_superpixels(cam, pieces)[0], loop_snap(on_numpy[0], segments), atol=1e-5)
    report(f"snap 20 maps to {segments.max() + 1} superpixels", seconds(lambda: loop_snap(on_numpy[0], segments), 1), seconds(lambda: snap_to_superpixels(cam, pieces)))
    other = threshold_cues(cam.flip(3), saliency, T)
    np.testing.assert_array_equal(merge_cues(S, other)[0], loop_merge(S[0].numpy(), other[0].numpy()))
    report("merge two", seconds(lambda: loop_merge(S[0].numpy(), other[0].numpy()), 1), seconds(lambda: merge_cues(S, other)))

    thresholds, target = np.linspace(0, .95, 20), S.clone()

    def curve():
        return [confusion(threshold_cues(cam, torch.ones_like(saliency), T, t), target, 1 + C, partial=True) for t in thresholds]
    counts = threshold_counts(cam, target, T, thresholds)
    assert [N.diagonal()[1:].tolist() for N in curve()] == counts[0].T.tolist()
    report("curve of 20 thresholds", seconds(curve, 2), seconds(lambda: threshold_counts(cam, target, T, thresholds), 2))


def test_cost_of_a_picture(tmp_path):
    """Superpixels, saliency, writing and reading of twelve seeds."""
    image, big = picture(), picture(2000, 3000)
    cam, saliency, T = maps()
    S = np.concatenate([threshold_cues(cam, saliency, T, .1 + .05 * k) for k in range(12)])
    write = lambda: write_seeds(tmp_path, "a", S, [f"c{k}" for k in range(C)], [f"seed {k}" for k in range(12)])
    costs = {"felzenszwalb": lambda: felzenszwalb(image), "slic": lambda: slic(image), "robust_background": lambda: robust_background(image),
             "robust_background 2000×3000": lambda: robust_background(big), "write 12 seeds": write, "read 12 seeds": lambda: read_seeds(tmp_path / "a.npz")}
    for name, call in costs.items():
        print(f"\n{name}: {1e3 * seconds(call, 3):.1f} ms", end="")
    print(f"\n12 seeds of 500×375: {(tmp_path / 'a.npz').stat().st_size} bytes")


def test_bench_threshold(benchmark):
    """For pytest-benchmark's table."""
    benchmark.pedantic(threshold_cues, maps(), rounds=20, warmup_rounds=2)


def test_bench_robust_background(benchmark):
    """For pytest-benchmark's table."""
    benchmark.pedantic(robust_background, (picture(),), rounds=5, warmup_rounds=1)
