#!/usr/bin/env python3
"""COCO 2014 or 2017, pictures and the annotations of objects (lesson 03d):

    python data_scripts/get_coco.py data/coco
    python data_scripts/get_coco.py data/coco --year 2017
    python data_scripts/get_coco.py data/coco --from downloads     # archives that you have already
    python data_scripts/get_coco.py data/coco --check              # what is missing or wrong?

20.4 GB to download, twice that on the disk; archives in FOLDER/archives may be deleted afterwards. Whatever stops it, the
same command goes on. Papers on weak supervision use 2014.
"""
from __future__ import annotations

from get_command import get_data, parser, run


def main(arguments: list[str] | None = None) -> None:
    """Get it, or check it."""
    options = parser(__doc__, "where train2014, val2014 and annotations shall lie")
    options.add_argument("--year", type=int, choices=(2014, 2017), default=2014)
    asked = options.parse_args(arguments)
    run(lambda: get_data(f"coco{asked.year % 100}", asked))


if __name__ == "__main__":
    main()
