"""A folder in COCO's layout as the data of a run: every stage, both lists, tags alone, and what is refused."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_toy import tiny

from wsss_nb import folders
from wsss_nb.checkpoint import read_log
from wsss_nb.core import DataError
from wsss_nb.files import read_labels
from wsss_nb.folders import coco_file, has_masks, is_coco, list_name, open_list, read_list, told_list, write_coco
from wsss_nb.manifest import read_manifest
from wsss_nb.opening import check_recipe, describe, open_data
from wsss_nb.stages import data_hash, run_all
from wsss_nb.voc import voc_folder


def polygon_of(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask as COCO writes them, by scikit-image."""
    from skimage.measure import find_contours
    lines = find_contours(np.pad(mask, 1).astype(float), .5)
    return [(line[:, ::-1] - .5).ravel().tolist() for line in lines if len(line) > 4]


def convert(voc: Path, root: Path, lists: dict[str, str]) -> Path:
    """ToyVOC in COCO's layout by another way than the library's: polygons, packed and plain run lengths in turn; ids with gaps."""
    from pycocotools import mask as pycoco
    (root / "annotations").mkdir(parents=True)
    for split, name in lists.items():
        data, images, objects = voc_folder(voc, split, instances=True), [], []
        (root / name).mkdir(exist_ok=True)
        for i, image_id in enumerate(data.ids):
            shutil.copyfile(data.image_file(image_id), root / name / f"{image_id}.jpg")
            found = data.instances(i)
            images.append({"id": 10 * i + 7, "file_name": f"{image_id}.jpg", "height": found.masks.shape[1], "width": found.masks.shape[2]})
            for mask, c in zip(found.masks, found.classes):
                packed = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
                plain = {"size": packed["size"], "counts": [len(run) for run in runs(mask.T.ravel())]}
                shape = (polygon_of(mask), {"size": packed["size"], "counts": packed["counts"].decode()}, plain)[len(objects) % 3]
                objects.append({"id": len(objects), "image_id": 10 * i + 7, "category_id": 3 * int(c) + 1, "segmentation": shape, "iscrowd": 0, "area": int(mask.sum())})
        categories = [{"id": 3 * c + 1, "name": called} for c, called in enumerate(data.classes, 1)]
        (root / f"annotations/instances_{name}.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return root


def runs(flat: np.ndarray) -> list[list[bool]]:
    """Runs of 0, 1, 0, 1, … one pixel after the other."""
    found, value = [[]], False
    for pixel in flat.tolist():
        if pixel != value:
            found.append([])
            value = pixel
        found[-1].append(pixel)
    return found


@pytest.fixture(scope="session")
def toycoco(few, tmp_path_factory) -> Path:
    """Sixteen pictures to learn from and three to be scored on, in COCO's layout: read it, never write into it."""
    return convert(few, tmp_path_factory.mktemp("data") / "coco", {"train": "train2014", "val": "val2014"})


@pytest.fixture
def copy(toycoco, tmp_path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(toycoco, tmp_path / "coco"))


def edit(path: Path, change) -> None:
    """Change a JSON file, and make sure that its time changes too."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**7))


def test_the_same_pictures_tags_and_objects(toycoco, few):
    """As in VOC's layout; masks differ only at outlines and where objects lie on each other."""
    for split, name in (("train", "train2014"), ("val", "val2014")):
        voc, found = voc_folder(few, split, masks=True, instances=True), open_list(toycoco, name, masks=True, instances=True)
        assert found.ids == voc.ids and found.classes == voc.classes and found.tags.tolist() == voc.tags.tolist() and found.tags.any()
        for i in range(len(voc)):
            one, other = voc.instances(i), found.instances(i)
            assert one.classes.tolist() == other.classes.tolist()
            for a, b in zip(one.masks, other.masks):
                assert (a & b).sum() > .9 * (a | b).sum()
            known = voc.mask(i) != 255
            assert (voc.mask(i) == found.mask(i))[known].mean() > .97


@pytest.mark.parametrize("recipe", ["baseline/toy", "dsrg/toy"])
def test_every_stage_on_a_coco_folder(recipe, toycoco, tmp_path):
    """From tags to a page, with scores, the table of classes, and the sentence that says which list it was."""
    done = run_all(tiny(toycoco, recipe), tmp_path)
    data = open_list(toycoco, "val2014", masks=True)
    assert done["prepare"]["counts"]["train"] == {"pictures": 16, "without a tag": 0, "classes": 6}
    for i, name in enumerate(data.ids):
        assert read_labels(tmp_path / f"predict/val/{name}.png").shape == data.image(i).shape[:2]
    scored = json.loads((tmp_path / "evaluate/val.json").read_text())
    assert scored["images"] == 3 and 0 <= scored["mean_iou"] <= 1 and set(scored["classes"]) == {"background", *data.classes}
    assert json.loads((tmp_path / "evaluate/cues.json").read_text())["images"] == 16
    rows = read_log(tmp_path / "train/quality.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1] and all("precision" in row for row in rows)
    from wsss_nb.cli import score_command
    score_command(tmp_path / "predict/val", toycoco, "val2014", out=tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == scored
    page = (tmp_path / "report/index.html").read_text()
    assert all(f">{name}<" in page for name in data.classes) and "IoU of each class" in page and "train2014: all 16 pictures, 0 of them without a tag; val2014: all 3 pictures" in page


def test_tags_without_outlines_are_enough(copy, tmp_path):
    """Detection boxes, or nothing but classes: a run, a page, no invented number."""
    for name in ("train2014", "val2014"):
        edit(copy / f"annotations/instances_{name}.json", lambda said: [a.pop("segmentation") for a in said["annotations"]])
    assert open_data(tiny(copy), "train", masks=True, instances=True).read_mask is None and not has_masks(copy, "val2014")
    done = run_all(tiny(copy, "baseline/toy"), tmp_path / "run")
    assert done["evaluate"]["counts"] == {"masks": 0} and not list((tmp_path / "run/evaluate").glob("*.json"))[1:]
    assert "There are no masks" in (tmp_path / "run/report/index.html").read_text()


def test_pictures_without_a_tag(copy):
    """Left out, unless data.tagged=false; the count of both is told."""
    edit(copy / "annotations/instances_train2014.json", lambda said: said.update(annotations=[a for a in said["annotations"] if a["image_id"] not in (7, 17)]))
    assert [len(open_data(tiny(copy, "dsrg/toy", f"data.tagged={said}"), "train")) for said in ("true", "false")] == [14, 16]
    assert told_list(copy, "train2014") == "train2014: 14 of 16 pictures, those with a tag"
    assert told_list(copy, "train2014", tagged=False) == "train2014: all 16 pictures, 2 of them without a tag"
    everything = open_data(tiny(copy, "dsrg/toy", "data.tagged=false"), "train", masks=True)
    assert not everything.tags[:2].any() and not everything.mask(0).any() and everything.tags[2:].any(1).all()
    told = describe(tiny(copy), copy / "nowhere")
    assert "14 for training, 3 for validation" in told and "14 of 16 pictures, those with a tag" in told


def test_a_file_is_read_once_until_it_changes(copy, monkeypatch):
    """Tags once and outlines once, however often a list is opened; a changed file is read again, and the hash of the data notices."""
    reads = []
    read = folders.read_instances_json
    monkeypatch.setattr(folders, "read_instances_json", lambda path: reads.append(path.name) or read(path))
    config = tiny(copy)
    for _ in range(3):
        for split in ("train", "val"):
            open_data(config, split), open_data(config, split, masks=True), open_data(config, split, instances=True)
    assert sorted(reads) == ["instances_train2014.json"] * 2 + ["instances_val2014.json"] * 2
    before = data_hash(config)
    assert data_hash(config) == before and len(reads) == 4
    edit(copy / "annotations/instances_val2014.json", lambda said: said["annotations"].pop())
    assert data_hash(config) != before and len(reads) == 5
    again = data_hash(config)
    Image.new("RGB", (9, 9)).save(open_data(config, "train").image_file(open_data(config, "train").ids[0]))
    assert data_hash(config) != again and len(reads) == 5


def test_what_is_handed_out_is_nobody_elses(toycoco):
    """Who changes the tags of a data set changes no other's."""
    first = open_list(toycoco, "val2014")
    first.tags[:] = True
    assert not open_list(toycoco, "val2014").tags.all()


@pytest.mark.parametrize("place", ["val2014", "images/val2014", "images", "."])
def test_where_pictures_may_lie(copy, place):
    """In a folder of the list's name, in images, or in the folder itself."""
    if place != "val2014":
        target = copy / place
        target.mkdir(parents=True, exist_ok=True)
        for path in (copy / "val2014").iterdir():
            path.rename(target / path.name)
        (copy / "val2014").rmdir()
    data = open_list(copy, "val2014")
    assert data.image_file(data.ids[0]) == copy / place / f"{data.ids[0]}.jpg" and data.image(0).ndim == 3


def test_files_of_your_own(copy):
    """Any JSON file beside the pictures; several lists together, with masks of both."""
    shutil.move(copy / "annotations/instances_val2014.json", copy / "mine.json")
    (copy / "val2014").rename(copy / "images")
    config = tiny(copy, "dsrg/toy", "data.val=mine.json")
    assert len(open_data(config, "val", masks=True)) == 3 and open_data(config, "val", masks=True).mask(0).any() and "mine.json: all 3" in describe(config, copy / "x")
    both = open_list(copy, "train2014+mine.json", masks=True, instances=True)
    parts = [open_list(copy, name) for name in ("train2014", "mine.json")]
    assert both.tags.tolist() == parts[0].tags.tolist() + parts[1].tags.tolist() and both.ids == parts[0].ids + parts[1].ids
    assert len(both) == 19 and [both.mask(i).shape for i in (0, 18)] == [both.image(i).shape[:2] for i in (0, 18)] and len(both.instances(18)) > 0
    assert told_list(copy, "train2014+mine.json") == "train2014+mine.json: all 19 pictures, 0 of them without a tag"


def test_test_pictures_have_no_tags(copy):
    """COCO's image info names pictures and classes only; all of them are opened."""
    said = json.loads((copy / "annotations/instances_val2014.json").read_text())
    (copy / "annotations/image_info_test-dev2015.json").write_text(json.dumps({key: said[key] for key in ("images", "categories")}))
    (copy / "val2014").rename(copy / "test2015")
    data = open_list(copy, "test-dev2015", masks=True, instances=True)
    assert len(data) == 3 and not data.tags.any() and data.read_mask is None and data.classes == open_list(copy, "train2014").classes


def test_which_list_a_folder_means(copy, toyvoc, tmp_path):
    """2014 before 2017; VOC's train_aug where somebody put it; VOC inside its archive's folders; ToyVOC's own."""
    shutil.copy(copy / "annotations/instances_val2014.json", copy / "annotations/instances_val2017.json")
    assert [list_name(copy, split) for split in ("train", "val")] == ["train2014", "val2014"] and list_name(copy, "val", "val2017") == "val2017"
    voc = Path(shutil.copytree(toyvoc, tmp_path / "VOCdevkit/VOC2012"))
    assert list_name(tmp_path, "train") == "train" and len(open_list(tmp_path, "val", masks=True)) == 12 and not is_coco(tmp_path)
    shutil.copy(voc / "ImageSets/Segmentation/train.txt", voc / "ImageSets/Segmentation/train_aug.txt")
    assert list_name(tmp_path, "train") == "train_aug" and has_masks(tmp_path, "train_aug")
    next((voc / "SegmentationClass").glob("*.png")).unlink()
    assert not all(has_masks(tmp_path, name) for name in ("train_aug", "val"))


def test_training_masks_that_are_not_all_there_are_not_opened(toyvoc, tmp_path):
    """VOC without SBD's masks: its list is trained on, and its supervision is not scored; validation masks must be whole."""
    voc = Path(shutil.copytree(toyvoc, tmp_path / "voc"))
    (voc / f"SegmentationClass/{voc_folder(voc, 'train').ids[3]}.png").unlink()
    assert open_data(tiny(voc), "train", masks=True).read_mask is None and open_data(tiny(voc), "val", masks=True).read_mask
    (voc / f"SegmentationClass/{voc_folder(voc, 'val').ids[3]}.png").unlink()
    with pytest.raises(DataError, match="has no mask"):
        open_data(tiny(voc), "val", masks=True)


def test_what_is_refused(copy, toyvoc, tmp_path):
    """A list that is not there, pictures that are not, other classes, an empty file: one line each, before anything is trained."""
    config = tiny(copy)
    cases = [("data.train=train2017", "train2014, val2014"), ("data.train=nowhere.json", "nowhere.json")]
    for changed, said in cases:
        with pytest.raises(DataError, match=said) as error:
            open_data(tiny(copy, "dsrg/toy", changed), "train")
        assert "To mend it" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match="no list for test, only train2014, val2014"):
        list_name(copy, "test")
    edit(copy / "annotations/instances_val2014.json", lambda said: said["categories"][0].update(name="dragon"))
    with pytest.raises(DataError, match=r"\(val2014\) know the classes dragon"):
        check_recipe(config, open_data(config, "train"))
    (copy / "val2014").rename(copy / "elsewhere")
    with pytest.raises(DataError, match="which is not in"):
        open_data(config, "val")
    (copy / "annotations/empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match="lists nothing"):
        open_list(copy, "empty.json")
    (copy / "annotations/image_info_test2015.json").write_text("[]")
    with pytest.raises(DataError, match="no list of pictures"):
        open_list(copy, "test2015")


def test_written_and_read_again(toyvoc, tmp_path):
    """`write_coco` loses nothing; pycocotools reads what it wrote."""
    from pycocotools.coco import COCO
    voc = open_list(toyvoc, "val", instances=True)
    path = write_coco(voc, tmp_path, "val2017")
    again, theirs = open_list(tmp_path, "val2017", instances=True), COCO(path)
    assert path == coco_file(tmp_path, "val2017") and (again.ids, again.tags.tolist()) == (voc.ids, voc.tags.tolist()) and len(read_list(tmp_path, "val2017").ids) == len(voc)
    for i in range(len(voc)):
        one, other = voc.instances(i), again.instances(i)
        assert np.array_equal(one.masks, other.masks) and np.array_equal(one.boxes, other.boxes)
        assert [np.array_equal(theirs.annToMask(a) > 0, mask) for a, mask in zip(theirs.loadAnns(theirs.getAnnIds(i + 1)), one.masks)] == [True] * len(one)


def test_photographs_of_coco(data_folder, tmp_path):
    """Sixteen real photographs of 80 classes to learn from, two to be scored on, half their size: every stage; names of classes may have spaces."""
    from pycocotools import mask as pycoco
    said, root = json.loads((data_folder / "coco_sample/instances_sample.json").read_text()), tmp_path / "coco"
    for folder in (root / "annotations", root / "images", tmp_path / "maps"):
        folder.mkdir(parents=True)
    for name, chosen in (("train2017", said["images"][:16]), ("val2017", said["images"][16:18])):
        entries = {entry["id"]: dict(entry) for entry in chosen}
        for entry in entries.values():
            size = ((entry["width"] + 1) // 2, (entry["height"] + 1) // 2)
            Image.open(data_folder / "coco_sample/images" / entry["file_name"]).convert("RGB").resize(size).save(root / "images" / entry["file_name"])
            entry["width"], entry["height"] = size
            x, y = (np.linspace(-1, 1, side) ** 2 for side in size)      # stored maps: a bright middle, so that the test is short
            Image.fromarray((255 * np.exp(-4 * (y[:, None] + x))).astype(np.uint8)).save(tmp_path / f"maps/{Path(entry['file_name']).stem}.png")
        objects = [dict(a) for a in said["annotations"] if a["image_id"] in entries]
        for a in objects:
            packed = a["segmentation"] if isinstance(a["segmentation"]["counts"], str) else pycoco.frPyObjects(a["segmentation"], *a["segmentation"]["size"])
            half = pycoco.encode(np.asfortranarray(pycoco.decode(packed)[::2, ::2]))
            a["segmentation"] = {"size": half["size"], "counts": half["counts"].decode()}
        part = {"images": list(entries.values()), "categories": said["categories"], "annotations": objects}
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(part))
    config = tiny(root, "baseline/toy", "cues.size=[41, 41]", "cues.foreground=.5", "predict.crf=false", f"cues.saliency={tmp_path}/maps")
    done = run_all(config, tmp_path / "run")
    assert done["prepare"]["counts"]["train"]["classes"] == 80 and read_manifest(tmp_path / "run/report")
    scored = json.loads((tmp_path / "run/evaluate/val.json").read_text())
    assert "traffic light" in scored["classes"] and len(scored["classes"]) == 81 and "traffic light" in (tmp_path / "run/report/index.html").read_text()
