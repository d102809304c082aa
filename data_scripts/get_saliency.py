#!/usr/bin/env python3
"""Saliency maps of a model of your choice, instead of the course's training-free ones (lesson 12b):

    python data_scripts/get_saliency.py saliency --model DHSNet --data data/VOC2012 --address https://example.org/maps.zip
    python data_scripts/get_saliency.py saliency --model DHSNet --data data/VOC2012 --check

FOLDER holds <id>.png, 8-bit grey, one for each picture of the list. Maps are somebody's work with somebody's data: name
the model, it will stand in every report. Whatever stops a download, the same command goes on.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from get_command import parser, run

from wsss_nb.archives import Piece, bring
from wsss_nb.remotes import Remote
from wsss_nb.saliency import saliency_folder
from wsss_nb.voc import read_ids


def get(asked: argparse.Namespace) -> None:
    """Bring the maps if there is an address, and look whether each picture has one."""
    if asked.address and not asked.check:
        remote = Remote(Path(urlsplit(asked.address).path).name, (asked.address,), sha256=asked.sha256, about=f"saliency maps of {asked.model}")
        bring([Piece(remote, lambda name: name.endswith(".png") and "/" not in name, asked.strip)], asked.folder, asked.source)
    path = Path(asked.list) if asked.list.endswith(".txt") else asked.data / f"ImageSets/Segmentation/{asked.list}.txt"
    ids = read_ids(path)
    saliency_folder(asked.folder, asked.model, ids)
    print(f"{asked.folder} has a map for each of the {len(ids):,} images of {path}. Next:\n\n"
          f"    wsss_nb run --recipe dsrg/voc-vgg16 --data {asked.data} --run runs/dsrg-voc-vgg16 --set cues.saliency={asked.folder} --set cues.model={asked.model}")


def main(arguments: list[str] | None = None) -> None:
    """Get them, or check them."""
    options = parser(__doc__, "where <id>.png lie, or shall lie")
    options.add_argument("--model", required=True, help="whose maps these are")
    options.add_argument("--data", type=Path, required=True, help="the data set in VOC layout")
    options.add_argument("--list", default="train_aug", help="a list of it, or a file of ids (.txt)")
    options.add_argument("--address", help="of a tar, tar.gz or zip of maps; left out: the maps are there")
    options.add_argument("--sha256", help="of the archive, where it is known")
    options.add_argument("--strip", type=int, default=0, help="leading folders inside the archive to leave out: 1 if the maps lie in one")
    asked = options.parse_args(arguments)
    run(lambda: get(asked))


if __name__ == "__main__":
    main()
