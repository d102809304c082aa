"""Lessons 03c and 33: masks as text, instances on disk, proxy masks."""
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from wsss_nb.coco import CocoReader, decode_runs, paint_instances, read_instances_json, unpack_counts
from wsss_nb.core import DataError, generator
from wsss_nb.instances import proxy_mask, read_instances, with_tags, write_instances
from wsss_nb.packing import encode_mask, pack_counts, run_lengths
from wsss_nb.tagged import Instances, TaggedImages, mask_boxes

CLASSES, SOURCE, SUPERVISION = ("boat", "cow"), "by hand", "none beyond the picture"


def some_masks(n: int, h: int, w: int, key: int = 0) -> np.ndarray:
    """Blocks with ragged rims."""
    rng = generator(0, "masks", key)
    masks = np.kron(rng.random((n, -(-h // 6), -(-w // 5))) < .4, np.ones((6, 5)))[:, :h, :w].astype(bool) ^ (rng.random((n, h, w)) < .02)
    masks[:, 0, 0] = True
    return masks


def some_instances(n: int = 3, h: int = 40, w: int = 60, key: int = 0, **changes) -> Instances:
    """Instances of two classes with scores."""
    rng, masks = generator(0, "instances", key), some_masks(n, h, w, key)
    parts = dict(masks=masks, boxes=mask_boxes(masks), classes=rng.integers(1, 3, n), scores=rng.random(n))
    return Instances(**parts | changes)


@pytest.fixture
def stored(tmp_path):
    """A file of four images, of which the third has no instance."""
    found = {"a": some_instances(), "b": some_instances(1, 31, 17, 1), "2007_000032": some_instances(0, 20, 20), "d": some_instances(2, 8, 9, 2)}
    return write_instances(tmp_path / "found.json", found.items(), CLASSES, SOURCE, SUPERVISION), found


def same(a: Instances, b: Instances) -> bool:
    """Every part equal."""
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in ("masks", "boxes", "classes", "scores"))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))
@example(1, 1, 0., 0)
@example(1, 1, 1., 0)
@example(7, 1, 1., 0)
def test_text_is_what_pycocotools_writes(h, w, share, seed):
    """COCO's own program writes the same letters, and reading them gives the mask."""
    mask = np.random.default_rng(seed).random((h, w)) < share
    code, theirs = encode_mask(mask), pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (code["size"], code["counts"]) == (list(theirs["size"]), theirs["counts"].decode())
    assert np.array_equal(decode_runs(unpack_counts(code["counts"]), h, w), mask)


@pytest.mark.parametrize("key", range(4))
def test_large_objects(key):
    """Long runs take several letters; thin objects at each border."""
    mask = np.zeros((1200, 900), bool)
    mask[[slice(None), slice(0, 1), slice(1199, 1200), slice(300, 900)][key], [slice(0, 1), slice(None), slice(850, 900), slice(10, 700)][key]] = True
    assert encode_mask(mask)["counts"] == pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_text_by_hand():
    """Lesson 03's example: N is 30, five bits with the sign set, -2; and a run longer than one letter holds."""
    assert pack_counts(np.array([2, 4, 5, 2])) == "245N"
    assert pack_counts(np.array([16])) == "`0"                   # 16 = 10000 has the sign bit: a second letter follows
    assert run_lengths(np.array([[0, 1, 1], [0, 1, 0]], bool)).tolist() == [2, 3, 1]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_any_runs_survive(counts):
    """Packing is undone by lesson 03's reader, whatever the lengths."""
    assert unpack_counts(pack_counts(np.array(counts))).tolist() == counts


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((2, 2), np.uint8), np.zeros(4, bool), [[True]]])
def test_only_bool_masks_are_packed(mask):
    """Probabilities would silently become something else."""
    with pytest.raises(DataError, match=r"expected bool \(h,w\)"):
        encode_mask(mask)


