#!/usr/bin/env python3
"""Train the features of salient instances on pictures of single things (lesson 33c):

    python data_scripts/train_features.py --images imagenet --out features.pt
    torchrun --nproc-per-node 8 data_scripts/train_features.py --images imagenet --out features.pt

--images holds train/CLASS/PICTURE.jpg. Checkpoints are kept beside --out; the same call goes on from the last one, and
does nothing more when it is done. The file holds weights, centres and class names, and no code.
"""
from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from wsss_nb.centres import FEATURE_PRESETS, feature_network, save_features, train_features
from wsss_nb.pretraining import class_folders


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    "What was asked for; settings that are left out are the preset's."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/PICTURE.jpg")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--preset", choices=FEATURE_PRESETS, default="salient/features-imagenet")
    parser.add_argument("--epochs", type=int, help="passes over the pictures")
    parser.add_argument("--batch-size", type=int, help="pictures of one update, of all processes together")
    parser.add_argument("--accumulate", type=int, help="parts a batch is cut into where memory is short")
    parser.add_argument("--workers", type=int, help="processes that read pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, …; left out: a GPU where there is one")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    "Train, or go on training, and write the file."
    asked = options(arguments)
    preset = FEATURE_PRESETS[asked.preset]
    changed = {name: getattr(asked, name) for name in ("epochs", "batch_size", "accumulate", "workers") if getattr(asked, name) is not None}
    preset = replace(preset, training=replace(preset.training, **changed))
    data = class_folders(asked.images)
    network = feature_network(preset, data.classes, asked.seed)
    folder = asked.out.with_name(f"{asked.out.name}.run")
    history = train_features(data, network, preset, folder, asked.seed, asked.device)
    if int(os.environ.get("RANK", 0)) == 0:      # of several processes one writes
        save_features(asked.out, network)
        print(f"{asked.out}: {len(data.classes)} classes, loss {history[-1]['loss']:.3f}")


if __name__ == "__main__":
    main()
