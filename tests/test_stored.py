"""Lesson 14b: seeds on disk and back, and the field's pickle."""
import gzip
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from wsss_nb.core import DataError, generator
from wsss_nb.files import folder_hash
from wsss_nb.stored import (
    cue_folder,
    read_input_list,
    read_localization_cues,
    read_seeds,
    unpickle_cues,
    without_seeds,
    write_seeds,
)
from wsss_nb.tagged import TrainingSet, collate
from wsss_nb.transforms import warp_transform
from wsss_nb.voc import VOC_CLASSES, read_sec_cues, voc_folder

CLASSES, NAMES = ("boat", "cow"), ("threshold", "crf", "snapped")


def some_seeds(k: int = 0, h: int = 41, w: int = 41) -> np.ndarray:
    """Three label maps of two classes, with unlabelled pixels."""
    return generator(0, "seeds", k).choice(np.array([0, 1, 2, 255], np.uint8), (3, h, w))


@pytest.fixture
def folder(tmp_path):
    """Seeds of three images."""
    for k, name in enumerate("abc"):
        write_seeds(tmp_path / "cues", name, some_seeds(k), CLASSES, NAMES, {"foreground": .2})
    return tmp_path / "cues"


@pytest.mark.parametrize("size", [(41, 41), (1, 1), (1, 500), (500, 375)])
def test_what_is_written_is_read(tmp_path, size):
    """Labels, class names, seed names and how they were made."""
    S = some_seeds(0, *size)
    path = write_seeds(tmp_path, "2007_000032", S, CLASSES, NAMES, {"scales": [1, .75], "made": "ä"})
    found = read_seeds(path, CLASSES)
    assert np.array_equal(found.S, S) and found.S.dtype == np.uint8 and found.S.flags.c_contiguous
    assert (found.classes, found.names, found.made) == (CLASSES, NAMES, {"scales": [1, .75], "made": "ä"})
    assert [p.name for p in tmp_path.iterdir()] == ["2007_000032.npz"]


def test_another_program_can_read_it(folder):
    """A zip of two plain arrays: the labels of a pixel side by side, and JSON."""
    with zipfile.ZipFile(folder / "a.npz") as file:
        assert sorted(file.namelist()) == ["S.npy", "about.npy"]
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        S, about = (np.lib.format.read_array(io.BytesIO(file.read(f"{name}.npy"))) for name in ("S", "about"))
    assert np.array_equal(S.transpose(2, 0, 1), some_seeds(0))
    assert json.loads(about.tobytes()) == {"classes": ["boat", "cow"], "names": list(NAMES), "made": {"foreground": .2}}


def test_the_same_seeds_are_the_same_bytes(folder, tmp_path):
    """At another time, in another order, from an array with other strides, with notes in another order."""
    before = folder_hash(folder)
    for name in "cba":
        strided = some_seeds("abc".index(name)).transpose(0, 2, 1).copy().transpose(0, 2, 1)
        write_seeds(tmp_path / "again", name, strided, CLASSES, NAMES, {"foreground": .2})
        os.utime(tmp_path / f"again/{name}.npz", (0, 0))
    assert folder_hash(tmp_path / "again") == before
    one = write_seeds(tmp_path, "x", some_seeds(), CLASSES, NAMES, {"a": 1, "b": 2}).read_bytes()
    assert write_seeds(tmp_path, "x", some_seeds(), CLASSES, NAMES, {"b": 2, "a": 1}).read_bytes() == one


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    """Whole or not at all: no half file, no litter, and the image counts as not done."""
    old = (folder / "a.npz").read_bytes()

    def breaks(path, **arrays):
        path.write_bytes(b"half")
        raise OSError("disk full")
    monkeypatch.setattr(np, "savez_compressed", breaks)
    for name in "ad":
        with pytest.raises(OSError, match="disk full"):
            write_seeds(folder, name, some_seeds(), CLASSES, NAMES)
    assert (folder / "a.npz").read_bytes() == old and sorted(p.name for p in folder.iterdir()) == ["a.npz", "b.npz", "c.npz"]
    assert without_seeds(folder, "cdab") == ["d"]