def test_what_is_written_is_read(stored):
    """Masks, boxes, classes and scores bit by bit; names, source, sizes; the image without instances."""
    path, found = stored
    back = read_instances(path)
    assert (back.classes, back.source, back.supervision, back.ids) == (CLASSES, SOURCE, SUPERVISION, tuple(found))
    assert back.sizes == {i: f.masks.shape[1:] for i, f in found.items()}
    assert all(same(back(i), f) for i, f in found.items())
    assert back.image.tolist() == [0, 0, 0, 1, 3, 3]
    assert np.array_equal(back.scores, np.concatenate([f.scores for f in found.values()]))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert same(pickle.loads(pickle.dumps(back))("a"), found["a"])       # it can be sent to worker processes


def test_boxes_need_not_fit_their_masks(tmp_path):
    """A detector's box is kept as it is, fractions and all."""
    boxes = np.array([[3.1, 4.7, 33.3, 21.9], [10, 0, 60, 40], [.25, .125, .25, 39.9]], np.float32)
    back = read_instances(write_instances(tmp_path / "x.json", [("a", some_instances(boxes=boxes))], CLASSES, "s", "t"))
    assert np.array_equal(back("a").boxes, boxes) and np.array_equal(back.boxes, boxes)


def test_the_order_of_rows_does_not_matter(stored):
    """Another program may sort them as it likes; those of one image stay in their order."""
    path, found = stored
    data = json.loads(path.read_text())
    data["annotations"] = [data["annotations"][k] for k in (5, 3, 0, 4, 1, 2)]
    path.write_text(json.dumps(data))
    back = read_instances(path)
    assert same(back("a"), found["a"]) and same(back("b"), found["b"]) and back.image.tolist() == [0, 0, 0, 1, 3, 3]
    assert np.array_equal(back("d").masks, found["d"].masks[::-1])


def test_cocos_program_reads_it(stored, capsys):
    """pycocotools finds the same masks, boxes, areas and scores."""
    path, found = stored
    api = COCO(path)
    capsys.readouterr()
    for entry in api.loadImgs(api.getImgIds()):
        f, rows = found[entry["file_name"][:-4]], api.loadAnns(api.getAnnIds(entry["id"]))
        assert (entry["height"], entry["width"]) == f.masks.shape[1:] and len(rows) == len(f)
        for k, row in enumerate(rows):
            assert np.array_equal(api.annToMask(row), f.masks[k]) and row["area"] == f.masks[k].sum() and row["score"] == f.scores[k]
            left, top, right, bottom = f.boxes[k].tolist()
            assert row["bbox"] == [left, top, right - left, bottom - top]
            assert api.cats[row["category_id"]]["name"] == CLASSES[f.classes[k] - 1]


def test_lesson_03_reads_it(stored, tmp_path):
    """It is a file in COCO's instances format like any other."""
    path, found = stored
    for i, f in found.items():
        Image.new("RGB", f.masks.shape[:0:-1]).save(tmp_path / f"{i}.jpg")
    read = CocoReader(read_instances_json(path), lambda i: tmp_path / f"{i}.jpg")
    assert all(np.array_equal(read(i).masks, f.masks) and np.array_equal(read(i).classes, f.classes) for i, f in found.items())


def test_scores_and_crowds_are_optional(tmp_path):
    """Without a score it is 1; a crowd stays one."""
    plain = some_instances(2, scores=None)
    many = some_instances(2, crowd=np.array([False, True]))
    back = read_instances(write_instances(tmp_path / "x.json", [("p", plain), ("m", many)], CLASSES, "s", "t"))
    assert back("p").scores.tolist() == [1, 1] and back("p").crowd is None and back("m").crowd.tolist() == [False, True]


def test_identical_masks_are_two_instances(tmp_path):
    """Nothing merges them behind one's back."""
    masks = np.repeat(some_masks(1, 9, 9), 2, 0)
    twins = Instances(masks, mask_boxes(masks), np.array([1, 1]), np.array([.5, .5]))
    assert len(read_instances(write_instances(tmp_path / "x.json", [("a", twins)], CLASSES, "s", "t"))("a")) == 2


