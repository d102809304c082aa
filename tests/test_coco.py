"""COCO's shapes, painting order, class order and lists, against independent plain programs."""
import copy
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsss_nb.coco import (
    coco,
    decode_polygons,
    decode_runs,
    decode_shape,
    paint_instances,
    read_coco_list,
    read_instances_json,
    unpack_counts,
)
from wsss_nb.core import DataError
from wsss_nb.tagged import Instances, TrainingSet

GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}      # COCO's unused ids between 1 and 90
SOME = {1: "person", 2: "bicycle", 11: "fire hydrant", 12: "stop sign", 26: "umbrella", 61: "dining table", 80: "toothbrush"}


def runs_by_hand(M: np.ndarray) -> list[int]:
    """Count pixel by pixel down the columns."""
    counts, value = [0], False
    for pixel in M.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def text_by_hand(counts: list[int]) -> str:
    """COCO's compression, letter by letter, after the C program's rleToString."""
    letters = []
    for k, x in enumerate(counts):
        x = x - counts[k - 2] if k > 2 else x
        more = True
        while more:
            c, x = x & 31, x >> 5
            more = x != -1 if c & 16 else x != 0
            letters.append(chr((c | 32 if more else c) + 48))
    return "".join(letters)


def runs_from_text_by_hand(text: str) -> list[int]:
    """The inverse, with Python's unbounded integers."""
    counts, value, shift = [], 0, 0
    for letter in text:
        c = ord(letter) - 48
        value, shift = value + ((c & 31) << shift), shift + 5
        if not c & 32:
            value -= 1 << shift if c & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def mask_by_hand(text: str, h: int, w: int) -> np.ndarray:
    """Fill the flat columns run by run."""
    flat, place = np.zeros(h * w, bool), 0
    for k, n in enumerate(runs_from_text_by_hand(text)):
        flat[place:place + n] = k % 2
        place += n
    return flat.reshape((h, w), order="F")


