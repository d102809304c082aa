"""ToyVOC: the same bytes for the same seed, whole after a kill, in VOC's layout, and drawn as promised."""
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from wsss_nb.core import IGNORE, DataError
from wsss_nb.creatures import OUTSIDERS, THINGS, Part, Thing, quadruped
from wsss_nb.drawing import ellipse
from wsss_nb.files import folder_hash
from wsss_nb.pictures import Look, draw_picture, with_border
from wsss_nb.toyvoc import census, make_outsiders, make_pretraining_set, make_toyvoc

CLASSES = ["bird", "boat", "car", "cat", "cow", "sheep"]
SMALL = dict(n_train=12, n_val=6, seed=3)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    "A ToyVOC of 18 pictures."
    return make_toyvoc(tmp_path_factory.mktemp("small") / "toyvoc", **SMALL)


def in_new_process(folder: Path, **how) -> str:
    "Draw in a fresh interpreter; the hash of what it drew."
    code = f"from wsss_nb.toyvoc import make_toyvoc; from wsss_nb.files import folder_hash; print(folder_hash(make_toyvoc({str(folder)!r}, **{how})))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def labels(path: Path) -> np.ndarray:
    "A mask, read by Pillow alone."
    picture = Image.open(path)
    assert picture.mode == "P"
    return np.array(picture)


def test_another_process_draws_the_same_bytes(small, tmp_path):
    assert in_new_process(tmp_path / "a", **SMALL) == folder_hash(small)


def test_another_seed_draws_other_pictures(small, tmp_path):
    other = make_toyvoc(tmp_path / "b", **SMALL | {"seed": 4})
    for path in (small / "JPEGImages").iterdir():
        assert path.read_bytes() != (other / "JPEGImages" / path.name).read_bytes()


def test_train_and_val_are_different_pictures(small):
    assert (small / "JPEGImages/train_00000.jpg").read_bytes() != (small / "JPEGImages/val_00000.jpg").read_bytes()


def test_different_labels_never_touch(small):
    "Between two labels lies the border, everywhere."
    for path in (small / "SegmentationObject").iterdir():
        S = labels(path)
        for a, b in ((S[1:], S[:-1]), (S[:, 1:], S[:, :-1])):
            assert (a == b)[(a != IGNORE) & (b != IGNORE)].all()


def test_a_longer_set_begins_with_the_shorter_one(small, tmp_path):
    longer = make_toyvoc(tmp_path / "c", **SMALL | {"n_train": 14})
    for path in (small / "JPEGImages").iterdir():
        assert path.read_bytes() == (longer / "JPEGImages" / path.name).read_bytes()


def test_a_killed_process_loses_at_most_the_picture_in_hand(tmp_path):
    "Killed with SIGKILL while drawing, called again: the same bytes as never killed, and finished pictures are kept."
    how, folder = dict(n_train=60, n_val=0, seed=9), tmp_path / "killed"
    code = f"from wsss_nb.toyvoc import make_toyvoc; make_toyvoc({str(folder)!r}, **{how})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    annotations = folder / "Annotations"
    deadline = time.time() + 60
    while time.time() < deadline and not (annotations.exists() and len(list(annotations.glob("[!.]*.xml"))) >= 5):
        time.sleep(.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in annotations.glob("[!.]*.xml")}
    assert 5 <= len(kept) < 60 and not (folder / "image_labels.txt").exists()
    (folder / "JPEGImages/.train_00059.jpg.99999999.part.jpg").write_bytes(b"half a pictu")     # what a kill inside a write leaves
    make_toyvoc(folder, **how)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert folder_hash(folder) == folder_hash(make_toyvoc(tmp_path / "whole", **how))


def test_a_finished_set_is_not_drawn_again(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    make_toyvoc(small, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}


def test_the_layout_is_vocs(small):
    ids = sorted([f"train_{i:05d}" for i in range(12)] + [f"val_{i:05d}" for i in range(6)])
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("SegmentationObject", ".png"), ("Annotations", ".xml")):
        assert sorted(path.name for path in (small / folder).iterdir()) == [name + suffix for name in ids]
    for kind in ("Main", "Segmentation"):
        assert (small / f"ImageSets/{kind}/trainval.txt").read_text().split() == ids
    assert (small / "classes.txt").read_text().split() == CLASSES
    assert len(list((small / "ImageSets/Main").iterdir())) == 3 * (len(CLASSES) + 1)


