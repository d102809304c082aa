"""Lesson 33e: other programs' detections."""
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from wsss_nb.core import DataError, generator
from wsss_nb.imported_instances import import_results, import_s4net, read_s4net
from wsss_nb.tagged import TaggedImages


@pytest.fixture
def data(tmp_path) -> TaggedImages:
    """Six grey pictures."""
    (tmp_path / "pictures").mkdir()
    ids = tuple(f"2007_{k:06d}" for k in range(6))
    for i in ids:
        Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / f"{i}.png")
    return TaggedImages(("block",), ids, np.ones((6, 1), bool), lambda i: tmp_path / "pictures" / f"{i}.png")


def coded(mask: np.ndarray) -> dict:
    """What COCO's program writes."""
    code = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def block(top: int, left: int) -> np.ndarray:
    """A 5×6 block."""
    mask = np.zeros((30, 40), bool)
    mask[top:top + 5, left:left + 6] = True
    return mask


def test_cocos_results_are_read(data, tmp_path):
    """By id or by COCO's number, polygons too; classes thrown away, the rest of the pictures kept, best first."""
    rows = [{"image_id": data.ids[1], "category_id": 17, "segmentation": coded(block(2, 3)), "score": .3, "bbox": [0, 0, 1, 1]},
            {"image_id": 1, "category_id": 3, "segmentation": coded(block(9, 9)), "score": .8},
            {"image_id": 4, "category_id": 1, "segmentation": [[5, 5, 15, 5, 15, 20, 5, 20]], "score": .05}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    stored = import_results(tmp_path / "results.json", data, tmp_path / "found.json")
    assert (stored.ids, stored.source, stored.supervision) == (data.ids, "results.json", "unknown: stored detections from results.json")
    assert [len(stored(i)) for i in data.ids] == [0, 2, 0, 0, 1, 0]
    one = stored(data.ids[1])
    assert np.array_equal(one.masks, [block(9, 9), block(2, 3)]) and one.boxes.tolist() == [[9, 9, 15, 14], [3, 2, 9, 7]] and one.scores.tolist() == [.8, .3]
    assert stored(data.ids[4]).masks.sum() == 150
    few = import_results(tmp_path / "results.json", data, tmp_path / "few.json", "mine", "masks of 80 classes", threshold=.5)
    assert [len(few(i)) for i in data.ids] == [0, 1, 0, 0, 0, 0] and (few.source, few.supervision) == ("mine", "masks of 80 classes")


@pytest.mark.parametrize("rows, says", [
    ({"images": []}, "holds dict"), ([{"image_id": 99, "score": 1, "segmentation": []}], "is of image 99"), ([{"image_id": 1}], "no list of detections"),
    ([{"image_id": 1, "score": float("nan"), "segmentation": []}], "score nan"), ([{"image_id": 1, "score": "high", "segmentation": []}], "no list of detections"),
    ([{"image_id": 1, "score": 1}], "no list of detections"), ([{"image_id": 1, "score": 1, "segmentation": {"size": [40, 30], "counts": "0"}}], "is coded for size"), (["cow"], "no list of detections")])
def test_damaged_results_are_refused(data, tmp_path, rows, says):
    """And nothing is written."""
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=says):
        import_results(tmp_path / "results.json", data, tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()


def test_ids_that_end_alike_are_not_guessed(tmp_path):
    """Number 1 of 2007 or of 2008?"""
    data = TaggedImages(("block",), ("2007_000001", "2008_000001"), np.ones((2, 1), bool), lambda i: tmp_path / i)
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1, "score": 1, "segmentation": []}]))
    with pytest.raises(DataError, match="two ids end in one number"):
        import_results(tmp_path / "results.json", data, tmp_path / "found.json")


def s4net_arrays(k: int) -> dict[str, np.ndarray]:
    """Maps and scores of four detections, as its test loop holds them: only two have a score above .4."""
    rng = generator(0, "s4net", k)
    segmaps = np.stack([block(2, 3), block(9, 9), block(20, 20), block(1, 30)]) * np.array([.9, .6, .8, .9])[:, None, None]
    return {"segmaps": segmaps, "scores": np.array([.5, .95, .4, .1], np.float32), "gt_masks": rng.random((1, 30, 40)), "img": np.zeros((30, 40, 3), np.uint8)}


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_s4nets_arrays_are_read(data, tmp_path, form):
    """Score above .4, map above .5, as its own program has it; what people drew is not even opened."""
    for k, i in enumerate(data.ids):
        arrays = s4net_arrays(k)
        if form == "npz":
            np.savez(tmp_path / f"{i}.npz", **arrays | {"gt_masks": np.array([object()])})        # opening it would raise
        else:
            (tmp_path / i).mkdir()
            for name in ("segmaps", "scores"):
                np.save(tmp_path / i / f"{name}.npy", arrays[name])
    stored = import_s4net(tmp_path, data, tmp_path / "found.json")
    assert stored.ids == data.ids and "salient instances of other pictures" in stored.supervision
    for i in data.ids:
        assert np.array_equal(stored(i).masks, [block(9, 9), block(2, 3)]) and stored(i).scores.tolist() == [np.float32(.95), .5]
    assert len(read_s4net(tmp_path, data.ids[0], threshold=0., level=.7)) == 4
    assert [m.any() for m in read_s4net(tmp_path, data.ids[0], threshold=0., level=.7).masks] == [True, False, True, True]


def test_pickles_are_not_opened(data, tmp_path):
    """A pickle may run any program; a record saved whole, or under the right name, is refused unread."""
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)
    with pytest.raises(DataError, match="has nothing of"):
        import_s4net(tmp_path, data, tmp_path / "found.json")
    harms = (lambda path: path.write_bytes(pickle.dumps({"segmaps": Trap()})),
             lambda path: np.savez(path, segmaps=np.array([Trap()], object), scores=np.ones(1)),
             lambda path: np.savez(path, **s4net_arrays(0) | {"segmaps": np.zeros((2, 30, 40))}),
             lambda path: np.savez(path, **s4net_arrays(0) | {"scores": np.array([1, np.nan, 1, 1])}),
             lambda path: np.savez(path, scores=np.ones(1)), lambda path: path.write_bytes(b"PK"), lambda path: path.write_bytes(b""),
             lambda path: np.savez(path, **s4net_arrays(0) | {"segmaps": np.ones((4, 40, 30))}))
    for harm, says in zip(harms, ("never opened", "never opened", "expected floats", "NaN or infinity", "gives no segmaps", "gives no segmaps", "zero bytes", r"expected their image's \(30, 40\)")):
        harm(tmp_path / f"{data.ids[0]}.npz")
        with pytest.raises(DataError, match=says):
            import_s4net(tmp_path, data, tmp_path / "found.json")
    (tmp_path / f"{data.ids[0]}.npz").unlink()
    (tmp_path / data.ids[0]).mkdir()
    np.save(tmp_path / data.ids[0] / "segmaps.npy", np.array([Trap()], object))
    with pytest.raises(DataError, match="it is a pickle, or holds one"):
        import_s4net(tmp_path, data, tmp_path / "found.json")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "found.json").exists()
