#!/usr/bin/env python3
"""Measure every kind of cue on ToyVOCs of their own, for lesson 15:

    python data_scripts/study_cues.py --seeds 101 102 103

A seed decides the pictures, the pretraining and the training. It takes minutes a seed; finished seeds are kept, so
calling it again measures only what is missing. (Seeds 0, 3 and 5 were used while the library was made.)
"""
from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from wsss_nb.classifier import mean_quality, score_images, tag_quality
from wsss_nb.core import seed_everything
from wsss_nb.cue_study import study
from wsss_nb.files import atomic
from wsss_nb.pretraining import toy_classifier
from wsss_nb.toyvoc import make_toyvoc
from wsss_nb.voc import voc_folder

OUT = Path(__file__).parent.parent / "nbs/results/cue_study.json"
NETWORKS = {"colour": (False, 0), "second": (False, 500), "grey": (True, 0)}   # grey?, and what is added to the seed


def measure(seed: int, n_train: int, n_val: int) -> dict:
    "The classifiers and the cues of one seed."
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = make_toyvoc(folder, n_train, n_val, seed)
        train, val = (voc_folder(root, split, masks=True) for split in ("train", "val"))
        networks = {name: toy_classifier(train, grey=grey, seed=seed + more) for name, (grey, more) in NETWORKS.items()}
        tags = {name: mean_quality(tag_quality(score_images(network, val), val.tags)) for name, network in networks.items()}
        return {"images": n_train, "classifiers": tags, "cues": {name: result.summary() for name, result in study(train, networks).items()}}


def main() -> None:
    "Measure the seeds that are not in the file yet."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--n-train", type=int, default=600, help="pictures to train on and to score the cues of")
    parser.add_argument("--n-val", type=int, default=150, help="pictures to score the classifiers on")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    for seed in options.seeds:
        results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        if str(seed) not in results:
            results[str(seed)] = measure(seed, options.n_train, options.n_val)
            with atomic(options.out) as path:
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(seed, json.dumps(results[str(seed)]["classifiers"]))


if __name__ == "__main__":
    main()
