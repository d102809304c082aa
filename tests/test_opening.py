"""Lesson 51d: from a config to pictures, networks and cues; and what a run would do."""
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from run_toy import WST, tiny

from wsss_nb.config import load_config
from wsss_nb.core import DataError
from wsss_nb.opening import (
    check_recipe,
    classifier_names,
    classifier_start,
    classifiers_of,
    cue_maker,
    describe,
    open_data,
    profile,
    start_network,
    start_segmenter,
    stored_cues,
)
from wsss_nb.pretraining import load_classifier
from wsss_nb.stored import write_seeds
from wsss_nb.voc import voc_folder


def test_masks_are_opened_only_when_asked_for(toyvoc, tmp_path):
    """And only where there are any."""
    config = tiny(toyvoc)
    with pytest.raises(DataError, match="without"):
        open_data(config, "train").mask(0)
    assert open_data(config, "val", masks=True).mask(0).ndim == 2
    bare = shutil.copytree(toyvoc, tmp_path / "bare", ignore=shutil.ignore_patterns("Segmentation*lass", "SegmentationObject"))
    assert open_data(tiny(bare), "val", masks=True).read_mask is None


def test_segmenters_start_where_the_config_says(finished_run, toyvoc):
    """From the course's pretraining, from the trained classifier, from luck; the head is new, and the same for the same seed."""
    data, trunks = open_data(tiny(toyvoc), "train"), {}
    for weights in ("none", "classifier", "random"):
        config = tiny(toyvoc, "dsrg/toy", f"train.weights={weights}")
        a, b = (start_segmenter(config, finished_run, config.train, data) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)) and a.n_classes == 7
        trunks[weights] = a.trunk.state_dict()
    classifier = load_classifier(finished_run / "classify/colour/classifier.pt").trunk.state_dict()
    pretrained = start_network("small", 6).trunk.state_dict()
    same = lambda p, q: all(torch.equal(p[name], q[name]) for name in p)
    assert same(trunks["classifier"], classifier) and same(trunks["none"], pretrained)
    assert not same(trunks["random"], pretrained) and not same(pretrained, classifier)


def test_several_seeds_a_picture_stay_together(toyvoc, tmp_path):
    """One cue map is handed over as (h,w); two as (2,h,w)."""
    data, config = voc_folder(toyvoc, "train").subset([0, 1]), tiny(toyvoc)
    for K, shape in ((1, (4, 5)), (2, (2, 4, 5))):
        for name in data.ids:
            write_seeds(tmp_path / f"{K}/cues", name, np.ones((K, 4, 5), np.uint8), data.classes, [f"dsrg {k}" for k in range(K)] if K > 1 else ["dsrg 0"])
        config = replace(config, recipe="dsrg")
        assert stored_cues(config, tmp_path / str(K), data)(data.ids[0]).shape == shape


def test_cues_of_other_classes_are_refused(toyvoc, tmp_path):
    """Their class numbers would mean something else; a missing file is named."""
    data, config = voc_folder(toyvoc, "train").subset([0, 1]), tiny(toyvoc)
    for name in data.ids:
        write_seeds(tmp_path / "cues", name, np.ones((1, 4, 5), np.uint8), data.classes[:2], ["dsrg 0"])
    with pytest.raises(DataError, match=r"made for 2 classes.*expected 6"):
        stored_cues(config, tmp_path, data)
    (tmp_path / f"cues/{data.ids[1]}.npz").unlink()
    with pytest.raises(DataError, match=f"lacks the cues of 1 of 2 images, the first is {data.ids[1]}"):
        stored_cues(config, tmp_path, data)


def test_describe_says_what_would_be_done(finished_run, toyvoc, tmp_path):
    """Settings, counts, memory, what is done; nothing is written."""
    told = describe(tiny(toyvoc), finished_run)
    for words in ("batch_size = 8", "theta_foreground = 0.5", f"run       {finished_run}", "24 for training, 12 for validation", "GiB", "8 views of 64×64",
                  "done      prepare, classify, cues, train, retrain, predict, evaluate, report"):
        assert words in told
    assert "nothing yet" in describe(tiny(toyvoc), tmp_path / "new") and not (tmp_path / "new").exists()


