#!/usr/bin/env python3
"""Measure the course's own recipe against the papers', part by part, on ToyVOCs of their own, for lesson 57:

    python data_scripts/study_ours.py --seeds 141 142 143

A seed decides the pictures, the pretraining of two networks, their classifiers and every training. A seed takes about
forty minutes on one core; what is measured is kept, so calling it again measures only what is missing, and two commands
with other rows or seeds may run side by side. (Seeds 0, 3, 5, 7 and 101 to 133 were looked at while the library was made.)
"""
from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from study_command import RESULTS, study_command

from wsss_nb.config import load_config
from wsss_nb.core import seed_everything
from wsss_nb.dsrg_study import Study, cue_scores, note, start
from wsss_nb.files import atomic
from wsss_nb.findings import read_evaluation
from wsss_nb.inference import predict_folder
from wsss_nb.opening import SECOND
from wsss_nb.ours_study import KINDS, OTHERS, OURS, RUNS, TRIALS, all_cues, cue_readers, keep_gallery
from wsss_nb.pretraining import cache_folder, toy_classifier, toy_voc
from wsss_nb.stages import run_all
from wsss_nb.voc import voc_folder

OUT = RESULTS / "ours_study"
PARTS = {"others": OTHERS, "ours": OURS, "all": TRIALS}


def begin(seed: int, n_train: int, n_val: int, out: Path) -> tuple[Study]:
    "Pictures, three classifiers and all cues of one generator seed."
    seed_everything(seed)
    root = toy_voc(n_train, n_val, seed)
    train, val = (voc_folder(root, split, masks=True) for split in ("train", "val"))
    colour, second, grey = toy_classifier(train, seed=seed), toy_classifier(train, seed=seed + SECOND), toy_classifier(train, grey=True, seed=seed)
    folder = cache_folder() / f"ours_study/{n_train}_{n_val}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "cues.pt"
    if not kept.exists():
        made = {name: torch.from_numpy(S) for name, S in all_cues(train, colour, second, grey).items()}
        with atomic(kept) as path:
            torch.save(made, path)
    cues = cue_readers({name: S.numpy() for name, S in torch.load(kept, weights_only=True).items()})
    study = Study(seed, train, val, colour, cues, folder, load_config("dsrg", "toyvoc"), TRIALS, (), ())
    if not out.exists():
        note(out, {"images": n_train, "cues": {kind: cue_scores(study, kind) for kind in KINDS}, "trials": {}})
    return (study,)


def whole_runs(studies: tuple[Study, ...], out: Path) -> None:
    "Recipes that tag objects across pictures: every stage, as the command has it."
    study = studies[0]
    for recipe in RUNS:
        if recipe in json.loads(out.read_text(encoding="utf-8"))["trials"]:
            continue
        start, run = time.perf_counter(), study.folder / f"run {recipe}"
        counts = [f"data.n_train={len(study.train)}", f"data.n_val={len(study.val)}"]
        run_all(load_config(recipe, "toyvoc", overrides=[f"seed={study.seed}", f"data.seed={study.seed}", *counts]), run)
        results = json.loads(out.read_text(encoding="utf-8"))
        results["trials"][recipe] = {"mean_iou": read_evaluation(run / "evaluate/val.json").summary()["mean_iou"], "seconds": round(time.perf_counter() - start, 1)}
        note(out, results)


def gallery(studies: tuple[Study, ...], out: Path) -> None:
    "What each recipe that learns from tags says of every validation picture, and where it failed most."
    study, trials = studies[0], json.loads(out.read_text(encoding="utf-8"))["trials"]
    folders = {name: study.folder / f"predicted {name}" for name in ("ours", *OTHERS) if name in trials and name != "full"}
    for name, folder in folders.items():
        network = start(study.settings(False), study.train, study.seed)
        network.load_state_dict(torch.load(study.folder / f"{name}.pt", weights_only=True))
        predict_folder(network, study.val, folder, scales=study.config.predict.scales, flip=study.config.predict.flip)
    folders |= {name: study.folder / f"run {name}/predict/val" for name in RUNS if name in trials}
    out.with_suffix("").mkdir(exist_ok=True)
    keep_gallery(folders, study.val, out.with_suffix("") / "gallery.json")


if __name__ == "__main__":
    study_command(__doc__, begin, PARTS, [141, 142, 143], OUT, lambda studies, file: (whole_runs(studies, file), gallery(studies, file)))
