#!/usr/bin/env python3
"""Measure what each part of SEC, DSRG and the modified cues buys on ToyVOCs of their own, for lesson 54:

    python data_scripts/study_dsrg.py --seeds 111 112 113

A seed decides the pictures, the pretraining, the classifiers and every training. A training takes about a minute, a
seed about half an hour on one core; what is measured is kept, so calling it again measures only what is missing, and
two commands with other rows or seeds may run side by side. (Seeds 0, 3, 5 and 7 were used while the library was made.)
"""
from __future__ import annotations

from pathlib import Path

import torch
from study_command import RESULTS, study_command

from wsss_nb.config import load_config
from wsss_nb.core import seed_everything
from wsss_nb.dsrg_study import GRID, MAIN, MORE, TRIALS, Study, all_cues, brief, cam_alone, cue_scores, note
from wsss_nb.files import atomic
from wsss_nb.pretraining import cache_folder, toy_classifier, toy_voc
from wsss_nb.voc import voc_folder

OUT = RESULTS / "dsrg_study"
PARTS = {"main": MAIN, "grid": GRID, "more": MORE, "all": TRIALS}


def begin(seed: int, n_train: int, n_val: int, out: Path) -> tuple[Study]:
    "Pictures, classifiers and cues of one seed."
    seed_everything(seed)
    root = toy_voc(n_train, n_val, seed)
    train, val = (voc_folder(root, split, masks=True) for split in ("train", "val"))
    colour, grey = (toy_classifier(train, grey=grey, seed=seed) for grey in (False, True))
    folder = cache_folder() / f"dsrg_study/{n_train}_{n_val}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "cues.pt"
    if not kept.exists():
        made = {kind: {name: torch.from_numpy(read(name)) for name in train.ids} for kind, read in all_cues(train, colour, grey).items()}
        with atomic(kept) as path:
            torch.save(made, path)
    cues = {kind: {name: S.numpy() for name, S in maps.items()}.__getitem__ for kind, maps in torch.load(kept, weights_only=True).items()}
    study = Study(seed, train, val, colour, cues, folder, load_config("dsrg", "toyvoc"), TRIALS)
    if not out.exists():
        note(out, {"images": n_train, "cues": {kind: cue_scores(study, kind) for kind in cues},
                   "trials": {name: brief(result) for name, result in cam_alone(colour, val).items()}})
    return (study,)


if __name__ == "__main__":
    study_command(__doc__, begin, PARTS, [111, 112, 113], OUT)
