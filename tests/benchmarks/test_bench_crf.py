"""How fast the CRF's engines are, against pydensecrf, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_crf.py -s
    python tests/benchmarks/test_bench_crf.py

Real crops are used where WSSS_NB_DATA names the folder that holds them, drawn pictures elsewhere. Every pair of times
is measured alternately, and the ratio printed is that of the best of each.
"""
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from wsss_nb.core import generator
from wsss_nb.crf import mean_field

CLASSES, MASK, FULL = 21, (41, 41), (375, 500)


def pictures(n, h, w):
    "Photographs, or discs on a gradient where there are none."
    folder = Path(os.environ.get("WSSS_NB_DATA", "nowhere"), "coco_sample", "images")
    if folder.is_dir():
        files = sorted(folder.iterdir())
        drawn = [Image.open(files[k % len(files)]).convert("RGB") for k in range(n)]
    else:
        drawn = [disc(generator(0, "bench", k)) for k in range(n)]
    return np.stack([np.array(picture.resize((w, h), Image.Resampling.BILINEAR)) for picture in drawn])


def disc(rng):
    "A picture with a horizon, three discs and grain."
    picture = Image.fromarray(np.linspace((150, 190, 220), (90, 150, 80), 375).astype(np.uint8)[:, None].repeat(500, 1))
    for x, y, r in rng.integers(40, 340, (3, 3)):
        ImageDraw.Draw(picture).ellipse((x, y, x + r, y + r), fill=tuple(rng.integers(0, 255, 3)))
    return Image.fromarray((np.asarray(picture) + rng.normal(0, 6, (375, 500, 3))).clip(0, 255).astype(np.uint8))


def probabilities(n, h, w, present=None):
    "Softmax of enlarged noise; with `present`, only so many classes are strong."
    z = torch.from_numpy(2 * generator(1, "bench", h).normal(size=(n, CLASSES, 9, 9))).float()
    if present:
        z[:, present:] -= 14
    return torch.nn.functional.interpolate(z, (h, w), mode="bilinear").softmax(1)


def one_pydensecrf(p, picture, scale):
    "As its users write it."
    import pydensecrf.densecrf as dcrf
    C, h, w = p.shape
    crf = dcrf.DenseCRF2D(w, h, C)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(p.clip(1e-5, 1)).reshape(C, -1)))
    crf.addPairwiseGaussian(sxy=3 / scale, compat=3)
    crf.addPairwiseBilateral(sxy=80 / scale, srgb=13, rgbim=picture, compat=10)
    return np.array(crf.inference(10)).reshape(C, h, w)


def theirs(H, photos, scale, threads=1):
    "pydensecrf on a batch."
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(one_pydensecrf, H.numpy(), photos, [scale] * len(H))))


def alternately(*functions, rounds=5):
    "Best seconds of each, after one call to warm up."
    best = [np.inf] * len(functions)
    for k in range(rounds + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start) if k else np.inf
    return best


CASES = {"16 crops of 41×41": (16, MASK, 12, {}, None), "500×375": (1, FULL, 1, {}, None),
         "500×375, 5 of 21 classes": (1, FULL, 1, {}, 5), "500×375, 5 of 21 classes, classes_above": (1, FULL, 1, {"classes_above": .01}, 5)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_ratio_to_pydensecrf(name, threads):
    "Print pydensecrf's time, numba's, and their ratio with the same number of threads; the classes agree."
    pytest.importorskip("pydensecrf", reason="pydensecrf is an extra: pip install 'wsss_nb[crf]'")
    n, size, scale, options, present = CASES[name]
    n = n if n > 1 else threads
    photos, H = pictures(n, *size), probabilities(n, *size, present)
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    ours = lambda: mean_field(H, images, scale=scale, engine="numba", threads=threads, **options)
    same = (ours().numpy().argmax(1) == theirs(H, photos, scale).argmax(1)).mean()
    theirs_s, ours_s = alternately(lambda: theirs(H, photos, scale, threads), ours, rounds=5 if size == MASK else 3)
    print(f"\n{name}, {threads} thread{'s' * (threads > 1)}: pydensecrf {1e3 * theirs_s / n:.1f} ms an image, numba {1e3 * ours_s / n:.1f} ms, "
          f"{theirs_s / ours_s:.2f} times as fast; {same:.4%} of pixels agree")


@pytest.mark.parametrize("engine", ["lattice", "exact"])
def test_other_engines_on_the_cpu(engine, n=4):
    "What the tensor engines cost without a GPU."
    photos, H = pictures(n, *MASK), probabilities(n, *MASK)
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    numba, other = alternately(*(lambda engine=e: mean_field(H, images, scale=12, engine=engine, threads=1) for e in ("numba", engine)), rounds=2)
    print(f"\n{engine} on this CPU at 41×41: {1e3 * other / n:.1f} ms an image, numba {1e3 * numba / n:.1f} ms")


@pytest.mark.parametrize("engine", ["lattice", "exact"])
def test_gpu(engine, n=20):
    "A batch of 20 on the GPU against one CPU core."
    if not torch.cuda.is_available():
        print(f"\n{engine} on a GPU: no GPU here, nothing measured")
        return
    photos, H = pictures(n, *MASK), probabilities(n, *MASK)
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()
    H_gpu, images_gpu = H.cuda(), images.cuda()
    def gpu():
        Q = mean_field(H_gpu, images_gpu, scale=12, engine=engine)
        torch.cuda.synchronize()
        return Q
    cpu_s, gpu_s = alternately(lambda: mean_field(H, images, scale=12, engine="numba", threads=1), gpu)
    same = (gpu().cpu().argmax(1) == mean_field(H, images, scale=12, engine="numba").argmax(1)).float().mean()
    print(f"\n{engine} on {torch.cuda.get_device_name()}: a batch of {n} in {1e3 * gpu_s:.2f} ms, numba on one core {1e3 * cpu_s:.1f} ms, "
          f"{cpu_s / gpu_s:.1f} times as fast; {same:.4%} of pixels agree")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        import pydensecrf  # noqa: F401
    except ImportError:
        print("pydensecrf is not installed (pip install 'wsss_nb[crf]'): no ratio to it")
    else:
        for threads in (1, 2):
            for name in CASES:
                test_ratio_to_pydensecrf(name, threads)
    for engine in ("lattice", "exact"):
        test_other_engines_on_the_cpu(engine)
        test_gpu(engine)
