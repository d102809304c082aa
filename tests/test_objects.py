"""The salient recipe's run: objects found once, tagged all together, and what they leave on disk."""
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from run_toy import tiny

from wsss_nb.association import read_looks
from wsss_nb.core import BACKGROUND, IGNORE, DataError
from wsss_nb.detection import mask_rcnn, save_detector
from wsss_nb.files import read_labels
from wsss_nb.instances import encode_mask, read_instances
from wsss_nb.objects import asks_objects, find_objects, hash_of, json_numbers, object_map, told_objects
from wsss_nb.opening import check_recipe, open_data, recipe_of
from wsss_nb.recipes import RECIPES
from wsss_nb.scores import about
from wsss_nb.stages import cues, detect, instances, run_all
from wsss_nb.stored import read_seeds
from wsss_nb.tagged import Instances, mask_boxes
from wsss_nb.voc import voc_folder

SALIENT = ("instances.source=saliency", "predict.crf=false")


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    """A tiny run with objects from saliency, made once: read it; copy it where a test changes it."""
    folder = tmp_path_factory.mktemp("runs") / "salient"
    run_all(tiny(few, "salient/toy", *SALIENT), folder)
    return folder


def test_salient_runs_through_every_stage(run, few):
    """From tags to a page that says who found the objects."""
    data = voc_folder(few, "val")
    for i, image in enumerate(data.ids):
        S = read_labels(run / f"predict/val/{image}.png")
        assert S.shape == data.image(i).shape[:2] and S.max() <= len(data.classes)
    rows = [json.loads(line) for line in (run / "train/log.jsonl").read_text().splitlines()]
    assert rows and all("pixel" in row and "boundary" not in row for row in rows)
    page = (run / "report/index.html").read_text()
    assert "Associating Inter-Image Salient Instances" in page and "robust_background" in page


def test_cues_are_the_masks_of_tagged_objects(run, few):
    """Built again from the stored objects and tags: the surer object on top, nothing but the picture's tags, unlabelled where nothing was kept."""
    data = voc_folder(few, "train")
    found, tagged, looks = read_instances(run / "instances/found.json", data=data), read_instances(run / "tags/tagged.json", data=data), read_looks(run / "instances/looks.npz")
    note = json.loads((run / "tags/assignment.json").read_text())
    assert note["objects"] == len(looks) == len(found.image) and note["kept"] == len(tagged.image) == int(.9 * len(looks) + 1e-9) and note["gap"] <= 1e-9
    assert found.classes == ("object",) and tagged.classes == data.classes and tagged.supervision == found.supervision == "none beyond the picture"
    for i, name in enumerate(data.ids):
        S, here = read_seeds(run / f"cues/{name}.npz", data.classes), tagged(name)
        expected = np.full(data.image(i).shape[:2], BACKGROUND if len(here) else IGNORE, np.uint8)
        for k in np.argsort(here.scores, kind="stable"):
            expected[here.masks[k]] = here.classes[k]
        assert np.array_equal(S.S[0], expected) and S.names == ("salient 0",) and "robust_background" in S.made["objects"] and f"{len(tagged.image)} of {len(looks)} objects, 0.0% from" in S.made["tagged"]
        assert set(here.classes) <= set(np.flatnonzero(data.tags[i]) + 1)


def test_the_assignment_is_that_of_the_looks(run, few):
    """The kept tags are those the recipe's own function gives, with its options; and the note says how right they are."""
    config = tiny(few, "salient/toy", *SALIENT)
    made = recipe_of(config).associate(read_looks(run / "instances/looks.npz"))
    assert np.array_equal(read_instances(run / "tags/tagged.json").label, made.tag[made.tag > 0])
    note = json.loads((run / "tags/assignment.json").read_text())
    assert note["earned"] == pytest.approx(made.objective) and note["bound"] >= note["earned"] - 1e-9
    assert set(note["right"]) == {"right", "right of those kept", "objects kept", "noise dropped"} and 0 <= note["right"]["right"] <= 1
    asked = recipe_of(tiny(few, "salient/toy", "options.beta=2", "options.retention=.5", "options.neighbours=5")).associate
    assert asked.keywords == {"beta": 2., "retention": .5, "neighbours": 5}


