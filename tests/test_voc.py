"""VOC's lists, tags, masks and cues; expected numbers are the field's or come from other programs."""
import gc
import os
import pickle
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_nb.core import DataError
from wsss_nb.files import write_labels
from wsss_nb.voc import VOC_CLASSES, convert_cls_labels, read_ids, read_image_labels, read_sbd, read_sec_cues, read_tags, voc12, voc_folder


@pytest.fixture
def root(tmp_path):
    """A folder of three images with VOC's classes and only annotations for tags."""
    (tmp_path / "JPEGImages").mkdir(), (tmp_path / "Annotations").mkdir(), (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    for name, classes in dict(a=("cow", "cow", "boat"), b=("tvmonitor",), c=()).items():
        Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        found = "".join(f"<object><name>{c}</name><part><name>head</name></part></object>" for c in classes)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{found}</annotation>")
    (tmp_path / "ImageSets/Segmentation/train_aug.txt").write_text("c\na\nb\n")
    return tmp_path


def named(data) -> dict:
    """Class names of each image."""
    return {i: {n for n, there in zip(data.classes, row) if there} for i, row in zip(data.ids, data.tags)}


@pytest.mark.parametrize("split, n", [("train", 1464), ("train_aug", 10582), ("val", 1449), ("test", 1456)])
def test_lists_have_the_known_lengths(data_folder, split, n):
    """The field's counts."""
    assert len(read_ids(data_folder / f"voc12/{split}.txt")) == n


def test_tags_of_train_aug(data_folder):
    """1.555 tags an image on average; the text agrees with a word count by hand; opening takes well under a second."""
    ids, path = read_ids(data_folder / "voc12/train_aug.txt"), data_folder / "voc12/image_labels.txt"
    tags = read_tags(data_folder, ids, VOC_CLASSES, path)
    assert tags.shape == (10582, 20) and round(tags.sum() / len(ids), 3) == 1.555
    lines = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    words = Counter(word for i in ids for word in lines[i].split())
    assert dict(zip(VOC_CLASSES, tags.sum(0).tolist())) == words


def test_opening_train_aug_prints_its_time(data_folder, tmp_path, capsys):
    """All of train_aug opens, from a folder of empty pictures with the real names; the time is shown, not judged."""
    (tmp_path / "JPEGImages").mkdir()
    for name in read_ids(data_folder / "voc12/train_aug.txt"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    gc.collect()
    start = time.perf_counter()
    data = voc12(tmp_path, data_folder / "voc12/train_aug.txt", tags=data_folder / "voc12/image_labels.txt")
    with capsys.disabled():
        print(f" [10,582 images opened in {time.perf_counter() - start:.3f} s] ", end="")
    assert len(data) == 10582 and data.image_file("2007_000032").name == "2007_000032.jpg"


def test_sec_cues_of_voc(data_folder):
    """10,582 maps, 404 of 1,681 cells labelled on average, none twice; three of them rebuilt cell by cell."""
    path = data_folder / "voc12/sec_cues_41x41.npz"
    cues = read_sec_cues(path)
    assert cues.S.shape == (10582, 41, 41) and set(cues.ids) == set(read_ids(data_folder / "voc12/train_aug.txt"))
    assert round((cues.S != 255).sum() / 10582) == 404
    raw = dict(np.load(path))
    assert (cues.S != 255).sum() == len(raw["cls"])         # no cell is claimed twice, by two classes or by one
    for k in (0, 777, 10581):
        by_hand = [[255] * 41 for _ in range(41)]
        for entry in range(raw["offset"][k], raw["offset"][k + 1]):
            by_hand[raw["row"][entry]][raw["col"][entry]] = int(raw["cls"][entry])
        assert cues(str(raw["ids"][k])).tolist() == by_hand


def test_sec_cues_with_a_conflict(tmp_path):
    """A cell of two classes is refused, or left unlabelled on request; the same class twice is no conflict, whatever the order."""
    for cls, fine in (([1, 2, 3], False), ([2, 1, 3], False), ([1, 1, 3], True)):
        np.savez(tmp_path / "cues.npz", ids=["a", "b"], offset=[0, 2, 3], cls=np.array(cls, np.uint8), row=[1, 1, 1], col=[0, 0, 0])
        if not fine:
            with pytest.raises(DataError, match="1 pixels for two classes"):
                read_sec_cues(tmp_path / "cues.npz", 2)
        cues = read_sec_cues(tmp_path / "cues.npz", 2, conflicts="unlabel")
        assert cues("a").tolist() == [[255, 255], [1 if fine else 255, 255]] and cues("b").tolist() == [[255, 255], [3, 255]]


@pytest.mark.parametrize("change", [dict(offset=[0, 2]), dict(offset=[0, 3, 2]), dict(offset=[1, 2, 3]), dict(row=[0, 2, 0]),
                                    dict(col=[0, -1, 0]), dict(cls=[0, 255, 0]), dict(row=[0, 1])])
def test_sec_cues_that_do_not_add_up(tmp_path, change):
    """Wrong offsets, cells off the grid, classes that are none."""
    np.savez(tmp_path / "cues.npz", **dict(ids=["a", "b"], offset=[0, 2, 3], cls=[1, 2, 3], row=[0, 1, 1], col=[0, 0, 0]) | change)
    with pytest.raises(DataError, match="cues.npz"):
        read_sec_cues(tmp_path / "cues.npz", 2)


def test_tags_from_annotations(root):
    """Names of objects count, names of their parts do not; an image without objects has no tag and keeps its place."""
    data = voc12(root)
    assert data.ids == ("c", "a", "b") and data.classes == VOC_CLASSES
    assert named(data) == {"a": {"cow", "boat"}, "b": {"tvmonitor"}, "c": set()}


def test_tags_from_text_come_first(root):
    """image_labels.txt wins over annotations unless xml is asked for."""
    (root / "image_labels.txt").write_text("a person\nb\nc sheep dog\n")
    assert named(voc12(root)) == {"a": {"person"}, "b": set(), "c": {"sheep", "dog"}}
    assert named(voc12(root, tags="xml"))["a"] == {"cow", "boat"}
    assert not voc12(root, tags="none").tags.any()


def test_devkit_is_found(root, tmp_path_factory):
    """The folder around VOC2012 will do."""
    around = tmp_path_factory.mktemp("download")
    (around / "VOCdevkit").mkdir()
    os.symlink(root, around / "VOCdevkit/VOC2012")
    assert len(voc12(around)) == 3


def test_missing_train_aug_is_explained(root):
    """VOC's download has no train_aug.txt: the error says what it is and where to get it; a list file of one's own will do."""
    (root / "ImageSets/Segmentation/train_aug.txt").rename(root / "mine.txt")
    with pytest.raises(DataError) as error:
        voc12(root)
    for part in ("ImageSets/Segmentation/train_aug.txt", "VOC's download lacks it", "10,582", "VOC train ∪ SBD train ∪ SBD val − VOC val",
                 "github.com/jiwoon-ahn/psa", "list file"):
        assert part in str(error.value)
    assert voc12(root, root / "mine.txt").ids == ("c", "a", "b")
    with pytest.raises(DataError, match="nowhere does not exist"):
        voc12(root / "nowhere")
    with pytest.raises(DataError, match="val.txt does not exist") as error:
        voc12(root, "val")
    assert "SBD" not in str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cls_labels_are_converted(tmp_path, protocol):
    """The field's file, with names or numbers for ids, in every pickle protocol numpy has used."""
    table = {"2007_000032": np.eye(20, dtype=np.float32)[14], 2008000001: np.eye(20, dtype=np.float32)[[0, 19]].sum(0), "2008_000002": np.zeros(20)}
    with open(tmp_path / "cls_labels.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(table, dtype=object), file, protocol=protocol)
    assert convert_cls_labels(tmp_path / "cls_labels.npy", tmp_path / "labels.txt") == 3
    assert (tmp_path / "labels.txt").read_text() == "2007_000032 person\n2008_000001 aeroplane tvmonitor\n2008_000002\n"
    assert read_image_labels(tmp_path / "labels.txt")["2008_000001"].nonzero()[0].tolist() == [0, 19]


class Evil:
    """Runs a command when it is unpickled."""
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["mkdir", "eval", "getattr"])
def test_evil_pickle_runs_nothing(tmp_path, name):
    """Neither the reader nor the converter runs what a pickle asks for."""
    visited = tmp_path / "visited"
    evil = {"mkdir": Evil(os.mkdir, str(visited)), "eval": Evil(eval, f"__import__('os').mkdir({str(visited)!r})"),
            "getattr": Evil(getattr, "x", "upper")}[name]
    np.save(tmp_path / "cls_labels.npy", {"a": evil})
    with pytest.raises(DataError, match="never needs"):
        convert_cls_labels(tmp_path / "cls_labels.npy", tmp_path / "labels.txt")
    with pytest.raises(DataError, match="convert_cls_labels"):
        read_tags(tmp_path, ("a",), VOC_CLASSES, tmp_path / "cls_labels.npy")
    assert not visited.exists() and not (tmp_path / "labels.txt").exists()


def test_converter_refuses_other_tables(tmp_path):
    """Another number of classes, ids with folders, no table at all."""
    for content, message in (({"a": np.zeros(3)}, "3 tags for a"), ({"../a": np.zeros(20)}, "without folder"), (np.zeros(4), "not a table"), ([1], "not a table")):
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            convert_cls_labels(tmp_path / "x.npy", tmp_path / "labels.txt")
    assert not (tmp_path / "labels.txt").exists()


def test_masks_come_from_the_first_folder_that_has_them(root):
    """VOC's own mask, then the merged folder, then SBD's .mat."""
    for i, folder in enumerate(("SegmentationClass", "SegmentationClassAug")):
        for name in "ab"[i:]:
            write_labels(root / folder / f"{name}.png", np.full((4, 6), i + 1))
    write_labels(root / "SegmentationClassAug/a.png", np.full((4, 6), 9))
    (root / "SegmentationClass/b.png").unlink()
    (root / "cls").mkdir()
    for name in "abc":
        savemat(root / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": np.full((4, 6), 7, np.uint8)}})
    data = voc12(root, masks=True, sbd=root / "cls")
    assert {i: data.mask(k).max() for k, i in enumerate(data.ids)} == {"a": 1, "b": 2, "c": 7}
    with pytest.raises(DataError, match="c has no mask.*SegmentationClassAug"):
        voc12(root, masks=True)
    assert voc12(root).read_mask is None


def test_sbd_file(tmp_path):
    """Written by another program in SBD's structure, with the fields around it."""
    S = np.arange(24, dtype=np.uint8).reshape(4, 6) % 21
    savemat(tmp_path / "x.mat", {"GTcls": {"Boundaries": np.zeros((20, 1), object), "Segmentation": S, "CategoriesPresent": np.array([1, 2])}})
    assert (read_sbd(tmp_path / "x.mat", 21, (4, 6)) == S).all()
    for arguments in ((20, (4, 6)), (21, (6, 4))):
        with pytest.raises(DataError, match="x.mat"):
            read_sbd(tmp_path / "x.mat", *arguments)
    (tmp_path / "y.mat").write_bytes(b"no matlab file, but long enough to hold a header of one hundred and twenty-eight bytes" * 3)
    with pytest.raises(DataError, match="y.mat"):
        read_sbd(tmp_path / "y.mat")


def test_toyvoc_opens_alike_from_both_sources(toyvoc):
    """Six classes, both splits, the same tags from xml and text; masks hold exactly the tagged classes."""
    for split, n in (("train", 24), ("val", 12)):
        data = voc_folder(toyvoc, split, masks=True)
        assert (len(data), data.classes) == (n, ("bird", "boat", "car", "cat", "cow", "sheep"))
        assert (voc_folder(toyvoc, split, tags="xml").tags == data.tags).all()
        for i in range(n):
            assert data.mask(i).shape == data.image(i).shape[:2]
            assert {data.classes[c - 1] for c in np.unique(data.mask(i)) if 0 < c < 255} == named(data)[data.ids[i]]


def test_own_classes_of_a_folder(root):
    """Any names in classes.txt, in their order."""
    (root / "classes.txt").write_text("rust\ntvmonitor\nboat\ncow\n")
    data = voc_folder(root, "train_aug")
    assert data.classes == ("rust", "tvmonitor", "boat", "cow") and data.tags.tolist()[1] == [False, False, True, True]
    data = pickle.loads(pickle.dumps(data))
    assert data.image(1).shape == (4, 6, 3)
