"""How fast growing is against the ways one would write it first, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_growing.py -s
    python tests/benchmarks/test_bench_growing.py

A batch of 16 maps of 41×41 with 21 classes, as in DSRG's training. Every set of times is measured alternately, short calls
several in a row, and the ratio printed is that of the best of each. All ways give the same labels, which is asserted.
"""
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import ndimage

from wsss_nb.core import allowed_classes, generator
from wsss_nb.growing import grow, grow_by_flood, grow_by_hooking, propose

B, CLASSES, SIZE, THETAS = 16, 21, (41, 41), (np.float32(.85), np.float32(.99))
# share of sure pixels, the width of their patches, share of cues and the width of theirs; SEC's cues of VOC label 24 %
KINDS = {"grows little": (.3, 2, .24, 5), "grows over half": (.97, 6, .02, 1), "percolation": (.407, 1, .02, 1), "snake": (1, 0, 0, 0)}


def blobs(rng, n, h, w, size):
    "Which of n things a pixel is: patches about `size` pixels wide, or single pixels."
    coarse = rng.integers(0, n, (-(-h // size) + 1, -(-w // size) + 1))
    return coarse.repeat(size, 0).repeat(size, 1)[:h, :w]


def snake(h, w):
    "A path one pixel wide through the whole map."
    label = np.full((h, w), -1)
    label[::2] = 1
    label[1::4, -1] = label[3::4, 0] = 1
    return label


def batch(kind, n=B, size=SIZE):
    "H, S, T: images with one to three tags; a share of the pixels is sure of an allowed class, in patches."
    rng, (share, patch, known, block) = generator(0, "bench", kind), KINDS[kind]
    T, H, S = np.zeros((n, CLASSES - 1), bool), np.full((n, CLASSES, *size), 1 / CLASSES, np.float32), np.full((n, *size), 255, np.uint8)
    for tags, h, s in zip(T, H, S):
        tags[rng.choice(CLASSES - 1, rng.integers(1, 4), replace=False)] = True
        allowed = np.concatenate([[0], 1 + np.flatnonzero(tags)])
        label = allowed[blobs(rng, len(allowed), *size, patch)] if patch else np.where(snake(*size) < 0, -1, allowed[1])
        label[rng.random(size) >= share] = -1
        where = label >= 0
        h[:, where] = .002 / CLASSES
        h[label[where], *np.nonzero(where)] += .998
        cues = blobs(rng, 1000, *size, block) < 1000 * known if patch else np.arange(size[0] * size[1]).reshape(size) == 0
        s[cues] = np.where(label >= 0, label, allowed[blobs(rng, len(allowed), *size, 5)])[cues]
    return torch.from_numpy(H), torch.from_numpy(S), torch.from_numpy(T)


def visit(H, S, T):
    "The paper's visit in plain Python; eq. 3 is computed with numpy beforehand, which is kind to it."
    grown = S.numpy().copy()
    for h, s, allowed in zip(H.numpy(), grown, allowed_classes(T).numpy()):
        sure = proposals(h, np.flatnonzero(allowed)).tolist()
        labels = s.tolist()
        todo = [(y, x, c) for y, row in enumerate(labels) for x, c in enumerate(row) if c != 255]
        for y, x, c in todo:
            for i in (y - 1, y, y + 1):
                for j in (x - 1, x, x + 1):
                    if 0 <= i < len(labels) and 0 <= j < len(labels[0]) and labels[i][j] == 255 and sure[i][j] == c:
                        labels[i][j] = c
                        todo.append((i, j, c))
        s[:] = labels
    return grown


def visit_as_written(H, S, T):
    "The same, asking eq. 3 at each pixel when it is visited, as the paper words it."
    grown = S.numpy().copy()
    for h, s, allowed in zip(H.numpy(), grown, allowed_classes(T).numpy()):
        classes = np.flatnonzero(allowed)
        for c in classes:
            todo = list(zip(*np.nonzero(s == c)))
            for y, x in todo:
                for i in range(max(0, y - 1), min(s.shape[0], y + 2)):
                    for j in range(max(0, x - 1), min(s.shape[1], x + 2)):
                        if s[i, j] == 255 and h[c, i, j] > THETAS[int(c == 0)] and classes[h[classes, i, j].argmax()] == c:
                            s[i, j] = c
                            todo.append((i, j))
    return grown


def proposals(h, classes):
    "Eq. 3 of one image in numpy, reading only the allowed channels."
    h = h[classes]
    best = h.argmax(0)
    p = np.take_along_axis(h, best[None], 0)[0]
    return np.where(p > np.where(best == 0, THETAS[1], THETAS[0]), classes[best], 255)


def per_class(H, S, T):
    "scipy.ndimage.label for each allowed class that has a cue, on the label map; components are looked up in a table."
    grown, eight = S.numpy().copy(), np.ones((3, 3), int)
    for h, s, allowed in zip(H.numpy(), grown, allowed_classes(T).numpy()):
        label = np.where(s == 255, proposals(h, np.flatnonzero(allowed)), s)
        for c in np.flatnonzero(allowed):
            cues = s == c
            if cues.any():
                region, n = ndimage.label(label == c, eight)
                held = np.zeros(n + 1, bool)
                held[region[cues]] = True
                s[held[region]] = c
    return grown


def alternately(*functions, rounds=12, clock=time.process_time):
    "Best seconds of each, of the processor unless told otherwise; a short one is called several times in a row, a long one less often."
    def seconds(function, calls=1):
        start = clock()
        for _ in range(calls):
            function()
        return (clock() - start) / calls
    best = [min(seconds(function) for _ in range(2)) for function in functions]
    calls = [max(1, int(.005 / one)) for one in best]
    for k in range(rounds):
        best = [min(one, seconds(function, n)) if k < 3 or one < .05 else one for one, function, n in zip(best, functions, calls)]
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_ratios(kind):
    "Print the time of grow on one core, and how many times as long the visit and scipy take."
    given = batch(kind)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        want = grow(*given).numpy()
        for way in (visit, visit_as_written, per_class, grow_by_hooking):
            assert np.array_equal(way(*given), want), way
        ours, plain, written, scipy, hooking = alternately(*(lambda way=way: way(*given) for way in (grow, visit, visit_as_written, per_class, grow_by_hooking)))
        far = given[0].contiguous(memory_format=torch.channels_last)
        last, = alternately(lambda: grow(far, *given[1:]))
    finally:
        torch.set_num_threads(threads)
    print(f"\n{kind}, from {(given[1] != 255).float().mean():.0%} to {(want != 255).mean():.0%} labelled: grow {1e3 * ours:.2f} ms a batch of {B}; "
          f"the Python visit {written / ours:.0f} times as long, with eq. 3 beforehand {plain / ours:.0f}, scipy per class {scipy / ours:.1f}, "
          f"hooking on the CPU {hooking / ours:.0f}; grow from channels last {1e3 * last:.2f} ms")


@pytest.mark.parametrize("size", [(41, 41), (160, 160), (321, 321)])
def test_threads(size, n=8):
    "When threads pay: the batch at once against one image a thread."
    given = batch("grows over half", n, size)
    with ThreadPoolExecutor(2) as pool:
        one, two = alternately(lambda: [grow_by_flood(*(x[[b]] for x in given)) for b in range(n)],
                               lambda: list(pool.map(lambda b: grow_by_flood(*(x[[b]] for x in given)), range(n))), rounds=5, clock=time.perf_counter)
    print(f"\n{n} maps of {size[0]}×{size[1]}, one image a call: {1e3 * one:.2f} ms on one thread, {1e3 * two:.2f} ms on two")


def test_gpu():
    "The same batch on a GPU, and how long the processor needs to hand the work over."
    if not torch.cuda.is_available():
        print("\nno GPU here, nothing measured")
        return
    for kind in KINDS:
        given = batch(kind)
        there = [x.cuda() for x in given]
        assert torch.equal(grow(*there).cpu(), grow(*given))
        def done():
            grow(*there)
            torch.cuda.synchronize()
        def sure():
            propose(*there[::2])
            torch.cuda.synchronize()
        cpu, gpu, three = alternately(lambda: grow(*given), done, sure, clock=time.perf_counter)
        print(f"\n{kind} on {torch.cuda.get_device_name()}: {1e3 * gpu:.2f} ms, eq. 3 of it {1e3 * three:.2f} ms; one core {1e3 * cpu:.2f} ms")


if __name__ == "__main__":
    for kind in KINDS:
        test_ratios(kind)
    for size in ((41, 41), (160, 160), (321, 321)):
        test_threads(size)
    test_gpu()
