#!/usr/bin/env python3
"""Measure the course's own recipe against every other, and without each of its parts, on photographs of yours, for lesson 57b:

    python data_scripts/study_photos.py FOLDER --runs runs/photos
    python data_scripts/study_photos.py FOLDER --only dsrg sec --out mine.json
    python data_scripts/study_photos.py FOLDER --set data.train=mine.json --set data.val=mine.json

FOLDER is in VOC or COCO layout and has masks of the pictures to score on. On one core a row of fifty photographs takes
about five minutes. What is done is kept in --runs: calling it again goes on, and counts again.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from study_command import RESULTS

from wsss_nb.core import DataError
from wsss_nb.photo_study import PHOTO_TRIALS, measure_photos

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="photographs, tags and masks, in VOC or COCO layout")
    parser.add_argument("--runs", type=Path, default=Path("runs/photos"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "photo_study/coco_sample.json", help="a file of results")
    parser.add_argument("--only", nargs="+", default=[], choices=PHOTO_TRIALS, metavar="ROW", help="these rows, and ours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run")
    options = parser.parse_args()
    try:
        measure_photos(options.data, options.runs, options.out, options.set, options.only)
    except DataError as error:
        sys.exit(str(error))
