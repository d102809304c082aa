"""Lesson 15: every kind of cue, scored."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.backbones import backbone
from wsss_nb.core import IGNORE, seed_everything
from wsss_nb.cue_study import kinds_of_cues, mean_and_spread, modified_cues, study
from wsss_nb.voc import voc_folder

ROOT = Path(__file__).parent.parent
KINDS = ["raw", "snapped", "grey, snapped", "colour + grey", "colour + colour", "colour + grey, foreground wins", "threshold, DSRG", "threshold, WST", "CRF, WST"]


def by_hand(maps, reaction, T, segments, foreground, background):
    "Modified cues 3.3, one pixel after the other."
    C, h, w = maps.shape
    maps = np.array([[[max(0, maps[c, y, x] - max([maps[d, y, x] for d in range(C) if d != c and T[d]], default=0)) if T[c] else 0 for x in range(w)] for y in range(h)] for c in range(C)])
    mean = lambda m: np.array([[m[segments == segments[y, x]].mean() for x in range(w)] for y in range(h)])
    maps, reaction = np.array([mean(m) for m in maps]), mean(reaction)
    S = np.full((h, w), IGNORE)
    for y in range(h):
        for x in range(w):
            wants = [c + 1 for c in range(C) if T[c] and maps[c].max() > 0 and maps[c, y, x] > foreground * maps[c].max()]
            wants += [0] if reaction[y, x] < background else []
            S[y, x] = wants[0] if len(wants) == 1 else IGNORE
    return S


@pytest.mark.parametrize("seed", range(5))
def test_modified_cues_equal_a_loop_over_pixels(seed):
    "Subtract, average in the superpixel, threshold."
    rng = np.random.default_rng(seed)
    maps, reaction, T = rng.random((3, 6, 7)), rng.random((6, 7)), np.array([True, seed % 2 == 0, True])
    segments = rng.integers(0, 9, (6, 7))
    S = modified_cues(torch.from_numpy(maps * T[:, None, None])[None], torch.from_numpy(reaction)[None], torch.from_numpy(T)[None], torch.from_numpy(segments)[None], .6, .5)
    np.testing.assert_array_equal(S[0].numpy(), by_hand(maps * T[:, None, None], reaction, T, segments, .6, .5))


@pytest.fixture(scope="module")
def networks():
    "Three untrained networks."
    seed_everything(0)
    return {name: backbone("small", 6, weights="random").eval() for name in ("colour", "second", "grey")}


def test_rows_and_their_relations(toyvoc, networks):
    "The nine kinds; merging only adds labels or conflicts; the CRF labels all."
    data = voc_folder(toyvoc, "train").subset([0])
    S = {name: s[0].numpy() for name, s in kinds_of_cues(data, 0, **networks).items()}
    assert list(S) == KINDS
    a, b, both = S["snapped"], S["grey, snapped"], S["colour + grey"]
    clear = (a == IGNORE) | (b == IGNORE) | (a == b)
    np.testing.assert_array_equal(both[clear], np.minimum(a, b)[clear])
    assert (both[~clear] == IGNORE).all() and (S["CRF, WST"] != IGNORE).all()


def test_study_counts_every_pixel_once(toyvoc, networks):
    "Each row's matrix holds the pixels of the masks that are not border."
    data = voc_folder(toyvoc, "train", masks=True).subset(range(3))
    pixels = sum(int((data.mask(i) != IGNORE).sum()) for i in range(3))
    results = study(data, networks)
    assert list(results) == KINDS and all(result.confusion.sum() == pixels for result in results.values())


def test_mean_and_spread():
    "30 % and 40 %: mean 35, standard deviation of a sample √50 = 7.1; a single run has none."
    assert mean_and_spread([{"iou": .3}, {"iou": .4}], "iou") == "35.0 ± 7.1"
    assert mean_and_spread([{"iou": .3}], "iou") == "30.0"


def test_the_stored_results_are_those_of_the_study():
    "Three seeds, the same kinds, numbers in 0…1."
    runs = json.loads((ROOT / "nbs/results/cue_study.json").read_text())
    assert len(runs) >= 3 and all(list(run["cues"]) == KINDS and run["images"] == 600 for run in runs.values())
    values = [v for run in runs.values() for row in [*run["cues"].values(), *run["classifiers"].values()] for v in row.values()]
    assert all(0 <= v <= 1 for v in values) and len(set(values)) > 100
