"""What it saves to run the CRF beside the network, and where the time of a label map goes. Asserts no time.

    python tests/benchmarks/test_bench_inference.py --images 100
"""
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from wsss_nb.core import seed_everything
from wsss_nb.files import folder_hash, write_labels
from wsss_nb.inference import DSRG_SCALES, decide, predict_folder, predict_probabilities
from wsss_nb.networks import small
from wsss_nb.toyvoc import make_toyvoc
from wsss_nb.voc import voc_folder


class Untrained(nn.Module):
    """The course's small trunk and a linear head; what it knows costs the same as what it doesn't."""

    def __init__(self, classes):
        super().__init__()
        seed_everything(0)
        self.trunk, self.classes, self.n_classes = small(), tuple(classes), 1 + len(classes)
        self.head = nn.Conv2d(self.trunk.channels, self.n_classes, 1)
        self.mean, self.std, self.stride = self.trunk.mean, self.trunk.std, self.trunk.stride

    def forward(self, image):
        return self.head(self.trunk(image))


def one_after_the_other(network, data, folder: Path, settings: dict, crf) -> tuple[float, float]:
    """The obvious way: a loop; seconds in the network, and in CRF and writing."""
    seen = decided = 0.
    for i, name in enumerate(data.ids):
        start = time.perf_counter()
        image = data.image(i)
        H = predict_probabilities(network, image, **settings)
        middle = time.perf_counter()
        write_labels(folder / f"{name}.png", decide(H, image, crf))
        seen, decided = seen + middle - start, decided + time.perf_counter() - middle
    return seen, decided


def timed(work) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_crf_beside_the_network(images: int = 24):
    """Prints the split, the gain of threads, and what leaving out unlikely classes saves; the label maps are the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = voc_folder(make_toyvoc(folder / "toyvoc", images, 1, 0), "train")
        network, settings = Untrained(data.classes), {"scales": DSRG_SCALES, "flip": True}
        beside, single, loops = [], [], []
        for k in range(3):   # the first round warms up: kernels for each size, numba's compiler
            beside.append(timed(partial(predict_folder, network, data, folder / f"beside{k}", **settings)))
            loops.append(one_after_the_other(network, data, folder / "loop", settings, True))
            single.append(timed(partial(predict_folder, network, data, folder / f"single{k}", **settings, workers=1)))
        (seen, decided), beside, single = min(loops[1:], key=sum), min(beside[1:]), min(single[1:])
        print(f"\n{images} pictures, 3 scales and mirrored, {torch.get_num_threads()} threads in torch: network {1000 * seen / images:.0f} ms, CRF and file {1000 * decided / images:.0f} ms a picture")
        print(f"one after the other {seen + decided:.2f} s; CRF beside the network {beside:.2f} s, {(seen + decided) / beside:.2f}x; one thread beside it {single:.2f} s, {(seen + decided) / single:.2f}x")
        assert folder_hash(folder / "beside1") == folder_hash(folder / "single1")
        assert all((folder / "beside1" / f"{name}.png").read_bytes() == (folder / "loop" / f"{name}.png").read_bytes() for name in data.ids)
        again = timed(partial(predict_folder, network, data, folder / "beside1", **settings))
        print(f"a second call, all there: {again:.2f} s, {1000 * again / images:.1f} ms a picture")


def test_unlikely_classes_left_out(size: tuple[int, int] = (375, 500), classes: int = 21):
    """Prints what `classes_above` saves at VOC's size, where most classes are unlikely everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        picture = voc_folder(make_toyvoc(Path(folder) / "toyvoc", 1, 1, 0), "train").image(0)
    image = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.BICUBIC))
    logits = torch.randn(classes, *size, generator=torch.Generator().manual_seed(0)) - 8 * (torch.arange(classes) > 3)[:, None, None]
    H = logits.softmax(0)
    decide(H[:, :40, :40] / H[:, :40, :40].sum(0), image[:40, :40])
    few, all_of_them = (min(timed(partial(decide, H, image, crf)) for _ in range(3)) for crf in (True, {"classes_above": None}))
    print(f"\n{size[0]}x{size[1]}, {classes} classes, 4 of them likely: {few:.2f} s; with all classes {all_of_them:.2f} s, {all_of_them / few:.2f}x")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    test_crf_beside_the_network(parser.parse_args().images)
    test_unlikely_classes_left_out()
