"""How fast the referee counts, against the usual numpy histogram, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_evaluation.py -s                 # 120 maps of 500x375
    python tests/benchmarks/test_bench_evaluation.py --maps 1449        # VOC's whole validation set
"""
import time

import numpy as np
import pytest

from wsss_nb.core import generator
from wsss_nb.evaluation import confusion

N_CLASSES, VOID, SIZE = 21, 255, (375, 500)


def fast_hist(prediction, target, n):
    "The field's usual helper (score.py of FCN): mask, then bincount."
    mask = (target >= 0) & (target < n)
    return np.bincount(n * target[mask].astype(int) + prediction[mask], minlength=n**2).reshape(n, n)


def objects(k):
    "As a real mask: background, three discs with a band of 255 around, and a prediction that slipped."
    rng, (y, x) = generator(0, "bench", k), np.mgrid[:SIZE[0], :SIZE[1]]
    target = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        distance = np.hypot(y - rng.integers(SIZE[0]), x - rng.integers(SIZE[1]))
        radius = rng.integers(30, 120)
        target[distance < radius] = rng.integers(1, N_CLASSES)
        target[abs(distance - radius) < 2.5] = VOID
    prediction = np.roll(target, (4, 7), (0, 1))
    prediction[prediction == VOID] = 0
    return prediction, target


def noise(k):
    "Every pixel for itself, with some 255s."
    rng = generator(1, "bench", k)
    target = rng.integers(0, N_CLASSES + 1, SIZE, dtype=np.uint8)
    target[target == N_CLASSES] = VOID
    return rng.integers(0, N_CLASSES, SIZE, dtype=np.uint8), target


def constant(k):
    "One pair everywhere: the worst case of a single histogram."
    return np.full(SIZE, k % N_CLASSES, np.uint8), np.full(SIZE, 0, np.uint8)


def seconds(count, make, n_maps, distinct=40):
    "Time to count n_maps maps (of which `distinct` differ), and the sum of their tables."
    maps = [make(k) for k in range(min(n_maps, distinct))]
    count(*maps[0], N_CLASSES)   # compile
    start, total = time.perf_counter(), np.zeros((N_CLASSES, N_CLASSES), np.int64)
    for k in range(n_maps):
        total += count(*maps[k % len(maps)], N_CLASSES)
    return time.perf_counter() - start, total


@pytest.mark.parametrize("make", [objects, noise, constant], ids=lambda make: make.__name__)
def test_ratio_to_the_usual_histogram(make, n_maps=120):
    "Print both times and their ratio; the tables are equal."
    usual, expected = seconds(fast_hist, make, n_maps)
    ours, table = seconds(confusion, make, n_maps)
    np.testing.assert_array_equal(table, expected)
    print(f"\n{make.__name__}: {n_maps} maps of {SIZE[1]}x{SIZE[0]}: fast_hist {usual:.2f} s, confusion {ours:.2f} s, {usual / ours:.1f} times as fast")


@pytest.mark.parametrize("make", [objects, noise], ids=lambda make: make.__name__)
def test_bench_confusion(benchmark, make):
    "One map, for pytest-benchmark's table."
    prediction, target = make(0)
    benchmark.pedantic(confusion, (prediction, target, N_CLASSES), rounds=30, warmup_rounds=2)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=1449)
    n_maps = parser.parse_args().maps
    for make in (objects, noise, constant):
        test_ratio_to_the_usual_histogram(make, n_maps)
