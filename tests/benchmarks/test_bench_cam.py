"""Class activation maps: one einsum against the loop over pixels of the definition, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_cam.py -s
"""
import time

import numpy as np
import pytest
import torch

from wsss_nb.cam import class_activation


def per_pixel(features, weight, T):
    "A dot product at every place for every tagged class."
    M = torch.zeros(len(features), len(weight), *features.shape[2:])
    for b, c in T.nonzero().tolist():
        for y in range(features.shape[2]):
            for x in range(features.shape[3]):
                M[b, c, y, x] = max(0., float(weight[c] @ features[b, :, y, x]))
        M[b, c] /= M[b, c].max().clamp(min=1e-12)
    return M


def per_class(features, weight, T):
    "Weights times features, summed, for every class: what many repositories write."
    M = torch.stack([(features * w[:, None, None]).sum(1) for w in weight], 1).relu() * T[:, :, None, None]
    return M / M.amax((2, 3), keepdim=True).clamp(min=1e-12)


def seconds(make, *parts, times=5):
    "The best of some runs, and the maps."
    best = []
    for _ in range(times):
        start = time.perf_counter()
        maps = make(*parts)
        best.append(time.perf_counter() - start)
    return min(best), maps


@pytest.mark.parametrize("D, C, side", [(64, 6, 38), (1024, 20, 41)], ids=["small network", "VGG16 at 41x41"])
def test_ratio_to_the_loops(D, C, side):
    "Print the times and ratios; the maps are equal."
    g = torch.Generator().manual_seed(0)
    parts = torch.randn(4, D, side, side, generator=g), torch.randn(C, D, generator=g), torch.rand(4, C, generator=g) < .2
    ours, maps = seconds(class_activation, *parts)
    loop, expected = seconds(per_pixel, *parts, times=1)
    stack, also = seconds(per_class, *parts, times=2)
    np.testing.assert_allclose(maps, expected, atol=1e-4)
    np.testing.assert_allclose(maps, also, atol=1e-4)
    print(f"\n{D} features, {C} classes, {side}x{side}, batch 4: einsum {ours * 1e3:.2f} ms, loop over classes {stack * 1e3:.1f} ms ({stack / ours:.0f} times), "
          f"loop over pixels {loop * 1e3:.0f} ms ({loop / ours:.0f} times)")
