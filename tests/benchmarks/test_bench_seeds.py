"""What twelve seeds of every picture cost: time, disk, and a kill half way. Asserts no time.

    python tests/benchmarks/test_bench_seeds.py --images 600
"""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from wsss_nb.backbones import backbone
from wsss_nb.cam import SCALES, maps_of
from wsss_nb.core import seed_everything
from wsss_nb.files import folder_hash
from wsss_nb.saliency import robust_background
from wsss_nb.seeds import make_seeds, seeds_of
from wsss_nb.toyvoc import make_toyvoc
from wsss_nb.voc import voc_folder


def networks() -> dict:
    """Two small classifiers; what they know costs the same as what they don't."""
    seed_everything(0)
    return {name: backbone("small", 6, weights="random").eval() for name in ("one", "two")}


def one_after_the_other(data) -> float:
    """Seconds a picture of the obvious way: no threads, nothing stored."""
    both = networks().values()
    start = time.perf_counter()
    for i in range(len(data)):
        image = data.image(i)
        seeds_of(image, [maps_of(network, data, i, scales=SCALES) for network in both], robust_background(image), data.tags[i])
    return (time.perf_counter() - start) / len(data)


def killed_half_way(root: Path, folder: Path, images: int) -> int:
    """Start the same call in another process, SIGKILL it when half of the files are there; how many there were."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_bench_seeds import *; "
    work = f"make_seeds(voc_folder({str(root)!r}, 'train'), networks(), {str(folder)!r})"
    process = subprocess.Popen([sys.executable, "-c", here + work], stderr=subprocess.DEVNULL)
    while len(list(folder.glob("*.npz"))) < images // 2 and process.poll() is None:
        time.sleep(.02)
    process.kill()
    process.wait()
    return len(list(folder.glob("*.npz")))


def test_cost_of_twelve_seeds(images: int = 24):
    """Prints time, ratio, size; the bytes after a kill and a second call are those of one call."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        root = make_toyvoc(folder / "toyvoc", images, 1, 0)
        data = voc_folder(root, "train")
        alone = one_after_the_other(data.subset(range(min(images, 40))))
        start = time.perf_counter()
        make_seeds(data, networks(), folder / "whole")
        seconds = time.perf_counter() - start
        files = list((folder / "whole").glob("*.npz"))
        size, raw = sum(path.stat().st_size for path in files), 12 * sum(data.image(i)[..., 0].size for i in range(len(data)))
        print(f"\n{images} pictures, 12 seeds each, {torch.get_num_threads()} threads: {seconds:.1f} s; {alone * images / seconds:.2f}x of one after the other")
        print(f"{size / 1e6:.2f} MB on disk, {size / images / 1e3:.1f} kB a picture: {raw / size:.0f}x smaller than the label maps")
        done = killed_half_way(root, folder / "killed", images)
        make_seeds(data, networks(), folder / "killed")
        assert 0 < done < images
        assert folder_hash(folder / "killed") == folder_hash(folder / "whole")
        print(f"killed with {done} pictures done, called again: the same bytes")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600)
    test_cost_of_twelve_seeds(parser.parse_args().images)