def test_other_tags_need_no_new_objects(run, few, tmp_path):
    """Another retention: the cues and what follows are stale, the objects are not looked for again."""
    folder = shutil.copytree(run, tmp_path / "again")
    config = tiny(few, "salient/toy", *SALIENT, "options.retention=.5")
    with pytest.raises(DataError, match="cues was made with options.retention"):
        cues(config, folder)
    for stage in ("cues", "train", "retrain", "predict", "evaluate", "report"):
        shutil.rmtree(folder / stage)
    stamps = lambda: {path: path.stat().st_mtime_ns for stage in ("classify", "instances") for path in (folder / stage).rglob("*")}
    before = stamps()
    cues(config, folder)
    note = json.loads((folder / "tags/assignment.json").read_text())
    assert before == stamps() and note["kept"] == note["objects"] // 2 == len(read_instances(folder / "tags/tagged.json").image)
    with pytest.raises(DataError, match="instances was made with instances.source"):
        instances(tiny(few, "salient/toy", "instances.source=coco"), folder)


def test_only_a_recipe_that_asks_gets_objects(finished_run, toyvoc):
    """The others have no such folder, and are told so."""
    assert not (finished_run / "instances").exists() and not asks_objects(tiny(toyvoc)) and asks_objects(tiny(toyvoc, "salient/toy"))
    assert not asks_objects(tiny(toyvoc, "salient/toy", "cues.seeds=somewhere"))
    with pytest.raises(DataError, match="does not ask for objects"):
        instances(tiny(toyvoc), finished_run)


def results_of(found, data, path):
    """The same objects as COCO's server takes them."""
    rows = [{"image_id": name, "category_id": 7, "score": float(s), "segmentation": encode_mask(mask)} for name in data.ids for mask, s in zip(found(name).masks, found(name).scores)]
    path.write_text(json.dumps(rows))
    return path


def arrays_of(found, data, path):
    """The same objects as S4Net's test loop holds them."""
    path.mkdir()
    for name in data.ids:
        here = found(name)
        np.savez(path / f"{name}.npz", segmaps=here.masks.astype(np.float32), scores=.5 + .4 * here.scores / here.scores.max(initial=1))
    return path


@pytest.mark.parametrize("kind", ["ours", "results", "arrays"])
def test_objects_from_elsewhere(kind, run, few, tmp_path):
    """A file of ours, COCO's results, S4Net's arrays: the same masks in the run, and their maker's supervision on the record."""
    data = voc_folder(few, "train")
    found = read_instances(run / "instances/found.json", data=data)
    path = {"ours": lambda: run / "instances/found.json", "results": lambda: results_of(found, data, tmp_path / "results.json"), "arrays": lambda: arrays_of(found, data, tmp_path / "s4net")}[kind]()
    config = tiny(few, "salient/toy", *SALIENT, f"instances.source={path}", "instances.score=0")
    copied = find_objects(config, tmp_path / "run", data)
    for name in data.ids:
        one, other = (sorted(m.tobytes() for m in of(name).masks) for of in (found, copied))
        assert one == other
    assert copied.classes == ("object",) and {"ours": "none beyond", "results": "unknown: stored detections from results.json", "arrays": "S4Net"}[kind] in copied.supervision
    assert str(path) in told_objects(config) and str(path) in " ".join(about(config)["disclosed"])
    assert find_objects(config, tmp_path / "run", data).ids == copied.ids                              # the second time it is read
    changed = hash_of(path)
    if kind == "arrays":
        (path / f"{data.ids[0]}.npz").write_bytes(b"")
        assert hash_of(path) != changed


def test_a_detector_of_ones_own(few, tmp_path):
    """A file of save_detector finds objects, whatever classes it knows; its score is that of the config."""
    network = mask_rcnn("small", 3)
    network.classes = ("a", "b", "c")
    save_detector(tmp_path / "mine.pt", network)
    data = voc_folder(few, "train").subset(range(2))
    config = tiny(few, "salient/toy", f"instances.source={tmp_path / 'mine.pt'}", "instances.score=.01", "instances.limit=2")
    found = find_objects(config, tmp_path / "run", data)
    assert found.classes == ("object",) and "score 0.01" in found.source and all(len(found(name)) <= 2 for name in data.ids) and "mine.pt" in found.supervision