def test_some_images_only(stored):
    """In the order asked for; one that is not there is named."""
    path, found = stored
    back = read_instances(path, ids=("d", "a"))
    assert back.ids == ("d", "a") and same(back("d"), found["d"]) and same(back("a"), found["a"]) and back.image.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="lacks the instances of 1 of 2 images, the first is horse"):
        read_instances(path, ids=("a", "horse"))
    with pytest.raises(DataError, match="no instances of b"):
        back("b")


def test_sizes_are_compared_with_the_pictures(stored, tmp_path):
    """Instances of a resized picture are refused when they are asked for."""
    path, found = stored
    for i, size in (("a", (60, 40)), ("b", (31, 17))):               # Pillow's order is w, h: b is turned by 90°
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    data = TaggedImages(CLASSES, ("a", "b"), np.ones((2, 2), bool), lambda i: tmp_path / f"{i}.png")
    back = read_instances(path, data=data)
    assert back.ids == ("a", "b") and same(back("a"), found["a"])
    with pytest.raises(DataError, match=r"b has instances of size \(31, 17\); expected the size of .*b.png, \(17, 31\)"):
        back("b")


def change(**values):
    """A change of the first annotation."""
    return lambda d: d["annotations"][0].update(values)


FAULTS = {
    "unknown image": (change(image_id=99), "belongs to image 99"),
    "unknown category": (change(category_id=12), "has category 12"),
    "no number": (change(score=float("nan")), "score that is no number"),
    "endless": (change(score=float("inf")), "score that is no number"),
    "text": (change(score="high"), "cannot be read"),
    "box to the right": (change(bbox=[50, 0, 11, 5]), "box outside"),
    "box below": (change(bbox=[0, 30, 5, 11]), "box outside"),
    "box to the left": (change(bbox=[-1, 0, 5, 5]), "box outside"),
    "box without width": (change(bbox=[9, 9, -2, 5]), "box outside"),
    "box that is none": (change(bbox=[1, 2, 3]), "cannot be read"),
    "box of NaN": (change(bbox=[0, 0, float("nan"), 5]), "box outside"),
    "another size": (lambda d: d["annotations"][0]["segmentation"].update(size=[60, 40]), "another size than its image's"),
    "image twice": (lambda d: d["images"].append(dict(d["images"][0])), "twice"),
    "class twice": (lambda d: d["categories"].append(dict(d["categories"][0])), "twice"),
    "no source": (lambda d: d["info"].pop("source"), "does not say where"),
    "no supervision": (lambda d: d["info"].update(supervision=""), "does not say where"),
    "no images": (lambda d: d.pop("images"), "expected info, images, annotations, categories"),
    "no shape": (lambda d: d["annotations"][0].pop("segmentation"), "cannot be read"),
    "a path": (lambda d: d["images"][0].update(file_name="../a.jpg"), "expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused(stored, fault):
    """In one line that names the file and says what was expected."""
    path, _ = stored
    data = json.loads(path.read_text())
    harm, says = FAULTS[fault]
    harm(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=says) as refused:
        read_instances(path)
    assert path.name in str(refused.value) and "To mend it" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
def test_truncated_files_are_refused(stored, keep):
    """At any length."""
    path, _ = stored
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="whole JSON|zero bytes"):
        read_instances(path)


def test_runs_of_another_image_are_refused(stored):
    """Whoever cut a mask's text learns it when the mask is asked for."""
    path, _ = stored
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"]["counts"] = "231"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="a, instance 0 has runs for 6 pixels; expected 2400"):
        read_instances(path)("a")


@pytest.mark.parametrize("changes, says", [
    (dict(scores=np.array([1, np.nan, 1])), "instance 1 has a score that is no number"), (dict(classes=np.array([1, 2, 3])), "instance 2 has an unknown class"),
    (dict(boxes=np.array([[0, 0, 5, 5], [0, 0, 61, 5], [0, 0, 1, 1]])), "instance 1 has a box outside"), (dict(masks=np.zeros((3, 40, 60), bool)), "instance 0 has no pixel")])
def test_what_nothing_can_be_learned_from_is_not_written(tmp_path, changes, says):
    """Nothing is left behind, and what was there before stays."""
    before = write_instances(tmp_path / "x.json", [("a", some_instances())], CLASSES, "s", "t").read_bytes()
    with pytest.raises(DataError, match=f"b: {says}"):
        write_instances(tmp_path / "x.json", [("a", some_instances()), ("b", some_instances(**changes))], CLASSES, "s", "t")
    assert (tmp_path / "x.json").read_bytes() == before and os.listdir(tmp_path) == ["x.json"]


def test_names_are_checked_when_written(tmp_path):
    """An image twice, a name that leaves the folder, a file that does not say where it comes from."""
    for images, source, says in (([("a", some_instances())] * 2, "s", "twice"), ([("../a", some_instances())], "s", "without folder"), ([], "", "a few words")):
        with pytest.raises(DataError, match=says):
            write_instances(tmp_path / "x.json", images, CLASSES, source, "t")


def test_tags_for_a_whole_file(stored):
    """Tags of all instances at once, noise left out, without unpacking a mask."""
    path, found = stored
    back = read_instances(path)
    tagged = back.with_tags(np.array([3, 0, 1, 2, 0, 0]), ("bird", "boat", "cow"))
    assert tagged.classes == ("bird", "boat", "cow") and tagged.ids == back.ids
    assert tagged("a").classes.tolist() == [3, 1] and np.array_equal(tagged("a").masks, found["a"].masks[[0, 2]])
    assert tagged("b").classes.tolist() == [2] and len(tagged("d")) == 0
    one = with_tags(found["a"], np.array([3, 0, 1]))
    assert same(one, tagged("a"))
    for wrong in (np.zeros(5, int), np.array([4, 0, 0, 0, 0, 0]), np.array([-1, 0, 0, 0, 0, 0]), np.zeros(6)):
        with pytest.raises(DataError, match="whole numbers 0…3"):
            back.with_tags(wrong, ("bird", "boat", "cow"))


def test_higher_scores_lie_on_top():
    """By hand on a row of five pixels, for both kinds of outside."""
    masks = np.array([[[1, 1, 1, 0, 0]], [[0, 1, 1, 1, 0]], [[0, 0, 1, 0, 0]]], bool)
    found = Instances(masks, mask_boxes(masks), np.array([4, 7, 9]), np.array([.6, .8, .1]))
    assert proxy_mask(found, (1, 5)).tolist() == [[4, 7, 7, 7, 0]]
    assert proxy_mask(found, (1, 5), outside=255).tolist() == [[4, 7, 7, 7, 255]]
    with pytest.raises(DataError, match=r"expected their image's \(5, 1\)"):
        proxy_mask(found, (5, 1))
    with pytest.raises(DataError, match="outside is 3"):
        proxy_mask(found, (1, 5), outside=3)


@pytest.mark.parametrize("key", range(10))
def test_proxy_masks_equal_a_loop_over_pixels(key):
    """Each pixel takes the class of the highest score there; and equal scores are lesson 03's rule."""
    found = some_instances(5, 13, 11, key)
    S = proxy_mask(found, (13, 11))
    for y, x in np.ndindex(13, 11):
        there = [k for k in range(5) if found.masks[k, y, x]]
        assert S[y, x] == (found.classes[max(there, key=lambda k: found.scores[k])] if there else 0)
    even = some_instances(5, 13, 11, key, scores=np.full(5, .5))
    assert np.array_equal(proxy_mask(even, (13, 11)), paint_instances(even, (13, 11)))
