#!/usr/bin/env python3
"""PASCAL VOC 2012 with SBD's masks, from the publishers' archives (lesson 02f):

    python data_scripts/get_voc12.py data
    python data_scripts/get_voc12.py data --from downloads     # archives that you have already
    python data_scripts/get_voc12.py data --check              # what is missing or wrong?
    python data_scripts/get_voc12.py data --test               # the test server's pictures as well

3.4 GB to download, twice that on the disk; archives in FOLDER/archives may be deleted afterwards. Whatever stops it, the
same command goes on. What comes out is FOLDER/VOC2012, with train_aug.txt and SegmentationClassAug made from SBD.
"""
from __future__ import annotations

from get_command import get_data, parser, run


def main(arguments: list[str] | None = None) -> None:
    """Get it, or check it."""
    options = parser(__doc__, "where VOC2012 shall lie")
    options.add_argument("--no-sbd", action="store_true", help="without SBD: 1,464 training images, and no train_aug")
    options.add_argument("--test", action="store_true", help="also the pictures of the test split; they have no masks")
    asked = options.parse_args(arguments)
    run(lambda: get_data("voc12", asked, sbd=not asked.no_sbd, test=asked.test))


if __name__ == "__main__":
    main()