def test_profile_prints_its_parts(finished_run, toyvoc):
    """Milliseconds and shares that add up, and the ratio."""
    lines = profile(tiny(toyvoc, "dsrg/toy", "device=cpu"), finished_run, updates=4).splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ["reading", "network", "refine", "supervise", "loss", "backward", "optimiser"]
    times, shares = ([float(line.split()[k].rstrip("%")) for line in lines[:-2]] for k in (1, 3))
    assert sum(shares) == pytest.approx(100, abs=.4)
    total, ratio = float(lines[-2].split()[2]), float(lines[-2].split()[4])
    assert total == pytest.approx(sum(times), abs=.05) and ratio == pytest.approx(total / (times[1] + times[5]), abs=.03)
    read, learned = (int(word) for word in re.findall(r"(\d+) pictures a second|from (\d+)", lines[-1]) for word in word if word)
    assert learned == pytest.approx(8000 / (total - times[0]), rel=.02) and lines[-1].endswith("raise train.workers" if read < learned else "the readers keep up")
    with pytest.raises(DataError, match="wsss_nb cues --run"):
        profile(tiny(toyvoc), finished_run.parent / "nowhere")


# ---- two classifiers, and seeds from elsewhere -------------------------------------------------------------------------------

def test_where_the_second_classifier_starts(toyvoc):
    """The same network from another seed; another network without the first one's file; without weights neither has any."""
    start = lambda name, *changed: classifier_start(tiny(toyvoc, "wst/toy", *changed), name)
    assert start("colour", "seed=3") == ("small", None, 3) and start("second", "seed=3") == ("small", None, 1003)
    assert start("second", "classify.weights=mine.pt") == ("small", "mine.pt", 1000)
    mixed = ("classify.network=resnet38", "classify.weights=a1.pth", "classify.second=vgg16")
    assert start("colour", *mixed) == ("resnet38", "a1.pth", 0) and start("second", *mixed) == ("vgg16", None, 1000)
    assert start("second", "classify.network=resnet38", "classify.weights=random", "classify.second=vgg16") == ("vgg16", "random", 1000)
    paper = load_config("wst/voc-resnet38-vgg16", toyvoc)
    assert [classifier_start(paper, name)[0] for name in classifier_names(paper)] == ["resnet38", "vgg16"] and paper.train.network == "resnet101"


def fill(folder, data, names=("x",), size=(5, 4)):
    """A folder of seeds: seed k says class k + 1 on the left and background on the right."""
    S = np.zeros((len(names), *size), np.uint8)
    S[:, :, :2] = np.arange(1, 1 + len(names))[:, None, None]
    for name in data.ids:
        write_seeds(folder, name, S, data.classes, names)
    return S


def test_seeds_from_elsewhere_take_the_place_of_the_recipes_own(toyvoc, tmp_path):
    """Maps, names and disclosure come from the folders; no classifier is asked for, unless a veto or the segmenter's start wants the first."""
    data = voc_folder(toyvoc, "train")
    S = fill(tmp_path / "mine", data, ("x", "y"))
    config = tiny(toyvoc, "wst/toy", f"cues.seeds={tmp_path}/mine")
    make, names, disclosed = cue_maker(config, tmp_path / "nowhere", data)
    assert np.array_equal(make(3), S) and names == (f"{tmp_path}/mine x", f"{tmp_path}/mine y") and disclosed == {"seeds from elsewhere": list(names)}
    assert classifier_names(config) == () and classifiers_of(config, tmp_path / "nowhere", data.classes) == {}
    for asks in ("predict.amend=0", "train.weights=classifier"):
        assert classifier_names(tiny(toyvoc, "wst/toy", f"cues.seeds={tmp_path}/mine", asks)) == ("colour",)
    make, names, _ = cue_maker(tiny(toyvoc, "dsrg/toy", f"cues.seeds={tmp_path}/mine:y", "cues.size=[2, 2]"), tmp_path, data)
    assert make(0).tolist() == [[[2, 0], [2, 0]]] and names == (f"{tmp_path}/mine y",)


