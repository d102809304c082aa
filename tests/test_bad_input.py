"""Whatever can be wrong with a data set: one clear error that names the file and the mend, or a handling the lesson documents."""
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from wsss_nb.coco import coco, decode_runs
from wsss_nb.core import DataError
from wsss_nb.files import write_labels
from wsss_nb.tagged import TrainingSet
from wsss_nb.voc import read_annotation, read_sbd, voc12, voc_folder


@pytest.fixture
def root(tmp_path):
    """A whole little folder in VOC layout, which each test damages in one way."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(tmp_path / f"JPEGImages/{name}.jpg")
        write_labels(tmp_path / f"SegmentationClass/{name}.png", np.ones((40, 60)))
        write_labels(tmp_path / f"SegmentationObject/{name}.png", np.ones((40, 60)))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("one\ntwo\n")
    (tmp_path / "classes.txt").write_text("cow\nboat\n")
    (tmp_path / "image_labels.txt").write_text("one cow\ntwo cow boat\n")
    data = voc_folder(tmp_path, "train", masks=True, instances=True)
    assert data.mask(0).max() == 1 and len(data.instances(1)) == 1
    return tmp_path


def refused(call, *named: str) -> None:
    """The call raises a DataError with all of these words, an expectation and a mend, on a few lines."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert all(name in message for name in (*named, "expected", "To mend it: ")), message
    assert len(message) < 900 and "Traceback" not in message


def lists(root, text: str) -> None:
    """Replace the list of images."""
    (root / "ImageSets/Segmentation/train.txt").write_text(text)


def test_missing_folder(root):
    """The data set, the pictures, the masks."""
    refused(lambda: voc_folder(root / "nowhere", "train"), "nowhere")
    refused(lambda: voc12(root / "nowhere"), "nowhere")
    shutil.rmtree(root / "SegmentationObject")
    refused(lambda: voc_folder(root, "train", instances=True), "SegmentationObject")
    shutil.rmtree(root / "SegmentationClass")
    refused(lambda: voc_folder(root, "train", masks=True), "SegmentationClass", "one")
    assert len(voc_folder(root, "train")) == 2                       # training is content
    shutil.rmtree(root / "JPEGImages")
    refused(lambda: voc_folder(root, "train"), "JPEGImages")


def test_a_file_where_a_folder_should_be(root):
    """A path to the list or an archive instead of the folder."""
    refused(lambda: voc_folder(root / "classes.txt", "train"), "classes.txt")


def test_missing_or_empty_list(root):
    """No such split, zero bytes, blank lines only, an id that stands twice."""
    refused(lambda: voc_folder(root, "val"), "val.txt")
    for text, word in (("", "zero bytes"), ("\n \n", "lists nothing"), ("one\none\n", "one twice")):
        lists(root, text)
        refused(lambda: voc_folder(root, "train"), "train.txt", word)


def test_listed_image_is_missing(root):
    """Said when the data set is opened, with a count and the first name."""
    lists(root, "one\nthree\nfour\n")
    refused(lambda: voc_folder(root, "train"), "train.txt", "2 images", "three", "JPEGImages")


@pytest.mark.parametrize("bad", ["../../etc/passwd", "/etc/passwd", "JPEGImages/one.jpg", "..\\one"])
def test_id_leads_out_of_the_folder(root, bad):
    """Ids are names, not paths; also the field's lists of pairs of paths are told so."""
    lists(root, bad + "\n")
    refused(lambda: voc_folder(root, "train"), "train.txt", "without folder")


def test_mask_is_missing(root):
    """Named when the data set is opened for evaluation; training does not care."""
    (root / "SegmentationClass/two.png").unlink()
    refused(lambda: voc_folder(root, "train", masks=True), "two has no mask", "SegmentationClass")
    assert len(TrainingSet(voc_folder(root, "train"))) == 2


def test_mask_of_another_size(root):
    """Never resized behind your back."""
    write_labels(root / "SegmentationClass/one.png", np.ones((60, 40)))
    refused(lambda: voc_folder(root, "train", masks=True).mask(0), "SegmentationClass/one.png", "(60, 40)", "(40, 60)")


def test_mask_holds_a_class_beyond_the_list(root):
    """Class 3 of two; 255 is allowed."""
    write_labels(root / "SegmentationClass/one.png", np.full((40, 60), 3))
    refused(lambda: voc_folder(root, "train", masks=True).mask(0), "SegmentationClass/one.png", "class 3", "0…2")
    write_labels(root / "SegmentationClass/one.png", np.full((40, 60), 255))
    assert voc_folder(root, "train", masks=True).mask(0).min() == 255