def blobs(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A random mask with long and short runs."""
    return (np.kron(rng.random((h // 8 + 1, w // 8 + 1)) < .4, np.ones((8, 8)))[:h, :w] > 0) ^ (rng.random((h, w)) < rng.choice([0, .02, .5]))


def test_run_lengths_of_random_masks():
    """Packed letter by letter in this file, decoded by the library; sizes with one row, one column, all, none."""
    rng = np.random.default_rng(1)
    masks = [blobs(rng, *rng.integers(1, 90, 2)) for _ in range(200)]
    masks += [np.ones((3, 2000), bool), np.zeros((2000, 3), bool), np.ones((1, 1), bool), np.kron(np.eye(2), np.ones((900, 700))) > 0]
    for M in masks:
        counts = runs_by_hand(M)
        text = text_by_hand(counts)
        assert unpack_counts(text).tolist() == counts
        for code in (counts, text):
            assert (decode_shape({"size": list(M.shape), "counts": code}, *M.shape) == M).all()


def test_pycocotools_reads_the_same():
    """The official program agrees about the same text."""
    pycoco = pytest.importorskip("pycocotools.mask", reason="pip install 'wsss_nb[coco]'")
    rng = np.random.default_rng(2)
    for _ in range(50):
        M = blobs(rng, *rng.integers(1, 90, 2))
        text = text_by_hand(runs_by_hand(M))
        assert (pycoco.decode({"size": list(M.shape), "counts": text.encode()}).astype(bool) == decode_runs(unpack_counts(text), *M.shape)).all()


@pytest.mark.parametrize("counts", [[3, 5], [3, 5, 80], [], "35", "35hoo", "", "zz", [-1, 17]])
def test_runs_that_do_not_fill_the_image(counts):
    """Too few, too many, none: never memory that happened to be there."""
    with pytest.raises(DataError, match="16"):
        decode_shape({"size": [4, 4], "counts": counts}, 4, 4)


def test_rectangles_as_polygons():
    """With corners on pixel corners the filling is not a matter of taste; two polygons are their union."""
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(3)
    for _ in range(60):
        M, polygons = np.zeros((20, 30), bool), []
        for _ in range(rng.integers(1, 4)):
            (left, right), (top, bottom) = np.sort(rng.choice(31, 2, False)).tolist(), np.sort(rng.choice(21, 2, False)).tolist()
            M[top:bottom, left:right] = True
            polygons.append([left, top, right, top, right, bottom, left, bottom])
        assert (decode_polygons(polygons, 20, 30, "x") == M).all()


def test_slanted_polygon_agrees_inside_and_outside():
    """Away from the outline (a pixel either way) filling equals a point-in-polygon test; COCO's rounding rules the outline."""
    pytest.importorskip("pycocotools")
    corners = np.array([[3.2, 2.1], [36.5, 8.7], [30.1, 33.3], [12.4, 27.9]])           # convex, clockwise
    y, x = np.mgrid[:40, :40] + .5
    distance = []
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0)):
        distance.append(((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / np.hypot(bx - ax, by - ay))
    inside = np.min(distance, 0)
    M = decode_polygons([corners.ravel().tolist()], 40, 40, "x")
    assert M[inside > 1].all() and not M[inside < -1].any()
    assert (inside > 1).sum() > 300 and (inside < -1).sum() > 300


def test_missing_pycocotools_is_explained():
    """Runs decode without it; polygons say what to install; importing the module does not need it."""
    code = ("import sys; sys.modules['pycocotools'] = None\nfrom wsss_nb.coco import decode_shape\n"
            "decode_shape({'size': [1, 2], 'counts': [1, 1]}, 1, 2)\n"
            "try: decode_shape([[0, 0, 1, 0, 1, 1]], 2, 2)\nexcept ImportError as error: print(error)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'wsss_nb[coco]'" in out


def test_smaller_instance_is_on_top():
    """Each pixel takes the smallest object over it (the later of equals), searched pixel by pixel; a crowd takes part as 255."""
    rng = np.random.default_rng(4)
    for _ in range(30):
        masks = np.stack([blobs(rng, 12, 15) for _ in range(5)])
        classes, crowd = rng.integers(1, 81, 5), rng.random(5) < .3
        found = Instances(masks, np.zeros((5, 4)), classes, crowd=crowd)
        S, sizes = paint_instances(found, (12, 15)), masks.sum((1, 2))
        for row in range(12):
            for column in range(15):
                over = [n for n in range(5) if masks[n, row, column]]
                winner = min(over, key=lambda n: (sizes[n], -n)) if over else None
                assert S[row, column] == (0 if winner is None else 255 if crowd[winner] else classes[winner])


@pytest.fixture(scope="module")
def sample(data_folder):
    """The 53 real images: the file as plain JSON, and opened by the library."""
    path = data_folder / "coco_sample/instances_sample.json"
    return json.loads(path.read_text()), coco(data_folder / "coco_sample/images", path, masks=True, instances=True)


def test_classes_are_in_cocos_order(sample):
    """80 contiguous classes in the order of COCO's ids, whose gaps are known; every instance has the class its id says."""
    raw, data = sample
    order = [k for k in range(1, 91) if k not in GAPS]
    assert len(data.classes) == 80 and data.n_classes == 81 and [c["id"] for c in raw["categories"]] == order
    assert {c: data.classes[c - 1] for c in SOME} == SOME
    for i, entry in enumerate(raw["images"]):
        expected = [order.index(a["category_id"]) + 1 for a in raw["annotations"] if a["image_id"] == entry["id"]]
        assert data.instances(i).classes.tolist() == expected


def test_sample_has_all_instances_and_masks(sample):
    """53 images, 355 instances, nothing dropped; each mask and each label map equals the plain decoding in this file."""
    raw, data = sample
    order, total = [k for k in range(1, 91) if k not in GAPS], 0
    assert len(data) == 53
    for i, entry in enumerate(raw["images"]):
        found, S = data.instances(i), np.zeros((entry["height"], entry["width"]), int)
        listed = [a for a in raw["annotations"] if a["image_id"] == entry["id"]]
        masks = [mask_by_hand(a["segmentation"]["counts"], *a["segmentation"]["size"]) for a in listed]
        total += len(found)
        assert len(found) == len(listed) and all((a == b).all() for a, b in zip(found.masks, masks))
        assert found.crowd.tolist() == [bool(a["iscrowd"]) for a in listed]
        for a, m in sorted(zip(listed, masks), key=lambda pair: -pair[1].sum()):
            S[m] = 255 if a["iscrowd"] else order.index(a["category_id"]) + 1
        assert (data.mask(i) == S).all()
        for box, a in zip(found.boxes, listed):
            assert np.allclose(box, [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])
    assert total == 355


def test_image_without_annotations_keeps_its_place(sample, data_folder):
    """One of the 53 has no object: a row without tags, an empty mask; left out only on request."""
    _, data = sample
    (empty,) = (~data.tags.any(1)).nonzero()[0]
    assert not data.mask(empty).any() and len(data.instances(empty)) == 0
    only = coco(data_folder / "coco_sample/images", data_folder / "coco_sample/instances_sample.json", only_tagged=True)
    assert len(only) == 52 and data.ids[empty] not in only.ids


@pytest.mark.parametrize("name, n", [("train", 82081), ("val", 40137)])
def test_lists_of_the_field(data_folder, name, n):
    """The field's counts, and every line's numbers found again by another route."""
    path = data_folder / f"coco14/{name}.txt.gz"
    ids, tags = read_coco_list(path)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(ids) == n and tags.shape == (n, 80) and tags.any(1).all()
    assert all(f"{i} {' '.join(map(str, row.nonzero()[0]))}" == line for i, row, line in zip(ids[::97], tags[::97], lines[::97]))
    assert tags.sum() == sum(len(line.split()) - 1 for line in lines)


@pytest.fixture
def tiny(tmp_path):
    """Two images and three objects, as a dictionary and a function that opens a changed copy."""
    for name in ("one", "two"):
        Image.new("RGB", (6, 4)).save(tmp_path / f"{name}.jpg")
    content = dict(images=[dict(id=5, file_name="one.jpg", height=4, width=6), dict(id=6, file_name="two.jpg", height=4, width=6)],
                   categories=[dict(id=9, name="boat"), dict(id=2, name="cow")],
                   annotations=[dict(id=1, image_id=5, category_id=9, iscrowd=0, segmentation=dict(size=[4, 6], counts=[4, 8, 12])),
                                dict(id=2, image_id=5, category_id=2, iscrowd=0, segmentation=dict(size=[4, 6], counts=[4, 4, 16]))])

    def opened(change=lambda content: None, **options):
        changed = copy.deepcopy(content)
        change(changed)
        (tmp_path / "x.json").write_text(json.dumps(changed))
        return coco(tmp_path, tmp_path / "x.json", **options)
    return opened


def test_tiny_file_by_hand(tiny):
    """Columns 1 and 2 are boat (class 2), column 1 also cow (class 1), which is smaller."""
    data = tiny(masks=True)
    assert data.classes == ("cow", "boat") and data.tags.tolist() == [[True, True], [False, False]]
    assert data.mask(0).tolist() == [[0, 1, 2, 0, 0, 0]] * 4 and not data.mask(1).any()


def test_training_keeps_no_shape(tiny, tmp_path):
    """Opened for training no segmentation is kept, and damaged ones do not matter."""
    data = tiny(lambda c: c["annotations"][0].update(segmentation="damaged"))
    assert data.read_mask is data.read_instances is None
    assert TrainingSet(data)[0][1].all()
    kept = {shapes: [set(a) for found in read_instances_json(tmp_path / "x.json", shapes).objects.values() for _, a in found] for shapes in (True, False)}
    assert all("segmentation" in keys for keys in kept[True]) and not any("segmentation" in keys for keys in kept[False])


@pytest.mark.parametrize("change, message", [
    (lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.*To mend it"),
    (lambda c: c["images"][0].update(file_name="../one.jpg"), "without folder"),
    (lambda c: c["images"][1].update(file_name="one.jpg"), "twice"),
    (lambda c: c["images"][1].update(id=5), "twice"),
    (lambda c: c["annotations"][0].update(category_id=12), "annotation 1 has category 12"),
    (lambda c: c["annotations"][0].update(image_id=99), "annotation 1 belongs to image 99"),
    (lambda c: c.pop("annotations"), "annotations"),
    (lambda c: c["images"][0].pop("file_name"), "file_name"),
    (lambda c: c.update(images=3), "no instances file"),
    (lambda c: c["annotations"][0]["segmentation"].update(size=[6, 4]), "annotation 1 is coded for size"),
    (lambda c: c["annotations"][0]["segmentation"].update(counts=[4, 8]), "annotation 1 has runs for 12 pixels"),
    (lambda c: c["annotations"][1].update(segmentation=[[1, 1, 3, 3]]), "annotation 2 has a polygon with 2 points"),
    (lambda c: c["annotations"][1].update(segmentation=[]), "annotation 2 has a polygon with 0 points"),
    (lambda c: c["images"][0].update(height=5), "the size of.*one.jpg"),
])
def test_damaged_files(tiny, change, message):
    """Each gets one error that names the file and the mend."""
    with pytest.raises(DataError, match=message) as error:
        tiny(change, masks=True).mask(0)
    assert "To mend it" in str(error.value) and ("x.json" in str(error.value))


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"images": [1], "annotations": [], "categories": []}', b"[" * 100_000])
def test_no_json(tmp_path, content):
    """Empty, cut off, of another kind, not text, nested without end."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match="x.json"):
        coco(tmp_path, tmp_path / "x.json")


def test_damaged_list(tmp_path):
    """A cut archive, a number beyond the classes, nothing at all."""
    whole = gzip.compress(b"a 1 2\n" * 1000)
    for content, name in ((whole[:-20], "x.txt.gz"), (b"plain", "x.txt.gz"), (b"a 80\n", "x.txt"), (b"a -1\n", "x.txt"), (b" \n", "x.txt"), (b"../a 1", "x.txt")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="x.txt"):
            read_coco_list(tmp_path / name)
