"""Lesson 03f: a table and a folder of pictures become a data set, or one line says why not."""
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb.core import DataError
from wsss_nb.own_data import ids_of, link, read_table, split, told_own, write_own
from wsss_nb.voc import voc_folder


@pytest.fixture
def pictures(tmp_path):
    """Six pictures, two of one name in two folders, one PNG, one reached through a link; and a table that names them in a German spreadsheet's way."""
    root = tmp_path / "photos"
    for k, name in enumerate(("a/x.jpg", "b/x.jpg", "my cat.JPG", "c.png", "d.jpeg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6 + k, 9, 3), 40 * k, np.uint8)).save(root / name)
    os.symlink(root / "c.png", root / "e.png")
    table = tmp_path / "tags.csv"
    table.write_text("\ufeffFile;Tags\na/x.jpg;cat;traffic  light\nb/x.jpg;dog | cat\nmy cat.JPG;cat\nc.png;\nd.jpeg;dog\ne.png;dog\n", encoding="utf-8")
    return root, table


def test_table_to_data_set(pictures, tmp_path):
    """Ids, classes in order, tags and pixels by hand; no masks; yours are untouched."""
    root, table = pictures
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    folder = write_own(read_table(table), root, tmp_path / "mine", 1 / 3)
    train, val = voc_folder(folder, "train"), voc_folder(folder, "val")
    assert train.classes == ("cat", "dog", "traffic_light")
    assert train.ids == ("a_x", "b_x", "d", "e") and val.ids == ("c", "my_cat")    # every third in the order of names; capitals don't count as such
    assert train.tags.tolist() == [[True, False, True], [True, True, False], [False, True, False], [False, True, False]]
    assert val.tags.tolist() == [[False, False, False], [True, False, False]]
    assert train.image(1).shape == (7, 9, 3) and (val.image(0) == 120).all() and (train.image(3) == 120).all()
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    assert not list(folder.rglob("*.part*"))


def test_twice_is_once(pictures, tmp_path):
    """Called again, the same bytes; a picture that was changed meanwhile is taken anew."""
    root, table = pictures
    folder = write_own(read_table(table), root, tmp_path / "mine")
    texts = {path: path.read_bytes() for path in folder.rglob("*.txt")}
    os.unlink(root / "c.png")
    Image.fromarray(np.full((3, 4, 3), 7, np.uint8)).save(root / "c.png")
    write_own(read_table(table), root, tmp_path / "mine")
    assert {path: path.read_bytes() for path in folder.rglob("*.txt")} == texts
    assert Image.open(folder / "JPEGImages/c.png").size == (4, 3)


def test_a_disk_without_links_gets_copies(pictures, tmp_path, monkeypatch):
    """The same bytes under the new name."""
    def refuse(*args, **kwargs):
        raise OSError("no links here")
    monkeypatch.setattr(os, "link", refuse)
    link(pictures[0] / "c.png", tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes() == (pictures[0] / "c.png").read_bytes()


@pytest.mark.parametrize("text, says", [
    ("", "is empty"), ("\n\n", "0 rows"), ("file,tags\n", "0 rows"), (",cow\n", "1 of them without a file"), ("a.jpg,cow\na.jpg,dog\n", "a.jpg twice"),
    ('a.jpg,"cow\n', "cannot be read as a table"),
])
def test_bad_tables(tmp_path, text, says):
    """Named in one line, with what was expected."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_a_table_in_another_coding(tmp_path):
    """Latin letters of an old spreadsheet are refused, not guessed."""
    (tmp_path / "t.csv").write_bytes("a.jpg,b\xe4r\n".encode("latin1"))
    with pytest.raises(DataError, match="save the spreadsheet as CSV, in UTF-8"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("rows, says", [
    ({"../tags.csv": ("cat",)}, "is not in"), ({"/etc/hostname": ("cat",)}, "is not in"), ({"nobody.jpg": ("cat",)}, "does not exist"), ({"broken.jpg": ("cat",)}, "cannot be read"),
    ({"c.webp": ("cat",)}, "pictures that end in"), ({"c.png": ()}, "names 0 classes"), ({"c.png": ("background",)}, "background among them"), ({"c.png": ("cat",)}, "cannot be parted"),
])
def test_bad_pictures_and_tags(pictures, tmp_path, rows, says):
    """Refused before a file is written."""
    (pictures[0] / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(DataError, match=says):
        write_own(rows, pictures[0], tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_two_names_one_id():
    """Both are named."""
    for names in (["x.jpg", "x.png"], ["a/x.jpg", "b/x.jpg", "a_x.jpg"]):
        with pytest.raises(DataError, match="would both be called"):
            ids_of(names)


@given(st.integers(2, 80), st.sampled_from([.1, .2, 1 / 3, .5, .9]))
def test_shares(n, share):
    """Nothing is lost or doubled, and val has its share to within a picture."""
    ids = [f"{k:03}" for k in range(n)]
    if not 1 <= int(n * share + 1e-9) < n:
        return
    train, val = split(reversed(ids), share)
    assert sorted(train + val) == ids and abs(len(val) - n * share) < 1
    assert split(ids, 0.) == (ids, ids)


def test_counts_are_told():
    """Of three pictures: what is everywhere and what is rare."""
    told = told_own({"1": ("sky", "cow"), "2": ("sky",), "3": ("sky",)})
    assert "3 pictures, 0 without a tag" in told and "sky: in every picture" in told and "sky, cow: in fewer than 5" in told
