"""What a run is held against: the map alone, the cues, and what its rows are called."""
import json
from html import escape

import numpy as np
import pytest
from run_toy import light_up, tiny

from wsss_nb.classifier import score_images
from wsss_nb.core import IGNORE
from wsss_nb.evaluation import Evaluation
from wsss_nb.opening import open_data
from wsss_nb.pretraining import load_classifier
from wsss_nb.readings import raw_cam
from wsss_nb.scores import about, attention_alone, ways_of
from wsss_nb.stages import classify, prepare, run_all
from wsss_nb.voc import voc_folder


@pytest.fixture(scope="module")
def sec_run(few, tmp_path_factory):
    """A tiny run whose maps are not dark."""
    config, run = tiny(few, "sec/toy"), tmp_path_factory.mktemp("runs") / "sec"
    prepare(config, run)
    classify(config, run)
    light_up(run)
    run_all(config, run)
    return config, run


def counted(network, data, tags) -> np.ndarray:
    """A confusion matrix, a pixel at a time, with these tags told."""
    total = np.zeros((7, 7), int)
    for i in range(len(data)):
        told = type(data)(data.classes, (data.ids[i],), tags[[i]], data.image_file, data.read_mask)
        mask, S = told.mask(0), raw_cam(network, told, 0).numpy()
        for c in range(7):
            total[c] += np.bincount(S[mask == c], minlength=7)
    return total


def test_the_map_alone_is_told_true_tags_in_training_and_claimed_ones_after(sec_run, few):
    """Both files against masks and maps; they are not the same numbers, so the tags were really taken from somewhere else."""
    _, run = sec_run
    network = load_classifier(run / "classify/colour/classifier.pt")
    train, val = (voc_folder(few, split, masks=True) for split in ("train", "val"))
    read = lambda name: json.loads((run / f"evaluate/{name}.json").read_text())
    claimed = (score_images(network, val) > 0).numpy()
    assert claimed.tolist() != val.tags.tolist()
    assert read("cues.cam")["confusion"] == counted(network, train, train.tags).tolist() and read("cues.cam")["images"] == 16
    assert read("val.cam")["confusion"] == counted(network, val, claimed).tolist() and read("val.cam")["images"] == 3
    assert read("val.cam")["confusion"] != counted(network, val, val.tags).tolist()


def test_the_page_and_the_table_show_it(sec_run):
    """The row of the report has the file's number; so has the terminal's."""
    from wsss_nb.cli import results
    config, run = sec_run
    number = json.loads((run / "evaluate/val.cam.json").read_text())["mean_iou"]
    page = (run / "report/index.html").read_text()
    assert escape(about(config)["rows"]["val.cam"]) in page and f"{100 * number:.1f}" in page and "raw CAM, without cues" in page and "all background" in page
    rows = {name: value for name, value, _ in results(config, run)}
    assert rows[about(config)["rows"]["val.cam"]] == number
    assert rows["raw CAM, of the training pictures"] == json.loads((run / "evaluate/cues.cam.json").read_text())["mean_iou"]


def test_a_run_of_before_has_a_table_all_the_same(sec_run, tmp_path):
    """Its folder lacks the new files."""
    import shutil

    from wsss_nb.cli import results
    config, run = sec_run
    old = shutil.copytree(run, tmp_path / "old")
    for path in old.glob("evaluate/*.cam.json"):
        path.unlink()
    assert not [name for name, *_ in results(config, old) if "CAM" in name] and len(results(config, old)) == len(results(config, run)) - 2


def test_without_a_classifier_there_is_no_map(sec_run, few, tmp_path):
    """Seeds from elsewhere: nobody trained a classifier, so nothing is scored, and no row is announced."""
    _, run = sec_run
    config = tiny(few, "sec/toy", f"cues.seeds={run / 'cues'}")
    attention_alone(config, tmp_path, open_data(config, "val", masks=True), "val.cam")
    assert not list(tmp_path.rglob("*.json")) and list(about(config)["rows"]) == ["val"]


def test_rows_follow_the_ways_to_predict(few):
    """What a config asks for, in the order it is predicted; the map alone last; bounds are told."""
    config = tiny(few, "dsrg/toy", "predict.variants=tags,single")
    assert list(ways_of(config)) == ["val.train", "val", "val.tags", "val.single"] and list(about(config)["rows"]) == [*ways_of(config), "val.cam"]
    assert about(config)["upper_bound"] == ["val.tags"] and ways_of(config)["val"][0].as_posix() == "retrain/1/segmenter.pt"


def test_cues_count_unlabelled_pixels_as_missed(sec_run, few):
    """The file of the cues, from the stored maps and the masks."""
    from wsss_nb.stored import read_seeds
    _, run = sec_run
    data, right, there = voc_folder(few, "train", masks=True), 0, 0
    for i, name in enumerate(data.ids):
        S, mask = read_seeds(run / f"cues/{name}.npz").S[0], data.mask(i)
        right, there = right + (S == mask)[(mask > 0) & (mask != IGNORE)].sum(), there + ((mask > 0) & (mask != IGNORE)).sum()
    found = json.loads((run / "evaluate/cues.json").read_text())
    N = Evaluation(np.array(found["confusion"]), data.classes, len(data)).confusion
    assert np.diag(N[1:, 1:7]).sum() == right and N[1:].sum() == there
