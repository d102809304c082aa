"""Lesson 14c: many seeds of every picture, in one call that may be killed."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from wsss_nb import seeds
from wsss_nb.backbones import backbone
from wsss_nb.cam import maps_of
from wsss_nb.core import DataError, seed_everything
from wsss_nb.files import folder_hash
from wsss_nb.saliency import robust_background
from wsss_nb.seeds import by_crf, by_threshold, make_seeds, run_beside, seed_names, seeds_of, shrink
from wsss_nb.voc import voc_folder


@pytest.fixture(scope="module")
def networks():
    "Two untrained networks: their maps are arbitrary, and always the same."
    seed_everything(0)
    return {name: backbone("small", 6, weights="random").eval() for name in ("one", "two")}


@pytest.fixture(scope="module")
def data(toyvoc):
    "A few pictures."
    return voc_folder(toyvoc, "train").subset(range(6))


def test_twelve_names_in_the_order_of_the_maps(networks):
    "Network outside, type next, scale inside."
    names = seed_names(networks)
    assert len(names) == 12 and names[0] == "one threshold 1" and names[2] == "one threshold 0.5" and names[3] == "one crf 1" and names[-1] == "two crf 0.5"


def test_each_seed_equals_the_one_made_alone(networks, data):
    "No batch, one network, one scale, one type at a time."
    image, T = data.image(0), data.tags[0]
    saliency = robust_background(image)
    maps = [maps_of(network, data, 0, scales=seeds.SCALES) for network in networks.values()]
    S = iter(seeds_of(image, maps, saliency, T))
    picture = torch.from_numpy(image).permute(2, 0, 1)[None]
    for network in networks.values():
        for make in (by_threshold, by_crf):
            for scale in (1., .75, .5):
                alone = make(maps_of(network, data, 0, scales=(scale,)), torch.from_numpy(saliency)[None], picture, torch.from_numpy(T)[None])
                np.testing.assert_array_equal(next(S), alone[0].numpy())


def test_stored_seeds_are_those_made(networks, data, tmp_path):
    "What is read back is what `seeds_of` says, with names and classes."
    cues = make_seeds(data, networks, tmp_path, workers=2)
    expected = seeds_of(data.image(3), [maps_of(n, data, 3, scales=seeds.SCALES) for n in networks.values()], robust_background(data.image(3)), data.tags[3])
    np.testing.assert_array_equal(cues(data.ids[3]), expected)
    assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == list(seed_names(networks))


def test_the_number_of_threads_changes_nothing(networks, data, tmp_path):
    "One thread or three: the same bytes."
    make_seeds(data, networks, tmp_path / "a", workers=1)
    make_seeds(data, networks, tmp_path / "b", workers=3)
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")


SCRIPT = """
import sys, torch
from wsss_nb.backbones import backbone
from wsss_nb.core import seed_everything
from wsss_nb.seeds import make_seeds
from wsss_nb.voc import voc_folder
torch.set_num_threads(1)
seed_everything(0)
networks = {name: backbone("small", 6, weights="random").eval() for name in ("one", "two")}
make_seeds(voc_folder(sys.argv[1], "train"), networks, sys.argv[2], workers=2)
"""


def test_killed_half_way_and_called_again_gives_the_same_bytes(toyvoc, tmp_path):
    "SIGKILL once a few pictures are done; no temporary file may count as one."
    command = [sys.executable, "-c", SCRIPT, str(toyvoc)]
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    deadline = time.time() + 120
    while len(list((tmp_path / "killed").glob("train*.npz"))) < 4 and time.time() < deadline and process.poll() is None:
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "killed").glob("train*.npz")}
    assert 4 <= len(done) < 24
    for folder in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / folder)], check=True)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)
    assert all(os.stat(path).st_mtime_ns == then for path, then in done.items())


def test_another_plan_is_refused(networks, data, tmp_path):
    "Other weights, other scales, other types: one folder holds one kind of seeds."
    make_seeds(data.subset([0]), networks, tmp_path)
    with pytest.raises(DataError, match="made in another way"):
        make_seeds(data, {"one": networks["two"], "two": networks["one"]}, tmp_path)
    with pytest.raises(DataError, match="made in another way"):
        make_seeds(data, networks, tmp_path, scales=(1., .5))
    with pytest.raises(DataError, match="made in another way"):
        make_seeds(data, networks, tmp_path, size=(41, 41))


def test_a_type_and_a_saliency_of_ones_own(networks, data, tmp_path):
    "Both are plain functions."
    def upper_half(maps, saliency, image, T):
        S = torch.zeros(maps.shape[0], *maps.shape[2:], dtype=torch.uint8)
        S[:, saliency.shape[1] // 2:] = 255
        return S
    asked = []
    def stored(name):
        asked.append(name)
        return np.zeros(data.image(data.ids.index(name)).shape[:2], np.float32)
    one = {"one": networks["one"]}
    cues = make_seeds(data.subset([1]), one, tmp_path, {"half": upper_half, "threshold": by_threshold}, (1.,), stored)
    S = cues(data.ids[1])
    assert asked == [data.ids[1]] and S.shape[0] == 2
    assert (S[0][: len(S[0]) // 2] == 0).all() and (S[0][len(S[0]) // 2:] == 255).all()
    assert (S[1] == 0).any()


def test_shrinking_takes_the_label_under_the_centre():
    "6x6 to 2x2: the centres lie on pixels (1,1), (1,4), (4,1), (4,4) — by hand."
    S = np.arange(36, dtype=np.uint8).reshape(1, 6, 6)
    np.testing.assert_array_equal(shrink(S, (2, 2))[0], [[7, 10], [25, 28]])


@pytest.mark.parametrize("tags", [np.zeros(6, bool), np.ones(6, bool)])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (40, 30)])
def test_strange_pictures_and_tags(tags, size):
    "No tag: nothing but background; all tags: every class may appear; any size."
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    maps = [torch.rand(3, 6, *size) * torch.from_numpy(tags)[:, None, None]]
    S = seeds_of(image, maps, robust_background(image), tags)
    assert S.shape == (6, *size) and (S[3:] != 255).all()
    if not tags.any():
        assert not ((S > 0) & (S < 255)).any()


def test_the_first_error_stops_the_work():
    "The error of a thread arrives here, and what was waiting is not begun."
    begun = []
    def job(k):
        begun.append(k)
        if k == 3:
            raise OSError("the disk is full")
        time.sleep(.01)
    with pytest.raises(OSError, match="full"):
        run_beside(((lambda k=k: job(k)) for k in range(1000)), workers=2)
    assert len(begun) < 20
