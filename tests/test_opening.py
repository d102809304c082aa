"""Lesson 51d: from a config to pictures, networks and cues; and what a run would do."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from run_toy import tiny

from wsss_nb.core import DataError
from wsss_nb.opening import describe, open_data, profile, start_network, start_segmenter, stored_cues
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
    assert [line.split()[0] for line in lines[:-1]] == ["reading", "network", "refine", "supervise", "loss", "backward", "optimiser"]
    times, shares = ([float(line.split()[k].rstrip("%")) for line in lines[:-1]] for k in (1, 3))
    assert sum(shares) == pytest.approx(100, abs=.4)
    total, ratio = float(lines[-1].split()[2]), float(lines[-1].split()[4])
    assert total == pytest.approx(sum(times), abs=.05) and ratio == pytest.approx(total / (times[1] + times[5]), abs=.03)
    with pytest.raises(DataError, match="wsss_nb cues --run"):
        profile(tiny(toyvoc), finished_run.parent / "nowhere")
