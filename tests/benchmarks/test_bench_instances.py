"""What instances cost on disk, against COCO's own program and the format's loop. Asserts no time.

    pytest tests/benchmarks/test_bench_instances.py -s
"""
import json
import time
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from wsss_nb.coco import decode_runs, unpack_counts
from wsss_nb.core import generator
from wsss_nb.instance_scores import mask_iou
from wsss_nb.instances import proxy_mask, read_instances, write_instances
from wsss_nb.packing import encode_mask
from wsss_nb.tagged import Instances, mask_boxes

SIZE, IMAGES, EACH = (375, 500), 1000, 3


def blob(k: int) -> np.ndarray:
    """An object with a ragged outline, a tenth of a photograph."""
    rng, (y, x) = generator(0, "blob", k), np.mgrid[:SIZE[0], :SIZE[1]]
    cy, cx, r = rng.uniform(80, 300), rng.uniform(100, 400), rng.uniform(20, 110)
    angle, waves = np.arctan2(y - cy, x - cx), rng.uniform(0, 6, 4)
    ragged = 1 + sum(.12 / j * np.sin((2 * j + 1) * angle + waves[j - 1]) for j in range(1, 5))
    return np.hypot(y - cy, x - cx) < r * ragged + rng.normal(0, .4, SIZE)


@pytest.fixture(scope="module")
def images() -> list[Instances]:
    """Thirty photographs' instances, to be used again and again."""
    masks = [np.stack([blob(EACH * i + k) for k in range(EACH)]) for i in range(30)]
    return [Instances(m, mask_boxes(m), np.ones(EACH, np.int64), np.linspace(.9, .3, EACH)) for m in masks]


def seconds(call, times: int = 3) -> float:
    """The processor time of the best of a few calls."""
    best = np.inf
    for _ in range(times):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def pack_loop(mask: np.ndarray) -> str:
    """The format as it is told: pixel by pixel down the columns, letter by letter."""
    counts, value, run = [], False, 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    counts.append(run)
    text = ""
    for k, x in enumerate(counts):
        x, more = x - (counts[k - 2] if k > 2 else 0), True
        while more:
            bits, x = x & 31, x >> 5
            more = x != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
    return text


def theirs(mask: np.ndarray) -> str:
    """COCO's program, written in C."""
    return pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_packing(images):
    """Encoding and decoding one mask of VOC's size; all three write the same letters."""
    masks = [m for some in images[:10] for m in some.masks]
    codes = [encode_mask(m)["counts"] for m in masks]
    assert codes == [theirs(m) for m in masks] and codes[0] == pack_loop(masks[0])
    ours, coco, loop = seconds(lambda: [encode_mask(m) for m in masks]), seconds(lambda: [theirs(m) for m in masks]), seconds(lambda: pack_loop(masks[0]), 1) * len(masks)
    n = len(masks) / 1e6
    print(f"\nencode: loop {loop / n:.0f} µs, pycocotools {coco / n:.0f} µs, here {ours / n:.0f} µs: {loop / ours:.0f} and {coco / ours:.1f} times as fast", end="")
    ours = seconds(lambda: [decode_runs(unpack_counts(code), *SIZE) for code in codes])
    coco = seconds(lambda: [pycoco.decode({"size": SIZE, "counts": code}).astype(bool) for code in codes])
    print(f"\ndecode: pycocotools {coco / n:.0f} µs, here {ours / n:.0f} µs: {coco / ours:.1f} times as fast; {np.mean([len(c) for c in codes]):.0f} letters a mask", end="")


def obvious_write(path, found) -> None:
    """A list of dictionaries, encoded by COCO's program, dumped at once."""
    annotations = [{"id": k, "image_id": i, "category_id": 1, "score": 1., "bbox": [0., 0., 1., 1.], "area": int(m.sum()), "iscrowd": 0, "segmentation": {"size": list(SIZE), "counts": theirs(m)}}
                   for i, (_, some) in enumerate(found) for k, m in enumerate(some.masks)]
    path.write_text(json.dumps({"images": [{"id": i, "file_name": str(i)} for i in range(IMAGES)], "categories": [], "annotations": annotations}))


def test_whole_files(images, tmp_path, capsys):
    """Write, open and unpack 3,000 masks; and the memory that opening takes."""
    found = lambda: ((str(i), images[i % len(images)]) for i in range(IMAGES))
    n, path, other = IMAGES * EACH / 1e6, tmp_path / "found.json", tmp_path / "obvious.json"
    ours, obvious = seconds(lambda: write_instances(path, found(), ("object",), "s", "t"), 2), seconds(lambda: obvious_write(other, found()), 2)
    opened, coco = seconds(lambda: read_instances(path)), seconds(lambda: COCO(path))
    stored, api = read_instances(path), COCO(path)
    capsys.readouterr()
    unpacked, annotated = seconds(lambda: [stored(i) for i in stored.ids], 1), seconds(lambda: [api.annToMask(a) for a in api.anns.values()], 1)
    tracemalloc.start()
    kept = read_instances(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with capsys.disabled():
        print(f"\nwrite: obvious {obvious / n:.0f} µs a mask, here {ours / n:.0f} µs ({obvious / ours:.1f}×)"
              f"\nopen: pycocotools {coco / n:.0f} µs, here {opened / n:.0f} µs, with every row checked ({coco / opened:.1f}×)"
              f"\nunpack: pycocotools {annotated / n:.0f} µs, here {unpacked / n:.0f} µs ({annotated / unpacked:.1f}×)"
              f"\n{len(kept.image)} masks: {path.stat().st_size / 1e6:.1f} MB on disk, {held / 1e6:.1f} MB open, {peak / 1e6:.1f} MB while opening; unpacked they would be {n * SIZE[0] * SIZE[1]:.0f} MB", end="")


def test_proxies_and_overlaps(images):
    """Painting a label map, and all overlaps of 30 masks with 30, against COCO's run lengths."""
    some = images[0]
    masks = np.concatenate([i.masks for i in images[:10]])
    codes = [pycoco.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    np.testing.assert_allclose(mask_iou(masks, masks), pycoco.iou(codes, codes, [0] * len(codes)))
    ours, coco = seconds(lambda: mask_iou(masks, masks)), seconds(lambda: pycoco.iou([pycoco.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks], codes, [0] * len(codes)))
    print(f"\nproxy mask of {EACH} instances: {1e6 * seconds(lambda: proxy_mask(some, SIZE), 10):.0f} µs; overlaps of 30×30 masks: pycocotools {1e3 * coco:.0f} ms, here {1e3 * ours:.0f} ms", end="")


def test_bench_encode(benchmark):
    """For pytest-benchmark's table."""
    benchmark.pedantic(encode_mask, (blob(0),), rounds=50, warmup_rounds=5)
