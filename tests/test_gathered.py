"""Lesson 14d: seeds from folders somebody else filled, opened together; and everything that can be wrong with them, in one line each."""
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from wsss_nb.core import IGNORE, DataError
from wsss_nb.gathered import files_hash, gather, open_source
from wsss_nb.stored import write_seeds

CLASSES, IDS = ("bird", "cat", "cow"), ("a", "b", "c")


def label_map(k, size=(4, 6)):
    """Labels 0…3 and 255, different for each k."""
    return np.random.default_rng(k).choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), size)


@pytest.fixture
def folders(tmp_path):
    """Two kinds: `npz` with the seeds x and y of three images, `png` with one map each. What is in them."""
    maps = {}
    for i, name in enumerate(IDS):
        write_seeds(tmp_path / "npz", name, np.stack([label_map(10 * i), label_map(10 * i + 1)]), CLASSES, ("x", "y"))
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(label_map(10 * i + 2)).save(tmp_path / f"png/{name}.png")
        maps[name] = [label_map(10 * i + k) for k in range(3)]
    return tmp_path, maps


def refused(call, *said):
    """One line that names what, expected, and how to mend it."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and "To mend it" in message and all(part in message for part in said), message
    return message


def test_seeds_of_both_kinds_in_the_order_named(folders):
    """Maps come back as they were written, folder by folder; names say which is which."""
    root, maps = folders
    for order in (("npz", "png"), ("png", "npz")):
        found = gather([str(root / folder) for folder in order], CLASSES, IDS)
        names = {"npz": [f"{root}/npz x", f"{root}/npz y"], "png": [f"{root}/png"]}
        assert list(found.names) == [name for folder in order for name in names[folder]] and found.missing == {}
        for name in IDS:
            parts = {"npz": maps[name][:2], "png": maps[name][2:]}
            np.testing.assert_array_equal(found(name), np.stack([S for folder in order for S in parts[folder]]))
            assert found(name).dtype == np.uint8


def test_one_seed_by_name(folders):
    """FOLDER:NAME is that map alone, wherever it lies in the file; the folder's own name may hold a colon."""
    root, maps = folders
    for k, seed in enumerate("xy"):
        found = gather([f"{root}/npz:{seed}"], CLASSES, IDS)
        assert found.names == (f"{root}/npz {seed}",) and all(np.array_equal(found(name), maps[name][k:k + 1]) for name in IDS)
    write_seeds(root / "npz", "b", np.stack(maps["b"][1::-1]), CLASSES, ("y", "x"))         # another order in one file
    assert np.array_equal(gather([f"{root}/npz"], CLASSES, IDS)("b"), maps["b"][:2])
    (root / "npz").rename(root / "of:friends")
    assert np.array_equal(gather([f"{root}/of:friends"], CLASSES, IDS)("a"), maps["a"][:2]) and np.array_equal(gather([f"{root}/of:friends:y"], CLASSES, IDS)("a"), maps["a"][1:2])


def test_a_missing_seed_is_named_or_allowed_and_counted(folders):
    """Without leave an error; with it a map that says nothing, for each seed of that folder, as large as the others."""
    root, maps = folders
    (root / "npz/b.npz").unlink()
    where = [f"{root}/npz", f"{root}/png"]
    refused(lambda: gather(where, CLASSES, IDS), f"{root}/npz lacks the seeds of 1 of 3 images, the first is b", "--allow-missing-seeds")
    found = gather(where, CLASSES, IDS, allow_missing=True)
    assert found.missing == {f"{root}/npz": 1} and np.array_equal(found("a")[2], maps["a"][2])
    assert found("b").shape == (3, 4, 6) and (found("b")[:2] == IGNORE).all() and np.array_equal(found("b")[2], maps["b"][2])
    assert gather(where, CLASSES, ("a", "c")).missing == {}                                  # nobody asked for b
    assert gather([f"{root}/npz:x", f"{root}/npz:y", f"{root}/png"], CLASSES, IDS, True).missing == {f"{root}/npz": 1}
    (root / "png/b.png").unlink()
    refused(lambda: gather(where, CLASSES, IDS, allow_missing=True), "no folder has a seed for 1 of 3 images, the first is b")


def test_sizes_must_agree_or_be_named(folders):
    """Both sizes are in the message; a size brings every map to the labels under the centres of its pixels, by hand."""
    root, maps = folders
    big = np.arange(36, dtype=np.uint8).reshape(6, 6) % 4
    Image.fromarray(big).save(root / "png/a.png")
    found = gather([f"{root}/npz", f"{root}/png"], CLASSES, IDS)
    refused(lambda: found("a"), "the seeds of a have the sizes", f"(4, 6) in {root}/npz", f"(6, 6) in {root}/png", "cues.size=[41,41]")
    assert found("b").shape == (3, 4, 6)
    small = gather([f"{root}/npz", f"{root}/png"], CLASSES, IDS, size=(2, 2))("a")
    assert small.shape == (3, 2, 2) and np.array_equal(small[2], big[np.ix_([1, 4], [1, 4])])


