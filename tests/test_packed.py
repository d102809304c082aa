"""Lesson 14e: the packed cues are the single ones, and whatever does not fit is refused or left as it is."""
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_toy import tiny

from wsss_nb import opening, stages
from wsss_nb.core import IGNORE, DataError
from wsss_nb.packed import ARRAY, NOTE, PackedCues, pack_cues, packed_cues
from wsss_nb.stored import CueFolder, write_seeds

CLASSES, NAMES = ("cat", "cow"), ("rough", "fine", "bold")


@pytest.fixture
def drawn(tmp_path):
    """Nine pictures with three seeds of 6 × 5 pixels, their folder and the maps by id."""
    maps = {f"p{k}": np.random.default_rng(k).choice(np.array([0, 1, 2, IGNORE], np.uint8), (3, 6, 5)) for k in range(9)}
    for name, S in maps.items():
        write_seeds(tmp_path / "cues", name, S, CLASSES, NAMES)
    return tmp_path / "cues", maps


def test_the_same_numbers(drawn):
    """All seeds or one, in any order, and after a journey to another process; what is handed out is the caller's own."""
    folder, maps = drawn
    assert isinstance(packed_cues(folder, CLASSES, maps), CueFolder)
    assert pack_cues(folder, CLASSES, maps)
    read = pickle.loads(pickle.dumps(packed_cues(folder, CLASSES, maps)))
    assert isinstance(read, PackedCues)
    for name in reversed(list(maps)):
        assert (read(name) == maps[name]).all() and read(name).dtype == np.uint8
        for k, seed in enumerate(NAMES):
            assert (packed_cues(folder, CLASSES, [name], seed)(name) == maps[name][k]).all()
    read("p3")[:] = 7
    assert (read("p3") == maps["p3"]).all()


def test_what_differs_in_size_stays(drawn):
    """No array, no note, no litter."""
    folder, maps = drawn
    write_seeds(folder, "p9", np.zeros((3, 6, 6), np.uint8), CLASSES, NAMES)
    before = set(folder.iterdir())
    assert not pack_cues(folder, CLASSES, [*maps, "p9"]) and set(folder.iterdir()) == before


def test_a_kill_before_the_note_leaves_the_single_files(drawn):
    """An array without a note is not read."""
    folder, maps = drawn
    pack_cues(folder, CLASSES, maps)
    (folder / NOTE).unlink()
    assert isinstance(packed_cues(folder, CLASSES, maps), CueFolder)


@pytest.mark.parametrize("spoil, says", [
    (lambda folder: (folder / ARRAY).unlink(), "does not exist"),
    (lambda folder: (folder / ARRAY).write_bytes(b""), "is empty"),
    (lambda folder: (folder / ARRAY).write_bytes((folder / ARRAY).read_bytes()[:200]), "cannot be read"),
    (lambda folder: np.save(folder / ARRAY, np.array([{}], object), allow_pickle=True), "cannot be read"),
    (lambda folder: np.save(folder / ARRAY, np.zeros((2, 3, 6, 5), np.uint8)), "holds an array of shape"),
    (lambda folder: (folder / NOTE).write_text("{"), "cannot be read"),
    (lambda folder: (folder / NOTE).write_text(json.dumps({"ids": []})), "cannot be read"),
])
def test_spoiled_files_are_named(drawn, spoil, says):
    """In one line, with the way out."""
    folder, maps = drawn
    pack_cues(folder, CLASSES, maps)
    spoil(folder)
    with pytest.raises(DataError, match=f"{says}.*delete .*{NOTE}") as error:
        packed_cues(folder, CLASSES, maps)
    assert "\n" not in str(error.value)


def test_other_classes_images_and_seeds_are_refused(drawn):
    """As single files do."""
    folder, maps = drawn
    pack_cues(folder, CLASSES, maps)
    for classes, ids, seed, says in ((("cow", "cat"), maps, None, "was made for 2 classes, cat, cow"), (CLASSES, ["p1", "p99"], None, "1 of 2 images, the first is p99"),
                                     (CLASSES, maps, "dull", "no seed 'dull'")):
        with pytest.raises(DataError, match=says):
            packed_cues(folder, classes, ids, seed)
    with pytest.raises(DataError, match="has no cues of p99"):
        packed_cues(folder, CLASSES, maps)("p99")


def test_a_run_with_a_size_packs_its_cues(finished_run, toyvoc, tmp_path):
    """Training reads one array; without a size the cues differ, and it reads single files."""
    config, run = tiny(toyvoc, "dsrg/toy", "cues.size=[24, 24]"), Path(shutil.copytree(finished_run, tmp_path / "run"))
    for gone in ("cues", "train", "retrain", "predict", "evaluate", "report"):
        shutil.rmtree(run / gone)
    stages.cues(config, run)
    data = opening.open_data(config, "train")
    read = opening.stored_cues(config, run, data)
    assert isinstance(read, PackedCues) and read(data.ids[0]).shape == (24, 24)
    (run / "cues" / NOTE).unlink()
    single = opening.stored_cues(config, run, data)
    assert isinstance(single, CueFolder) and all((single(name) == read(name)).all() for name in data.ids)
    assert not (finished_run / "cues" / NOTE).exists()