@pytest.mark.parametrize("recipe, changed, said", [
    ("wst/toy", ["cues.scales=1,.5"], ["cues.scales is set", "cues of wst", "set options.scales instead"]),
    ("wst/toy", ["cues.foreground=.3"], ["cues.foreground is set", "sharpness, types, scales, networks, merge", "take it out"]),
    ("dsrg/toy", ["cues.scales=1,.5"], ["dsrg learns from one label map", "wst"]),
    ("dgcn/toy", ["options.layers=trunk.blok5"], ["trunk.blok5", "trunk.block5"]), ("dgcn/toy", ["options.layers=trunk.block5,head.fc9"], ["head.fc9"]),
    ("dgcn/voc-resnet101", ["options.layers=layer3"], ["segmenter resnet101 'layer3'", "trunk.layer3"]),
    ("wst/toy", ["cues.seeds=nowhere"], ["'nowhere' is no folder of seeds"]), ("dsrg/toy", ["cues.seeds={}/mine"], ["dsrg learns from one label map", "has 2", "FOLDER:NAME", "wst"]),
    ("wst/toy", ["cues.seeds={}/mine", "cues.foreground=.3"], ["cues.foreground is set, but the seeds come from elsewhere"]),
    ("wst/toy", ["cues.seeds={}/mine", "cues.saliency=maps"], ["cues.saliency is set"]), ("wst/toy", ["cues.seeds={}/mine", "cues.scales=.5"], ["cues.scales is set"]),
    ("wst/toy", ["cues.seeds={}/mine,{}/short"], ["short lacks the seeds of 1 of 24 images"])])
def test_what_does_not_fit_the_recipe_is_refused_at_once(recipe, changed, said, toyvoc, tmp_path):
    """In one line, by `check_recipe` and, where no picture has to be opened, by --dry-run."""
    data = voc_folder(toyvoc, "train")
    fill(tmp_path / "mine", data, ("x", "y"))
    fill(tmp_path / "short", data.subset(range(1, 24)))
    config = tiny(toyvoc, recipe, *[text.format(tmp_path, tmp_path) for text in changed])
    with pytest.raises(DataError) as error:
        check_recipe(config, data)
    message = str(error.value)
    assert "\n" not in message and "To mend it" in message and all(words in message for words in said), message
    if recipe.startswith("dgcn") or "scales" in changed[-1] and len(changed) == 1:
        with pytest.raises(DataError):
            describe(config, tmp_path / "run")


def test_describe_names_seeds_and_classifiers(toyvoc, tmp_path):
    """Before a night of training: how many seeds, of what, and which networks are trained for them."""
    assert "learns    from one map of cues\ntrains    colour (small)" in describe(tiny(toyvoc, "dgcn/toy"), tmp_path)
    told = describe(tiny(toyvoc, "wst/toy", "classify.network=resnet38", "classify.second=vgg16"), tmp_path)
    assert "learns    from 12 seeds: colour threshold 1, " in told and "trains    colour (resnet38), second (vgg16)" in told
    fill(tmp_path / "mine", voc_folder(toyvoc, "train"), ("x", "y"))
    told = describe(tiny(toyvoc, "wst/toy", f"cues.seeds={tmp_path}/mine"), tmp_path)
    assert f"from 2 seeds from elsewhere: {tmp_path}/mine" in told and "trains    no classifier" in told


def test_a_classifier_that_was_never_trained(wst_run, few, tmp_path):
    """Its file and the command that trains it are named."""
    config = tiny(few, "wst/toy", *WST)
    run = shutil.copytree(wst_run, tmp_path / "run")
    (run / "classify/second/classifier.pt").unlink()
    with pytest.raises(DataError, match=f"second/classifier.pt was never trained.*wsss_nb classify --run {run}"):
        classifiers_of(config, run, open_data(config, "train").classes)


def test_wst_is_profiled(wst_run, few):
    """Twelve seeds and no CRF: the parts are the same, and refining takes next to nothing."""
    lines = profile(tiny(few, "wst/toy", *WST), wst_run, updates=2).splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ["reading", "network", "refine", "supervise", "loss", "backward", "optimiser"]
