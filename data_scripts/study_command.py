"""What the commands of the studies share: which seeds, which rows, how many pictures, and where to."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from wsss_nb.dsrg_study import Study, keep_measuring

RESULTS = Path(__file__).parent.parent / "nbs/results"


def study_command(about: str, # the script's docstring
                  begin: Callable[[int, int, int, Path], tuple[Study, ...]], # seed, pictures to train on, pictures to score, file of results
                  parts: Mapping[str, Collection[str]], # name -> rows; "all" has every row
                  seeds: list[int], # unless others are named
                  out: Path, # a folder: SEED.json
                  after: Callable[[tuple[Study, ...], Path], None] = lambda studies, file: None, # measures what is no row
                  ) -> None:
    """Measure what is not in the files yet."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--part", choices=parts, default="all")
    parser.add_argument("--only", nargs="+", default=[], choices=parts["all"], metavar="ROW", help="these rows alone")
    parser.add_argument("--n-train", type=int, default=600)
    parser.add_argument("--n-val", type=int, default=150)
    parser.add_argument("--out", type=Path, default=out, help="a folder: SEED.json")
    options = parser.parse_args()
    for seed in options.seeds:
        file = options.out / f"{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        studies = begin(seed, options.n_train, options.n_val, file)
        for study in studies:
            keep_measuring(study, [name for name in options.only or parts[options.part] if name in study.trials], file)
        if not options.only and options.part == "all":
            after(studies, file)