def test_tags_masks_boxes_and_lists_tell_one_story(small):
    "Four places say what an image shows; all are read here with nothing of the library."
    tags = {line.split()[0]: set(line.split()[1:]) for line in (small / "image_labels.txt").read_text().splitlines()}
    for name, classes in tags.items():
        S, objects = labels(small / f"SegmentationClass/{name}.png"), labels(small / f"SegmentationObject/{name}.png")
        h, w = S.shape
        assert Image.open(small / f"JPEGImages/{name}.jpg").size == (w, h)
        assert {CLASSES[c - 1] for c in np.unique(S) if c not in (0, IGNORE)} == classes
        assert ((S == IGNORE) == (objects == IGNORE)).all() and ((S == 0) == (objects == 0)).all()
        xml = ElementTree.parse(small / f"Annotations/{name}.xml").getroot()
        assert (int(xml.findtext("size/width")), int(xml.findtext("size/height"))) == (w, h)
        for number, entry in enumerate(xml.iter("object"), 1):
            assert set(np.unique(S[objects == number])) == {1 + CLASSES.index(entry.findtext("name"))}
            x0, y0, x1, y1 = (int(entry.findtext(f"bndbox/{k}")) - 1 for k in ("xmin", "ymin", "xmax", "ymax"))
            inside = np.zeros((h, w), bool)
            inside[y0:y1 + 1, x0:x1 + 1] = True
            assert inside[objects == number].all()
        split = name.partition("_")[0]
        for c in CLASSES:
            listed = dict(line.split() for line in (small / f"ImageSets/Main/{c}_{split}.txt").read_text().splitlines())
            assert (listed[name] == "1") == (c in classes)


def test_census_counts_what_is_there(small):
    facts = census(small, "train")
    assert facts["images"] == 12
    assert sum(facts["pixels of class"].values()) == sum(labels(small / f"SegmentationClass/train_{i:05d}.png").size for i in range(12))
    cats = sum((labels(small / f"SegmentationClass/train_{i:05d}.png") == 1 + CLASSES.index("cat")).sum() for i in range(12))
    assert facts["pixels of class"]["cat"] == cats


def test_every_object_shows_its_head_and_enough_of_itself():
    "SPIKE's lesson: an object without a visible head has a tag nobody could give."
    for index in range(36):
        picture = draw_picture(11, "train", index)
        assert (picture.heads >= 0).all()
        for number in range(1, 1 + len(picture.names)):
            visible = (picture.objects == number).mean()
            assert visible > .5 * Look().least_area     # the border takes a little of the promised area


def test_the_least_area_is_kept():
    "Asked for large objects, every object is large."
    for index in range(12):
        picture = draw_picture(11, "train", index, look=Look(several=0., least_area=.2))
        assert (picture.objects == 1).mean() > .15


def test_heads_are_small_and_bodies_share_colours():
    "What makes attention partial: a head's box is a small share of its object's, and palettes do not tell classes apart."
    area = lambda boxes: ((boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)).astype(float)
    pictures = [draw_picture(12, "train", i) for i in range(60)]
    share = np.concatenate([area(p.heads) / area(p.boxes) for p in pictures])
    assert .05 < np.median(share) < .4
    assert THINGS[3].body is THINGS[4].body is THINGS[5].body is quadruped


def test_about_a_third_of_pictures_hold_several_classes_and_some_are_grey():
    pictures = [draw_picture(13, "train", i) for i in range(150)]
    several = np.mean([len(set(p.names)) > 1 for p in pictures])
    grey = np.mean([(p.image.std(2) < 8).mean() > .99 for p in pictures])
    assert .2 < several < .5 and .02 < grey < .2


def test_border_surrounds_objects_where_they_meet():
    objects = np.zeros((5, 8), np.uint8)
    objects[:, 2:5], objects[:, 5:] = 1, 2
    assert with_border(objects)[2].tolist() == [0, IGNORE, IGNORE, 1, IGNORE, IGNORE, 2, 2]


def test_a_seventh_animal_needs_no_change_of_the_library(tmp_path):
    dog = Thing("dog", lambda rng: [Part(ellipse(0, 0, 1, 1), (90, 60, 40))], quadruped, friend="cat")
    folder = make_toyvoc(tmp_path / "zoo", n_train=7, n_val=0, seed=1, things=(*THINGS, dog))
    assert (folder / "classes.txt").read_text().split() == CLASSES + ["dog"]
    assert (labels(folder / "SegmentationClass/train_00006.png") == 7).any()


def test_outsiders_never_show_a_class_of_toyvoc(tmp_path):
    folder = make_outsiders(tmp_path / "outsiders", n_train=10, n_val=2)
    named = {word for line in (folder / "image_labels.txt").read_text().splitlines() for word in line.split()[1:]}
    assert named == {thing.name for thing in OUTSIDERS} and not named & set(CLASSES)