def test_what_cannot_find_objects_is_refused(few, tmp_path):
    """A word that is none, a path that is not there, a source that finds nothing."""
    data = voc_folder(few, "train")
    for source in ("detecor", str(tmp_path / "nothing.json")):
        with pytest.raises(DataError, match="detector, saliency, coco, or a path") as error:
            find_objects(tiny(few, "salient/toy", f"instances.source={source}"), tmp_path / "run", data)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="limit is 0"):
        tiny(few, "salient/toy", "instances.limit=0")


def test_a_map_by_hand():
    """Two objects overlap: the surer one is on top; outside is what the recipe says; no object at all is unlabelled."""
    masks = np.zeros((2, 1, 4), bool)
    masks[0, 0, :2], masks[1, 0, 1:3] = True, True

    class Tagged:
        sizes = {"a": (1, 4), "b": (1, 4)}

        def __call__(self, name):
            rows = slice(2 if name == "a" else 0)
            return Instances(masks[rows], mask_boxes(masks[rows]), np.array([3, 1])[rows], np.array([.9, .4])[rows])

    assert object_map(Tagged(), "a").tolist() == [[3, 3, 1, 0]] and object_map(Tagged(), "a", IGNORE).tolist() == [[3, 3, 1, 255]]
    assert object_map(Tagged(), "b").tolist() == [[255] * 4]
    assert (RECIPES["salient"]().outside, RECIPES["salient"](outside="unlabelled").outside) == (BACKGROUND, IGNORE)
    assert json_numbers({"a": float("nan"), "b": {"c": 1., "d": float("nan")}}) == {"a": None, "b": {"c": 1., "d": None}}


def test_simple_pictures_are_trained_on_as_well(few, tmp_path):
    """They get cues; only the data set's own objects are scored; alone, they are all there is, and nothing is scored."""
    more = ("data.simple=toyvoc", "data.n_simple=18")
    config = tiny(few, "salient/toy", *SALIENT, *more)
    both = open_data(config, "train", masks=True)
    assert len(both) == 34 and len(open_data(config, "val")) == 3 and (both.mask(16) == IGNORE).all()
    done = run_all(config, tmp_path / "both")
    assert done["cues"]["counts"]["pictures"] == 34 and len(list((tmp_path / "both/cues").glob("*.npz"))) == 34
    alone = replace(config, data=replace(config.data, only_simple=True))
    assert len(open_data(alone, "train")) == 18 and open_data(alone, "train").read_mask is None
    done = run_all(alone, tmp_path / "alone")
    assert done["cues"]["counts"]["pictures"] == 18 and "right" not in json.loads((tmp_path / "alone/tags/assignment.json").read_text())
    with pytest.raises(DataError, match="only_simple"):
        open_data(tiny(few, "salient/toy", "data.only_simple=true"), "train")


def test_the_same_objects_teach_an_instance_segmenter(run, few, tmp_path, monkeypatch):
    """Trained on the tagged objects, with their classes; saved, scored, and only for a recipe that tags objects."""
    import wsss_nb.detection as detection
    from wsss_nb.rcnn import load_detector
    folder = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setitem(detection.PRESETS, "brief", replace(detection.TOY_DETECTOR, training=replace(detection.TOY_DETECTOR.training, epochs=1, iterations=2)))
    told = detect(tiny(few, "salient/toy", *SALIENT, "detect.preset=brief"), folder)
    data = voc_folder(few, "val")
    scores = json.loads((folder / "detect/scores.json").read_text())
    assert told["counts"]["pictures"] == 16 and {"AP", "AP50", "AP75", "APS", "APM", "APL"} <= set(scores) and 0 <= scores["AP"] <= 1
    assert load_detector(folder / "detect/detector.pt", data.classes).classes == data.classes
    assert "detect" not in run_all(tiny(few, "salient/toy", *SALIENT), run) and not (run / "detect").exists()


def test_a_missing_solver_is_told_before_anything_is_trained(few, tmp_path, monkeypatch):
    """The extra is named, and no classifier was begun; a recipe that tags no objects does not ask for it."""
    from wsss_nb.stages import classify, prepare
    config = tiny(few, "salient/toy", *SALIENT)
    prepare(config, tmp_path)
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(DataError, match=r"highspy is not installed.*wsss_nb\[graphs\]"):
        classify(config, tmp_path)
    assert not list((tmp_path / "classify").glob("*/*"))
    check_recipe(tiny(few, "dsrg/toy"), open_data(config, "train"))
