"""What the commands that get a data set share: where to, archives that are there already, and looking without changing."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from wsss_nb.core import DataError
from wsss_nb.publishers import prepare


def parser(about: str, folder: str) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, metavar="FOLDER", help=folder)
    made.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="a folder with files that are downloaded already: what it has is compared and used in place")
    made.add_argument("--check", action="store_true", help="change nothing; say what is missing or wrong")
    return made


def run(act: Callable[[], None]) -> None:
    """An error that was foreseen is one line, and so is Ctrl-C."""
    try:
        act()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


def get_data(name: str, asked: argparse.Namespace, **more: bool) -> None:
    """Prepare a data set of `publishers`, or check it, and print the next command."""
    done = prepare(name, asked.folder, asked.source, asked.check, **more)
    for fault in done.faults:
        print(f"- {fault}")
    if done.faults:
        sys.exit(f"{asked.folder} is not complete. The same command without --check goes on from what is there.")
    print(f"{done.root} is complete. Next:\n\n    {done.next}")