def test_pretraining_set_is_class_folders_of_single_objects(tmp_path):
    folder = make_pretraining_set(tmp_path / "pretraining", n_train=22, n_val=11)
    names = sorted(thing.name for thing in (*THINGS, *OUTSIDERS))
    for split, each in (("train", 2), ("val", 1)):
        assert sorted(path.name for path in (folder / split).iterdir()) == names
        assert all(len(list((folder / split / name).glob("*.jpg"))) == each for name in names)
    before = folder_hash(folder)
    (folder / "train/cat/00003.jpg").unlink()
    assert folder_hash(make_pretraining_set(folder, n_train=22, n_val=11)) == before


@pytest.mark.parametrize("how, words", [
    (dict(n_train=0, n_val=0), "at least one picture"), (dict(n_train=-1, n_val=3), "at least one picture"),
    (dict(things=(THINGS[0], THINGS[0])), "different names"), (dict(things=(replace(THINGS[0], name="sea bird"),)), "without spaces"),
    (dict(things=(replace(THINGS[0], name="../bird"),)), "slashes"), (dict(things=()), "different names"), (dict(seed=-1), "seed is -1"),
    (dict(things=(replace(THINGS[0], name="background"),)), "no background"), (dict(things=(replace(THINGS[0], name=""),)), "different names"),
    (dict(things=tuple(replace(THINGS[0], name=f"c{i}") for i in range(255))), "the 255 classes")])
def test_impossible_wishes_are_refused_before_anything_is_written(tmp_path, how, words):
    with pytest.raises(DataError, match=words):
        make_toyvoc(tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("how", [dict(seed=1.5), dict(n_train=3.), dict(seed="x")])
def test_numbers_that_are_none_leave_no_folder(tmp_path, how):
    with pytest.raises(TypeError):
        make_toyvoc(tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()


def test_the_pretraining_set_refuses_names_that_leave_its_folder(tmp_path):
    with pytest.raises(DataError, match="slashes"):
        make_pretraining_set(tmp_path / "pre", 11, 0, things=(replace(THINGS[0], name="a/../../x"),))


def test_two_processes_may_draw_one_folder(tmp_path):
    "The second leaves the first one's files in hand alone; together they draw what one draws."
    code = f"from wsss_nb.toyvoc import make_toyvoc; make_toyvoc({str(tmp_path / 'both')!r}, 40, 0, 2)"
    first = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not list(tmp_path.glob("both/Annotations/[!.]*.xml")):
        time.sleep(.01)
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert first.wait() == 0 and second.returncode == 0, first.stderr.read() + second.stderr
    assert folder_hash(tmp_path / "both") == folder_hash(make_toyvoc(tmp_path / "one", 40, 0, 2))


def test_a_file_in_another_process_hand_is_left_alone(tmp_path):
    "Temporary files carry their writer's number: a living writer's stay, a dead one's go."
    folder = make_toyvoc(tmp_path / "toyvoc", 2, 0)
    living, dead = (folder / f"JPEGImages/.x.jpg.{number}.part.jpg" for number in (os.getpid(), 99999999))
    living.touch(), dead.touch()
    make_toyvoc(folder, 2, 0)
    assert living.exists() and not dead.exists()


def test_a_lost_file_is_drawn_again_and_other_creatures_are_noticed(tmp_path):
    folder = make_toyvoc(tmp_path / "toyvoc", 4, 1)
    before = folder_hash(folder)
    (folder / "JPEGImages/train_00001.jpg").unlink()
    assert folder_hash(make_toyvoc(folder, 4, 1)) == before
    with pytest.raises(DataError, match="other settings"):
        make_toyvoc(folder, 4, 1, things=(replace(THINGS[0], tilt=1.), *THINGS[1:]))


def test_a_creature_without_a_head_is_named(tmp_path):
    headless = replace(THINGS[4], body=lambda rng, head: quadruped(rng, []))
    with pytest.raises(DataError, match="cow has no head"):
        make_toyvoc(tmp_path / "x", 1, 0, things=(headless,))


def test_other_peoples_folders_are_left_alone(small, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    with pytest.raises(DataError, match="holds other files"):
        make_toyvoc(tmp_path / "thesis", **SMALL)
    with pytest.raises(DataError, match="other settings"):
        make_toyvoc(small, **SMALL | {"n_val": 7})
    with pytest.raises(DataError, match="is a file"):
        make_toyvoc(tmp_path / "thesis/chapter.tex", **SMALL)
    assert json.loads((small / "toyvoc.json").read_text())["n_val"] == 6


def test_a_drawing_that_fails_says_so_and_can_be_mended(tmp_path):
    "A student's broken head raises its own error, from a thread, at once."
    def broken(rng):
        raise ZeroDivisionError("my head")
    with pytest.raises(ZeroDivisionError, match="my head"):
        make_toyvoc(tmp_path / "x", n_train=3, n_val=0, things=(replace(THINGS[0], head=broken),))
