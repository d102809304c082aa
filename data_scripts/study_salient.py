#!/usr/bin/env python3
"""Measure what tags for salient instances are worth on ToyVOCs of their own, for lesson 56:

    python data_scripts/study_salient.py --seeds 131 132 133

A seed decides the pictures, the pretraining, the detector, the classifiers and every training. A seed takes about forty
minutes on one core; what is measured is kept, so calling it again measures only what is missing, and two commands with
other rows or seeds may run side by side. (Seeds 0, 3, 5, 7 and 101 to 123 were looked at while the library was made.)
"""
from __future__ import annotations

import json
import time
from pathlib import Path

from study_command import RESULTS, study_command

from wsss_nb.association import Looks, among, attention_of, keywords_of, read_looks, toy_simple, with_simple, write_looks
from wsss_nb.config import load_config
from wsss_nb.core import seed_everything
from wsss_nb.detection import toy_detector
from wsss_nb.dsrg_study import Study, note
from wsss_nb.instance_features import features_of, toy_features
from wsss_nb.instance_sources import detector_source, find_instances
from wsss_nb.instances import StoredInstances, read_instances
from wsss_nb.objects import json_numbers
from wsss_nb.pretraining import cache_folder, toy_classifier, toy_voc
from wsss_nb.proxies import evaluate_instances, toy_instance_segmenter
from wsss_nb.salient_study import INSTANCE_ROWS, PARTS, SETS, TRIALS, beta_curve, cue_readers, tag_table, tags_of
from wsss_nb.tagged import TaggedImages
from wsss_nb.voc import voc_folder

OUT = RESULTS / "salient_study"
SCORE = .3   # of the detector: what it finds wrongly the assignment may still throw away


def looks_of(sets: dict[str, TaggedImages], found: dict[str, StoredInstances], folder: Path, seed: int) -> dict[str, Looks]:
    "What is known of the instances of each set; features are made once for all."
    paths = {kind: folder / f"looks_{kind}.npz" for kind in SETS}
    if not all(path.exists() for path in paths.values()):
        features = features_of(toy_features(seed), sets["both"], found["both"], 64).numpy()
        own = found["both"].image < len(sets["several"])
        rows = {"several": own, "simple": ~own, "both": slice(None)}
        for kind, data in sets.items():
            attention = attention_of(toy_classifier(data, seed=seed), data, found[kind])
            write_looks(paths[kind], Looks(features[rows[kind]], attention, keywords_of(found[kind], data)))
    return {kind: read_looks(path) for kind, path in paths.items()}


def begin(seed: int, n_train: int, n_val: int, out: Path) -> tuple[Study, ...]:
    "Pictures, objects, looks and tags of one generator seed: a study for each training set."
    seed_everything(seed)
    root, folder = toy_voc(n_train, n_val, seed), cache_folder() / f"salient_study/{n_train}_{n_val}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train, val = (voc_folder(root, split, masks=True, instances=True) for split in ("train", "val"))
    simple = among(toy_simple(n_train, seed), train.classes)
    sets = {"several": train, "simple": simple, "both": with_simple(train, simple)}
    everything = find_instances(sets["both"], detector_source(toy_detector(seed), SCORE), folder / "found.json")
    found = {kind: everything.subset(data.ids) for kind, data in sets.items()}
    looks = looks_of(sets, found, folder, seed)
    tags = {kind: tags_of(looks[kind], seed) for kind in SETS}
    studies = tuple(Study(seed, data, val, toy_classifier(data, seed=seed), cue_readers(found[kind], tags[kind], train.classes), folder, load_config("salient", "toyvoc"),
                          {name: trial for name, trial in TRIALS.items() if name.split(":")[0] == kind}, (), ()) for kind, data in sets.items())
    if not out.exists():
        tables = {kind: tag_table(found[kind], looks[kind], tags[kind], train) for kind in ("several", "both")}
        note(out, json_numbers({"images": n_train, "tags": tables, "beta": {kind: beta_curve(found[kind], looks[kind], train) for kind in ("several", "both")}, "trials": {}, "instances": {}}))
    return studies


def score_instances(studies: tuple[Study, ...], out: Path) -> None:
    "Mask R-CNN on each kind of proxy, and on the truth; what the file has already is left."
    study = studies[0]
    seed, train, val = study.seed, study.train, study.val
    found, tags = read_instances(study.folder / "found.json").subset(train.ids), tags_of(read_looks(study.folder / "looks_several.npz"), seed)
    tagged = {name: found.with_tags(tags[way], train.classes) for name, way in INSTANCE_ROWS.items() if way}
    for name in INSTANCE_ROWS:
        if name in json.loads(out.read_text(encoding="utf-8"))["instances"]:
            continue
        start = time.perf_counter()
        scores = evaluate_instances(toy_instance_segmenter(train, tagged.get(name, train.read_instances), seed), val)
        results = json.loads(out.read_text(encoding="utf-8"))   # again: another command may have added to it
        results["instances"][name] = json_numbers(scores) | {"seconds": round(time.perf_counter() - start, 1)}
        note(out, results)
        print(f"{seed} AP {name:26}{scores['AP']:7.1%}", flush=True)


if __name__ == "__main__":
    study_command(__doc__, begin, PARTS, [131, 132, 133], OUT, score_instances)