def test_training_reads_them(folder, toyvoc, tmp_path):
    """All seeds, or one by name, through TrainingSet, a worker process and the joint transforms."""
    data = voc_folder(toyvoc, "train")
    for i, name in enumerate(data.ids):
        write_seeds(tmp_path / "toy", name, some_seeds(i), data.classes, NAMES)
    cues = cue_folder(tmp_path / "toy", data.classes, data.ids)
    loader = torch.utils.data.DataLoader(TrainingSet(data, warp_transform(64, (41, 41), mirror=False), cues), batch_size=3, num_workers=1, collate_fn=collate)
    batch = next(iter(loader))
    assert batch.S.dtype == torch.uint8 and np.array_equal(batch.S, np.stack([some_seeds(i) for i in range(3)]))
    one = cue_folder(tmp_path / "toy", data.classes, data.ids, seed="crf")
    assert np.array_equal(one(data.ids[4]), some_seeds(4)[1])
    assert np.array_equal(pickle.loads(pickle.dumps(one))(data.ids[4]), some_seeds(4)[1])


def damage(folder):
    """name -> (what is done to a.npz, what the message names)."""
    whole, path = (folder / "a.npz").read_bytes(), folder / "a.npz"
    put = lambda **arrays: (lambda: np.savez_compressed(path, **arrays))
    about = np.frombuffer(json.dumps({"classes": CLASSES, "names": NAMES, "made": {}}).encode(), np.uint8)
    S = some_seeds().transpose(1, 2, 0)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    return {
        "end cut off": (lambda: path.write_bytes(whole[:-40]), "not a file of seeds"),
        "half": (lambda: path.write_bytes(whole[:len(whole) // 2]), "not a file of seeds"),
        "a byte turned": (lambda: path.write_bytes(bytes(flipped)), "not a file of seeds"),
        "empty": (lambda: path.write_bytes(b""), "zero bytes"),
        "missing": (path.unlink, "does not exist"),
        "a picture": (lambda: path.write_bytes(b"\x89PNG"), "not a file of seeds"),
        "a single array": (lambda: np.save(open(path, "wb"), S), "not a file of seeds"),
        "a pickle inside": (put(S=np.array([{}], object), about=about), "not a file of seeds"),
        "no notes": (put(S=S), "not a file of seeds"),
        "notes that are no JSON": (put(S=S, about=about[:-3]), "not a file of seeds"),
        "notes without names": (put(S=S, about=np.frombuffer(b'{"classes": [], "made": {}}', np.uint8)), "not a file of seeds"),
        "notes that are a list": (put(S=S, about=np.frombuffer(b"[]", np.uint8)), "not a file of seeds"),
        "integers": (put(S=S.astype(int), about=about), "int64"),
        "one map": (put(S=S[..., 0], about=about), r"shape \(41, 41\)"),
        "two maps for three names": (put(S=S[..., :2], about=about), "2 seeds and the names"),
        "a class too many": (put(S=np.where(S == 2, 3, S), about=about), "label 3"),
    }


@pytest.mark.parametrize("name", ["end cut off", "half", "a byte turned", "empty", "missing", "a picture", "a single array", "a pickle inside", "no notes",
                                  "notes that are no JSON", "notes without names", "notes that are a list", "integers", "one map", "two maps for three names", "a class too many"])
def test_damaged_files_are_refused(folder, name):
    """One line with the file's name, what was expected and how to mend it."""
    act, message = damage(folder)[name]
    act()
    with pytest.raises(DataError, match=message) as error:
        cue_folder(folder, CLASSES)("a")
    assert "a.npz" in str(error.value) and "expected" in str(error.value) and "To mend it" in str(error.value)


@pytest.mark.parametrize("classes", [("cow", "boat"), ("boat",), ("boat", "cow", "cat")])
def test_another_class_list_is_refused(folder, classes):
    """Other order, fewer, more: a number would mean another class."""
    with pytest.raises(DataError, match="was made for 2 classes, boat, cow"):
        cue_folder(folder, classes)("a")
    assert read_seeds(folder / "a.npz").classes == CLASSES


def test_what_is_missing_is_said_at_once(folder):
    """Ids without a file, an unknown seed, a folder that is not there."""
    with pytest.raises(DataError, match="lacks the cues of 2 of 4 images, the first is d"):
        cue_folder(folder, CLASSES, "abde")
    with pytest.raises(DataError, match="no seed 'grey'.*one of threshold, crf, snapped"):
        cue_folder(folder, CLASSES, seed="grey")("a")
    with pytest.raises(DataError, match="lacks the cues of 0 of 0"):
        cue_folder(folder / "nowhere", CLASSES)
    assert without_seeds(folder / "nowhere", "ab") == ["a", "b"]


@pytest.mark.parametrize("S, names, message", [
    (some_seeds().astype(int), NAMES, "int64"), (some_seeds()[0], NAMES, "shape"), (some_seeds()[:2], NAMES, "2 seeds"), (some_seeds(), ("a", "a", "b"), "all different"),
    (np.full((3, 2, 2), 3, np.uint8), NAMES, "label 3"), (some_seeds()[:, :0], NAMES, "shape")])
def test_wrong_seeds_are_not_written(tmp_path, S, names, message):
    """Nothing is written that could not be read."""
    with pytest.raises(DataError, match=message):
        write_seeds(tmp_path, "a", S, CLASSES, names)
    with pytest.raises(DataError, match="without folder"):
        write_seeds(tmp_path, "../a", some_seeds(), CLASSES, NAMES)
    assert not list(tmp_path.iterdir())


# ---- the field's pickle --------------------------------------------------------------------------------------------

def write_list(path, ids):
    """`name.jpg number`, as SEC's training/input_list.txt."""
    path.write_text("".join(f"{name}.jpg {k}\n" for k, name in enumerate(ids)))
    return path


def python2_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes that Python 2 and numpy 1 write at protocol 2: array data is a `str` (opcode T), not bytes."""
    text = lambda word: b"U" + bytes([len(word)]) + word.encode()
    number = lambda n: b"J" + int(n).to_bytes(4, "little", signed=True)
    out = b"\x80\x02}("
    for key, array in arrays.items():
        raw = np.ascontiguousarray(array, "<i8").tobytes()
        out += text(key) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + b"K\x00\x85" + text("b") + b"\x87R"
        out += b"(K\x01(" + b"".join(map(number, array.shape)) + b"t" + b"cnumpy\ndtype\n" + text("i8") + b"K\x00K\x01\x87R"
        out += b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    return out + b"u."


def test_cues_of_sec(data_folder, tmp_path):
    """Real cues, written in the field's layout by numpy, by hand as Python 2 would, and as tuples: read back as SEC's .npz says."""
    raw = dict(np.load(data_folder / "voc12/sec_cues_41x41.npz"))
    expected, ids = read_sec_cues(data_folder / "voc12/sec_cues_41x41.npz"), raw["ids"][:300].tolist()
    table = {}
    for k in range(300):
        part = slice(raw["offset"][k], raw["offset"][k + 1])
        table[f"{k}_cues"] = np.stack([raw[name][part].astype(np.int64) for name in ("cls", "row", "col")])
        table[f"{k}_labels"] = np.unique(table[f"{k}_cues"][0][table[f"{k}_cues"][0] > 0])
    forms = {"two.pickle": python2_pickle(table), "three.pickle": pickle.dumps(table), "protocol2.pickle": pickle.dumps(table, 2),
             "tuples.pickle": pickle.dumps({key: tuple(v) if "cues" in key else v for key, v in table.items()}),
             "short.pickle": pickle.dumps({key: v.astype(np.int16) for key, v in table.items()}),
             "zipped.pickle.gz": gzip.compress(python2_pickle(table))}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        cues = read_localization_cues(tmp_path / name, write_list(tmp_path / "input_list.txt", ids), (41, 41))
        assert cues.ids == tuple(ids) and all(np.array_equal(cues(i), expected(i)) for i in ids), name


def test_bytes_above_127_of_python_2(tmp_path):
    """Its strings are bytes: row 200 of a map of 321×321 is no ASCII."""
    (tmp_path / "cues.pickle").write_bytes(python2_pickle({"0_cues": np.array([[5], [200], [255]])}))
    cues = read_localization_cues(tmp_path / "cues.pickle", write_list(tmp_path / "list.txt", ["x"]), (321, 321))
    assert np.argwhere(cues("x") == 5).tolist() == [[200, 255]]


class Wish:
    """Pickled, it calls anything."""
    def __init__(self, *wish):
        self.wish = wish

    def __reduce__(self):
        return self.wish[0], self.wish[1:]


HOSTILE = {"os.system": lambda flag: pickle.dumps({"0_cues": Wish(os.system, f"touch {flag}")}),
           "builtins.eval": lambda flag: pickle.dumps({"0_cues": Wish(eval, f"open({str(flag)!r}, 'w')")}),
           "io.open": lambda flag: pickle.dumps({"0_cues": Wish(io.open, str(flag), "w")}),
           "numpy.fromfile": lambda flag: pickle.dumps({"0_cues": Wish(np.fromfile, "/etc/hostname")}),
           "numpy.ndarray.tofile": lambda flag: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
           "builtins.getattr": lambda flag: b"\x80\x02cbuiltins\ngetattr\n.",
           "numpy.core.multiarray.fromstring": lambda flag: b"\x80\x02cnumpy.core.multiarray\nfromstring\n.",
           "persistent": lambda flag: b"\x80\x02Pname\n."}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_does_nothing(tmp_path, name):
    """Whatever it asks for is refused by name before anything is called."""
    flag = tmp_path / "flag"
    (tmp_path / "cues.pickle").write_bytes(HOSTILE[name](flag))
    with pytest.raises(DataError, match=name.replace("os.", "(os|posix|nt).")):
        unpickle_cues(tmp_path / "cues.pickle")
    assert not flag.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}(", b"hello", pickle.dumps([1]), pickle.dumps({"0_cues": np.zeros((3, 2), int)})[:-20]])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    """Empty, cut off, text, a list."""
    (tmp_path / "cues.pickle").write_bytes(content)
    with pytest.raises(DataError, match="cues.pickle"):
        unpickle_cues(tmp_path / "cues.pickle")
    with pytest.raises(DataError, match="does not exist"):
        unpickle_cues(tmp_path / "nowhere.pickle")


@pytest.mark.parametrize("cues", [[[21], [0], [0]], [[-1], [0], [0]], [[1], [41], [0]], [[1], [0], [-1]], [[1, 1], [0, 0]], [[1.5], [0], [0]], [["a"], [0], [0]], 7,
                                  ([1, 1], [0], [0]), np.zeros((3, 1), bool) * 1j])
def test_cues_that_make_no_sense(tmp_path, cues):
    """Classes and cells beyond the grid, fractions, words, rows of different length."""
    cues = tuple(map(np.array, cues)) if isinstance(cues, tuple) else np.array(cues)
    (tmp_path / "cues.pickle").write_bytes(pickle.dumps({"0_cues": cues}))
    with pytest.raises(DataError, match=r"cues.pickle, 0_cues \(x\) is not what it should be"):
        read_localization_cues(tmp_path / "cues.pickle", write_list(tmp_path / "list.txt", ["x"]), (41, 41))


def test_two_classes_for_a_pixel(tmp_path):
    """Refused, or unlabelled on request; the same class twice is no conflict."""
    for cls, fine in (([1, 2, 3], False), ([2, 1, 3], False), ([1, 1, 3], True)):
        (tmp_path / "cues.pickle").write_bytes(pickle.dumps({"0_cues": np.array([cls, [1, 1, 0], [0, 0, 1]])}))
        listed = write_list(tmp_path / "list.txt", ["x"])
        if not fine:
            with pytest.raises(DataError, match="1 pixels for two classes|2 pixels for two classes"):
                read_localization_cues(tmp_path / "cues.pickle", listed, (2, 2))
        found = read_localization_cues(tmp_path / "cues.pickle", listed, (2, 2), conflicts="unlabel")
        assert found("x").tolist() == [[255, 3], [1 if fine else 255, 255]]


def test_other_lists_and_classes(tmp_path):
    """A list of another set, lines that are none, a folder in a name; classes of one's own."""
    (tmp_path / "cues.pickle").write_bytes(pickle.dumps({"0_cues": np.array([[3], [0], [0]])}))
    with pytest.raises(DataError, match="lacks the cues of 1 of 2 images, the first is b"):
        read_localization_cues(tmp_path / "cues.pickle", write_list(tmp_path / "list.txt", "ab"), (41, 41))
    with pytest.raises(DataError, match=r"classes 0…2"):
        read_localization_cues(tmp_path / "cues.pickle", write_list(tmp_path / "list.txt", "a"), (41, 41), classes=CLASSES)
    for text, message in (("a.jpg\n", "a.jpg"), ("a.jpg x\n", "number"), ("a.jpg 0\na.png 1\n", "twice"), ("a.jpg 0\nb.jpg 0\n", "twice"), ("../a.jpg 0\n", "without folder")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_input_list(tmp_path / "list.txt")
    assert len(VOC_CLASSES) == 20