def test_rgb_mask(root):
    """Colours are not classes; the mend is a line of code."""
    Image.open(root / "SegmentationClass/one.png").convert("RGB").save(root / "SegmentationClass/one.png")
    refused(lambda: voc_folder(root, "train", masks=True).mask(0), "SegmentationClass/one.png", "RGB", "uncolorize")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_pictures_become_rgb(root, mode):
    """Documented handling: three channels of uint8, close to what Pillow itself makes of it."""
    picture = Image.open(root / "JPEGImages/one.jpg").convert(mode)
    picture.save(root / "JPEGImages/one.jpg", quality=95)
    image = voc_folder(root, "train").image(0)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    if mode == "L":
        assert (image[..., 0] == image[..., 2]).all() and (image[..., 0] == np.array(Image.open(root / "JPEGImages/one.jpg"))).all()
    assert TrainingSet(voc_folder(root, "train"))[0][2].image.shape == (3, 40, 60)


def test_sixteen_bit_picture_keeps_its_high_byte(root):
    """Documented handling: 65,280 of 65,535 is 255, not cut off at 255."""
    (root / "JPEGImages/one.jpg").unlink()
    values = (np.arange(40 * 60) % 256 * 256).reshape(40, 60).astype(np.uint16)
    Image.fromarray(values).save(root / "JPEGImages/one.png")
    image = voc_folder(root, "train").image(0)
    assert (image == (values // 256)[..., None]).all()


def test_truncated_jpeg(root):
    """A download cut short, at any place: an error, never half a picture."""
    whole = (root / "JPEGImages/one.jpg").read_bytes()
    for keep in (2, 200, len(whole) // 2, len(whole) - 40):
        (root / "JPEGImages/one.jpg").write_bytes(whole[:keep])
        refused(lambda: voc_folder(root, "train").image(0), "JPEGImages/one.jpg")
        refused(lambda: TrainingSet(voc_folder(root, "train"))[0], "JPEGImages/one.jpg")


@pytest.mark.parametrize("name", ["JPEGImages/one.jpg", "SegmentationClass/one.png", "SegmentationObject/one.png", "image_labels.txt",
                                  "classes.txt", "ImageSets/Segmentation/train.txt"])
def test_zero_byte_file(root, name):
    """Each kind of file, empty: its name is in the error."""
    (root / name).write_bytes(b"")

    def use():
        data = voc_folder(root, "train", masks=True, instances=True)
        data.image(0), data.mask(0), data.instances(0)
    refused(use, name, "zero bytes")


@pytest.mark.parametrize("text, word", [("one cow\ntwo dog\n", "'dog'"), ("one cow\none boat\ntwo\n", "one twice"), ("one cow\none cow\n", "twice"),
                                        ("one cow\n", "no line for two"), ("one cow\ntwo Cow\n", "'Cow'"), ("one cow\ntwo boat,cow\n", "'boat,cow'")])
def test_image_labels(root, text, word):
    """Unknown class, duplicated id, missing id: the file is named, and the image."""
    (root / "image_labels.txt").write_text(text)
    refused(lambda: voc_folder(root, "train"), "image_labels.txt", word)


def test_images_without_tags_keep_their_place(root):
    """Documented handling: a row of False, and one line to leave them out."""
    (root / "image_labels.txt").write_text("two boat\none\n")
    data = voc_folder(root, "train")
    assert data.ids == ("one", "two") and data.tags.tolist() == [[False, False], [False, True]]
    assert not TrainingSet(data)[0][1].any()
    assert data.subset(data.tags.any(1).nonzero()[0]).ids == ("two",)


@pytest.mark.parametrize("text", ["cow\ncow\n", "background\ncow\n", "cow\ntraffic light\n", "\n".join(f"c{k}" for k in range(255))])
def test_class_list(root, text):
    """A name twice, background listed, a name of two words, more classes than a byte can hold."""
    (root / "classes.txt").write_text(text)
    refused(lambda: voc_folder(root, "train"), "classes.txt")


@pytest.mark.parametrize("text, word", [
    ("<annotation><object><name>dog</name></object></annotation>", "'dog'"),
    ("<annotation><object><name>cow</name>", "no readable XML"),
    ("<annotation><object></object></annotation>", "''"),
    ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>', "document type"),
    ("", "zero bytes"), ("cow", "no readable XML"), (None, "does not exist")])
def test_annotation(root, text, word):
    """Unknown class, cut off, no name, entities, empty, no XML, missing."""
    (root / "Annotations").mkdir()
    (root / "Annotations/two.xml").write_text("<annotation/>")
    if text is not None:
        (root / "Annotations/one.xml").write_text(text)
    refused(lambda: voc_folder(root, "train", tags="xml"), "Annotations/one.xml", word)


def test_entities_in_another_encoding(tmp_path):
    """UTF-16 hides the word DOCTYPE from a search in bytes; it is refused as not UTF-8."""
    (tmp_path / "x.xml").write_bytes('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'.encode("utf-16"))
    refused(lambda: read_annotation(tmp_path / "x.xml"), "x.xml")


@pytest.fixture
def annotations(root):
    """COCO's format for the same two pictures; returns a function that writes a changed copy and reads image one."""
    content = dict(images=[dict(id=k, file_name=f"{name}.jpg", height=40, width=60) for k, name in enumerate(("one", "two"))],
                   categories=[dict(id=3, name="cow")],
                   annotations=[dict(id=8, image_id=0, category_id=3, iscrowd=0, bbox=[0, 0, 60, 40], segmentation=dict(size=[40, 60], counts=[0, 2400]))])

    def read(change):
        changed = json.loads(json.dumps(content))
        change(changed)
        (root / "instances.json").write_text(json.dumps(changed))
        return coco(root / "JPEGImages", root / "instances.json", masks=True).mask(0)
    assert read(lambda c: None).all()
    return read


def test_coco_image_is_missing(annotations, root):
    """Said when the data set is opened, also for training."""
    refused(lambda: annotations(lambda c: c["images"][1].update(file_name="three.jpg")), "instances.json", "three", "JPEGImages")


def test_coco_runs_of_another_size(annotations):
    """The stated size, and the sum of the runs."""
    refused(lambda: annotations(lambda c: c["annotations"][0]["segmentation"].update(size=[60, 40])), "instances.json", "annotation 8", "[60, 40]")
    for counts in ([0, 2399], [0, 2401], "0"):
        refused(lambda: annotations(lambda c: c["annotations"][0]["segmentation"].update(counts=counts)), "instances.json", "annotation 8", "2400")


def test_coco_polygon_of_two_points(annotations):
    """A line has no inside."""
    pytest.importorskip("pycocotools")
    refused(lambda: annotations(lambda c: c["annotations"][0].update(segmentation=[[1, 1, 9, 9]])), "instances.json", "annotation 8", "2 points")


def test_coco_unknown_category_and_broken_json(annotations, root):
    """A category the file does not define; a file that ends early."""
    refused(lambda: annotations(lambda c: c["annotations"][0].update(category_id=4)), "instances.json", "annotation 8", "category 4")
    text = (root / "instances.json").read_text()
    (root / "instances.json").write_text(text[:len(text) // 2])
    refused(lambda: coco(root / "JPEGImages", root / "instances.json"), "instances.json")


def test_coco_picture_was_resized(annotations, root):
    """Masks of the original size do not fit a resized picture."""
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/one.jpg")
    refused(lambda: annotations(lambda c: None), "instances.json", "one.jpg", "(20, 30)")


def test_no_message_shows_python_to_the_reader(root):
    """Messages speak of files and classes; no repr of an object with an address."""
    lists(root, "one\nthree\n")
    with pytest.raises(DataError) as error:
        voc_folder(root, "train")
    assert not re.search(r"0x[0-9a-f]{6}|<function|Traceback", str(error.value))


def test_texts_from_windows(root):
    "A byte-order mark and tabs are read; another encoding is named."
    (root / "image_labels.txt").write_bytes(b"\xef\xbb\xbf" + (root / "image_labels.txt").read_bytes().replace(b" ", b"\t"))
    assert voc_folder(root, "train").tags.any()
    (root / "classes.txt").write_bytes("käse\n".encode("latin1"))
    with pytest.raises(DataError, match="classes.txt is not UTF-8"):
        voc_folder(root, "train")


@pytest.mark.parametrize("runs", [[2**62] * 4 + [24], [25, -1], [23]])
def test_coco_runs_that_cannot_be(runs):
    "The first sums to 24 after wrapping around 2**64."
    with pytest.raises(DataError, match="runs for"):
        decode_runs(np.array(runs, dtype=np.int64), 4, 6)


@pytest.mark.parametrize("shape", [None, 5, [1, 2, 3, 4, 5, 6], [["a"] * 6], [[float("nan")] * 6], [[-100, -100, 1e12, -50, 1000, 1000]],
                                   {"size": None, "counts": "a"}, {"size": [4, 6], "counts": ["a"]}])
def test_coco_shapes_that_cannot_be(annotations, shape):
    "Whatever stands where a shape should, the message names the annotation."
    with pytest.raises(DataError, match="annotation 8"):
        annotations(lambda content: content["annotations"][0].update(segmentation=shape))


def test_damaged_sbd_file(tmp_path):
    "A flipped byte in compressed data raises the decoder's own error, which is translated."
    from scipy.io import savemat
    path = tmp_path / "x.mat"
    savemat(path, {"GTcls": {"Segmentation": np.arange(24, dtype=np.uint8).reshape(4, 6) % 3}}, do_compression=True)
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="x.mat"):
        read_sbd(path)
    savemat(path, {"GTcls": {"Segmentation": np.full((4, 6), -1)}})
    with pytest.raises(DataError, match="down to -1"):
        read_sbd(path)


def test_coco_categories_that_share_an_id(annotations):
    "Two names for one number: neither can be trusted."
    with pytest.raises(DataError, match="two categories one id"):
        annotations(lambda content: content["categories"].append(dict(id=3, name="calf")))


def test_coco_more_classes_than_a_byte_can_hold(annotations, root):
    "Class 255 would read as unlabelled. Without masks such a file is fine."
    with pytest.raises(DataError, match="has 255 classes"):
        annotations(lambda content: content["categories"].extend(dict(id=k, name=f"c{k}") for k in range(4, 258)))
    assert len(coco(root / "JPEGImages", root / "instances.json").classes) == 255