def test_other_classes_are_refused(folders):
    """A stored file says which classes it was made for; of a PNG only a number that is too large can be seen."""
    root, _ = folders
    refused(lambda: open_source(f"{root}/npz", ("bird", "cow", "cat")), "a.npz was made for 3 classes, bird, cat, cow", "use the cues of this data set")
    refused(lambda: open_source(f"{root}/npz", CLASSES[:2]), "was made for 3 classes")
    write_seeds(root / "npz", "c", np.zeros((2, 4, 6), np.uint8), ("dog",), ("x", "y"))
    refused(lambda: gather([f"{root}/npz"], CLASSES, IDS)("c"), "c.npz was made for 1 classes, dog")
    Image.fromarray(np.full((4, 6), 4, np.uint8)).save(root / "png/b.png")
    refused(lambda: gather([f"{root}/png"], CLASSES, IDS)("b"), "png/b.png holds class 4", "0…3")


@pytest.mark.parametrize("where, said", [("", "is no folder"), ("  ", "is no folder"), (":", "is no folder"), ("{}/nowhere", "is no folder"), ("{}/nowhere:x", "is no folder"), ("{}/npz:", "is no folder"),
                                         (":x", "is no folder"), ("{}/npz/a.npz", "is no folder"), ("{}/npz:z", "has no seed 'z'"), ("{}/npz:x:y", "is no folder"), ("{}/npz:../png", "has no seed '../png'"),
                                         ("{}/png:x", "label maps (.png), which have no names"), ("{}/empty", "holds 0 .npz and 0 .png"), ("{}/both", "holds 3 .npz and 1 .png"), ("\0", "no folder")])
def test_hostile_names_of_folders(folders, where, said, monkeypatch):
    """Nothing but a folder of one kind of seeds, or one seed of it, is opened; never the folder one stands in."""
    root, maps = folders
    monkeypatch.chdir(root / "npz")
    (root / "empty").mkdir()
    shutil.copytree(root / "npz", root / "both")
    shutil.copy(root / "png/a.png", root / "both/z.png")
    refused(lambda: gather([where.format(root)], CLASSES, IDS), said)


def test_no_folder_at_all():
    """An empty list is a mistake, not a network without supervision."""
    refused(lambda: gather([], CLASSES, IDS), "no folder of seeds was named")


def test_the_same_seeds_twice(folders):
    """A copy would count twice: by another way of writing it, by a link, by its name and in its folder."""
    root, _ = folders
    os.symlink(root / "npz", root / "link")
    for twice in ((f"{root}/npz", f"{root}/npz"), (f"{root}/npz", f"{root}/npz/"), (f"{root}/npz", f"{root}/png/../npz"), (f"{root}/npz", f"{root}/link"), (f"{root}/npz", f"{root}/npz:y"), (f"{root}/png", f"{root}/png")):
        refused(lambda: gather(twice, CLASSES, IDS), "each of them once")                    # noqa: B023
    assert len(gather([f"{root}/npz:y", f"{root}/npz:x"], CLASSES, IDS).names) == 2


def test_damaged_files_are_named(folders):
    """Cut, empty, of another kind, a seed short: the file, and no traceback."""
    root, _ = folders
    whole = {path: path.read_bytes() for path in (root / "npz/b.npz", root / "png/b.png")}
    found = gather([f"{root}/npz", f"{root}/png"], CLASSES, IDS)
    for path, data in whole.items():
        for damage in (data[:-len(data) // 2], data[:40], b"", b"not what the name says" * 9):
            path.write_bytes(damage)
            refused(lambda: found("b"), str(path))
        path.write_bytes(data)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / "png/b.png")
    refused(lambda: found("b"), "b.png is a RGB picture", "uncolorize")
    write_seeds(root / "npz", "b", np.zeros((1, 4, 6), np.uint8), CLASSES, ("x",))
    refused(lambda: found("b"), "b.npz has no seed 'y'", "one of x")
    np.savez(root / "npz/b.npz", S=np.array([{"a": 1}], object))
    refused(lambda: found("b"), "b.npz is not a file of seeds")


def test_a_hash_notices_other_files(folders):
    """Another name, another size, one more, one less; not another time, and not which seed of a file is meant."""
    root, _ = folders
    where = [f"{root}/npz", f"{root}/png"]
    first = files_hash(where)
    os.utime(root / "png/a.png", (1, 1))
    assert re.fullmatch("[0-9a-f]{16}", first) and files_hash(where) == first == files_hash([f"{root}/npz:y", where[1]]) and files_hash(where[::-1]) != first
    (root / "png/readme.txt").write_text("no seed")
    assert files_hash(where) == first
    seen = {first}
    for change in (lambda: (root / "png/a.png").rename(root / "png/d.png"), lambda: (root / "png/b.png").unlink(), lambda: (root / "npz/c.npz").write_bytes(b"short")):
        change()
        seen.add(files_hash(where))
    assert len(seen) == 4


def test_it_can_be_sent_to_other_processes(folders):
    """Readers of training pictures run beside the training."""
    import pickle
    root, _ = folders
    found = gather([f"{root}/npz", f"{root}/png"], CLASSES, IDS)
    assert np.array_equal(pickle.loads(pickle.dumps(found))("a"), found("a"))
