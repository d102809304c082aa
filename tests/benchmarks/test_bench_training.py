"""What an update of DSRG on ToyVOC costs over forward and backward alone, and what of it: reading, CRF, growing, losses. Asserts no time.

    pytest tests/benchmarks/test_bench_training.py -s
"""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from wsss_nb.config import load_config
from wsss_nb.core import IGNORE
from wsss_nb.opening import recipe_of
from wsss_nb.segmenter import segmenter
from wsss_nb.timing import profile_step, weak_overhead
from wsss_nb.training import training_view
from wsss_nb.voc import voc_folder


def dots(root, name: str) -> np.ndarray:
    "Cues of a size that ToyVOC's have: a square of the first tag, background at the rim."
    data = voc_folder(root, "train")
    S = np.full((96, 96), IGNORE, np.uint8)
    S[40:56, 40:56] = 1 + data.tags[data.ids.index(name)].argmax()
    S[:8] = S[-8:] = 0
    return S


@pytest.mark.parametrize("workers", [0, 1])
def test_ratio_to_forward_and_backward(toyvoc, workers):
    "Print the parts of an update and their sum over forward and backward, with torch's own number of threads."
    config = load_config("dsrg/toy", toyvoc)
    data, settings = voc_folder(toyvoc, "train"), replace(config.train, workers=workers)
    network = segmenter("small", data.n_classes, settings.head, "random")
    stored = {name: dots(toyvoc, name) for name in data.ids}
    view = training_view(network, settings.view, settings.size, settings.low, settings.high, settings.mirror)
    parts = min((profile_step(data, partial(dict.__getitem__, stored), network, recipe_of(config).method, settings, view, updates=8, device="cpu") for _ in range(3)),
                key=lambda found: sum(found.values()))
    split = "  ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in parts.items())
    print(f"\n{workers} workers, ms: {split}; an update {1000 * sum(parts.values()):.1f}, {weak_overhead(parts):.2f} times forward and backward alone (goal at most 1.6)")
    assert min(parts.values()) > 0
