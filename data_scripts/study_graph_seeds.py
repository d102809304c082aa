#!/usr/bin/env python3
"""Measure DGCN's graph cut and WST's many seeds on ToyVOCs of their own, for lesson 55:

    python data_scripts/study_graph_seeds.py --seeds 121 122 123

A seed decides the pictures, the pretraining of two networks, their classifiers and every training. A seed takes about
half an hour on one core; what is measured is kept, so calling it again measures only what is missing, and two commands
with other rows or seeds may run side by side. (Seeds 0, 3, 5, 7 and 101 to 113 were looked at while the library was made.)
"""
from __future__ import annotations

from pathlib import Path

import torch
from study_command import RESULTS, study_command

from wsss_nb.config import load_config
from wsss_nb.core import seed_everything
from wsss_nb.dsrg_study import Study, cue_scores, note
from wsss_nb.files import atomic
from wsss_nb.graph_seed_study import EAGER, EVEN, FOLLOWED, GRAPH, GRID, NAMES, PICKS, PILOT, SEEDS, TRIALS, all_seeds, study_cues
from wsss_nb.opening import SECOND
from wsss_nb.pretraining import cache_folder, toy_classifier, toy_voc
from wsss_nb.voc import voc_folder

OUT = RESULTS / "graph_seed_study"
PARTS = {"graph": GRAPH | EAGER, "seeds": SEEDS | EVEN, "pilot": PILOT, "grid": GRID, "all": TRIALS}


def begin(seed: int, n_train: int, n_val: int, out: Path) -> tuple[Study]:
    "Pictures, two classifiers and all seeds of one generator seed."
    seed_everything(seed)
    root = toy_voc(n_train, n_val, seed)
    train, val = (voc_folder(root, split, masks=True) for split in ("train", "val"))
    first, second = (toy_classifier(train, seed=start) for start in (seed, seed + SECOND))
    folder = cache_folder() / f"graph_seed_study/{n_train}_{n_val}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "seeds.pt"
    if not kept.exists():
        made = {name: torch.from_numpy(S) for name, S in all_seeds(train, first, second).items()}
        with atomic(kept) as path:
            torch.save(made, path)
    seeds = {name: S.numpy() for name, S in torch.load(kept, weights_only=True).items()}
    study = Study(seed, train, val, first, study_cues(train, seeds, seed), folder, load_config("dsrg", "toyvoc"), TRIALS, FOLLOWED, ())
    if not out.exists():
        note(out, {"images": n_train, "cues": {kind: cue_scores(study, kind) for kind in ("attention", *PICKS, *NAMES)}, "trials": {}})
    return (study,)


if __name__ == "__main__":
    study_command(__doc__, begin, PARTS, [121, 122, 123], OUT)
