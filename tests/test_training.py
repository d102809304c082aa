"""Lesson 40: the step by hand, supervision without gradient, looking without harm, killed and resumed, two processes, bad input."""
import errno
import itertools
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from training_toy import DSRG, PLAIN, Cues, Dying, Refusing, Tiny, elsewhere, losses, train

from wsss_nb import run
from wsss_nb.checkpoint import load_checkpoint, read_log
from wsss_nb.core import Batch, DataError, Prediction
from wsss_nb.evaluation import evaluate_folder
from wsss_nb.files import read_labels, write_labels
from wsss_nb.schedule import Training
from wsss_nb.tagged import TrainingSet
from wsss_nb.timing import profile_step, weak_overhead
from wsss_nb.training import (
    LEARNING,
    Look,
    Method,
    grown,
    keep,
    small_picture,
    supervised,
    train_segmenter,
    training_view,
    whole_view,
    wsss_step,
)
from wsss_nb.voc import voc_folder

OTHERS = multiprocessing.get_context("forkserver")       # a clean process, with torch loaded once for all of them
OTHERS.set_forkserver_preload(["wsss_nb.training", "wsss_nb.losses", "wsss_nb.crf", "torch._dynamo"])


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever machine this is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(toyvoc, tmp_path_factory):
    """A DSRG run that nobody disturbs: network, history, folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    return *train(toyvoc, folder, checkpoint_minutes=10.), folder


@pytest.fixture
def opened(toyvoc):
    """The first four pictures: without masks, with masks, a network, cues."""
    data, seen = (voc_folder(toyvoc, "train", masks=masks).subset(range(4)) for masks in (False, True))
    return SimpleNamespace(data=data, seen=seen, network=Tiny(data.classes), cues=Cues(data))


def equal(a, b) -> bool:
    """All weights, bit for bit."""
    a, b = (net if isinstance(net, dict) else net.state_dict() for net in (a, b))
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def diary(folder, name="log.jsonl") -> list[dict]:
    """A log without its clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(Path(folder) / name)]


def start(root, folder, environment=None, **options) -> multiprocessing.Process:
    """The toy in a process of its own."""
    process = OTHERS.Process(target=elsewhere, args=(environment or {}, root, folder, options), daemon=False)
    process.start()
    return process


def finished(*processes) -> None:
    """Wait for processes that must end well."""
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- killed and resumed --------------------------------------------------------------------------------------------------

def test_killed_run_ends_with_the_same_bits(toyvoc, tmp_path, undisturbed):
    """SIGKILL at a random update of DSRG, with CRF, growing, dropout and looks between: weights, log, quality and pictures of a run nobody disturbed."""
    when = random.Random(os.urandom(8)).randint(1, 11)       # of 12 updates; named when the test fails
    process = start(toyvoc, tmp_path)
    while not any(row["iteration"] >= when for row in read_log(tmp_path / "log.jsonl")) and process.is_alive():
        time.sleep(.001)
    time.sleep(random.Random(os.urandom(8)).random() * .02)
    process.kill()
    process.join()
    finished(start(toyvoc, tmp_path))
    network, history, folder = undisturbed
    stored = load_checkpoint(tmp_path / "last.pt")
    assert stored["iteration"] == 12 and equal(stored["network"], network), f"killed at {when}"
    assert diary(tmp_path) == diary(folder) and diary(tmp_path, "quality.jsonl") == diary(folder, "quality.jsonl"), f"killed at {when}"
    pictures = [{p.relative_to(at): p.read_bytes() for p in at.rglob("*.png")} for at in (tmp_path, folder)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 4


def test_interrupt_while_an_epoch_is_saved(toyvoc, tmp_path, monkeypatch, undisturbed):
    """Ctrl-C during the last save before a look is no earlier and no later than any other: the run stops, and goes on to the same bits."""
    real = run.Run.save
    def save(self):
        if self.iteration == 4:
            signal.raise_signal(signal.SIGINT)
        real(self)
    monkeypatch.setattr(run.Run, "save", save)
    with pytest.raises(KeyboardInterrupt, match="after update 4 of 12; the same call goes on"):
        train(toyvoc, tmp_path, checkpoint_minutes=10.)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 4
    assert equal(train(toyvoc, tmp_path, checkpoint_minutes=10.)[0], undisturbed[0]) and diary(tmp_path) == diary(undisturbed[2])


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_kill_between_checkpoint_and_quality_row(toyvoc, tmp_path, undisturbed, epoch):
    """Killed while looking, the run looks again when it goes on: no row is lost, none stands twice."""
    finished_process = start(toyvoc, tmp_path, killed_looking_at=epoch)
    finished_process.join(120)
    assert finished_process.exitcode == -9
    assert [row["epoch"] for row in read_log(tmp_path / "quality.jsonl")] == list(range(epoch))
    train(toyvoc, tmp_path)
    assert diary(tmp_path, "quality.jsonl") == diary(undisturbed[2], "quality.jsonl") and diary(tmp_path) == diary(undisturbed[2])


def test_a_finished_run_looks_no_more(toyvoc, undisturbed, tmp_path):
    """Called again, it returns its history and changes no byte."""
    network, history, folder = undisturbed
    shutil.copytree(folder, tmp_path / "copy")
    again, rows = train(toyvoc, tmp_path / "copy", checkpoint_minutes=10.)
    assert rows == history and equal(again, network)
    assert [p.read_bytes() for p in sorted((tmp_path / "copy").rglob("*.*"))] == [p.read_bytes() for p in sorted(folder.rglob("*.*"))]


def test_looking_changes_nothing(toyvoc, undisturbed):
    """The same run without a look, in one call of fit: the same weights and losses."""
    network, rows = train(toyvoc, looks=False)
    assert equal(network, undisturbed[0]) and [row["loss"] for row in rows] == [row["loss"] for row in undisturbed[1]]


def test_growing_depends_on_the_network(undisturbed):
    """What is taught differs from epoch to epoch: the tests above are about supervision that moves."""
    rows = diary(undisturbed[2], "quality.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert len({row["labelled"] for row in rows}) == 4 and rows[-1]["recall"] != rows[0]["recall"]


# ---- two processes -------------------------------------------------------------------------------------------------------

def free_port() -> str:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.parametrize("options", [{}, {"accumulate": 1, "batch_size": 5, "drop_last": False}], ids=["uneven shares", "a short last batch"])
def test_two_processes_equal_one(toyvoc, tmp_path, options):
    """Two gloo processes take the steps of one to 1e-5. The network has no batch norm, which would see half a batch, and no dropout."""
    options = {**options, "dropout": 0.}
    port = free_port()
    finished(*[start(toyvoc, tmp_path / "two", {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                     **options) for r in range(2)])
    network, rows = train(toyvoc, tmp_path / "one", **options)
    stored = load_checkpoint(tmp_path / "two/last.pt")
    for name in ("loss", "seed", "boundary"):
        np.testing.assert_allclose([row[name] for row in stored["history"]], [row[name] for row in rows], atol=1e-5, rtol=0)
    assert max((stored["network"][name] - value).abs().max().item() for name, value in network.state_dict().items()) < 1e-5
    two, one = (diary(tmp_path / name, "quality.jsonl") for name in ("two", "one"))
    assert [row["epoch"] for row in two] == [row["epoch"] for row in one] == [0, 1, 2, 3]
    assert two[0] == one[0] and two[-1]["labelled"] == pytest.approx(one[-1]["labelled"], abs=.01)


# ---- the step ------------------------------------------------------------------------------------------------------------

class Says(nn.Module):
    """A network that says what it was told, whatever it sees."""
    mean, std, stride = (.5, .5, .5), (.25, .25, .25), 4

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, image):
        return self.logits


def by_hand(logits, S, T, Q, foreground, background):
    """DSRG's step on (3,2,2) in loops: grown labels and the two losses, from the papers' equations."""
    rows = [[[math.exp(v) for v in row] for row in plane] for plane in logits]
    total = {(y, x): sum(rows[c][y][x] for c in range(3)) for y in range(2) for x in range(2)}
    H = {(c, y, x): (rows[c][y][x] / total[y, x] + 1e-4) / (1 + 3e-4) for c in range(3) for y in range(2) for x in range(2)}
    S, places = dict(S), list(itertools.product(range(2), range(2)))
    allowed = [0] + [c for c in (1, 2) if T[c - 1]]
    for _ in places:                                         # all four pixels of 2×2 touch each other
        for y, x in places:
            best = max(allowed, key=lambda c: H[c, y, x])
            if S[y, x] == 255 and H[best, y, x] > (foreground if best else background) and best in S.values():
                S[y, x] = best
    cost = {place: -math.log(H[S[place], *place]) for place in places if S[place] != 255}
    mean = lambda values: sum(values) / len(values) if values else 0.
    seed = mean([v for p, v in cost.items() if S[p] > 0]) + mean([v for p, v in cost.items() if S[p] == 0])
    boundary = mean([sum(Q[c][y][x] * (math.log(Q[c][y][x]) - math.log(H[c, y, x])) for c in range(3)) for y, x in places])
    return S, seed, boundary


@pytest.mark.parametrize("T, thetas, taught", [((True, True), (.5, .6), {(0, 0): 0, (0, 1): 0, (1, 0): 1, (1, 1): 2}),     # 0 grows to (0,1)
                                               ((True, False), (.5, .6), {(0, 0): 0, (0, 1): 0, (1, 0): 1, (1, 1): 255}),  # class 2 is not tagged
                                               ((True, True), (2., .99), {(0, 0): 0, (0, 1): 255, (1, 0): 1, (1, 1): 2})])
def test_step_equals_a_step_by_hand(T, thetas, taught):
    """Labels, both losses, and the gradient by finite differences with labels and CRF held still, as no gradient may pass them."""
    logits = [[[1., 1.5], [-1., 0.]], [[.2, -.4], [1., .1]], [[-.3, 0.], [.5, 2.]]]
    cues = {(0, 0): 0, (0, 1): 255, (1, 0): 1, (1, 1): 2 if T[1] else 255}
    Q = [[[.7, .6], [.1, .3]], [[.2, .1], [.8, .3]], [[.1, .3], [.1, .4]]]
    seen = []
    def refine(H, picture):
        seen.append((H, picture))
        return torch.tensor(Q, dtype=torch.float64)[None]
    method = Method(losses, partial(grown, theta_foreground=thetas[0], theta_background=thetas[1]), refine)
    network = Says([logits])
    S = torch.tensor([[[cues[y, x] for x in range(2)] for y in range(2)]], dtype=torch.uint8)
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.tensor([T]), S, ("a",))
    got = wsss_step(network, method)(batch)
    labels, seed, boundary = by_hand(logits, cues, T, Q, *thetas)
    assert labels == taught and {(y, x): int(v) for (y, x), v in np.ndenumerate(supervised(network, method, batch)[1][0])} == taught
    assert got["seed"].item() == pytest.approx(seed, abs=1e-9) and got["boundary"].item() == pytest.approx(boundary, abs=1e-9)
    assert not seen[0][0].requires_grad and seen[0][1].dtype == torch.uint8 and seen[0][1].shape == (1, 3, 2, 2) and (seen[0][1] == 128).all()
    sum(got.values()).backward()
    for c, y, x in itertools.product(range(3), range(2), range(2)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = np.array(logits)
            moved[c, y, x] += step
            ends.append(sum(by_hand(moved.tolist(), taught, T, Q, 2., 2.)[1:]))
        assert network.logits.grad[0, c, y, x].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_supervision_carries_no_gradient():
    """Even a method whose supervise and refine are differentiable sees a prediction without gradient, and hands none over."""
    told = []
    def supervise(batch, prediction):
        told.append((prediction.H.requires_grad, prediction.Q.requires_grad, torch.is_grad_enabled()))
        return prediction.H.argmax(1)
    network = Says([[[[1., 2.]], [[0., 3.]], [[.5, .5]]]])
    batch = Batch(torch.zeros(1, 3, 4, 8), torch.tensor([[True, False]]), None, ("a",))
    prediction, S = supervised(network, Method(losses, supervise, lambda H, picture: H ** 2 / (H ** 2).sum(1, keepdim=True)), batch)
    assert told == [(False, False, False)] and prediction.H.requires_grad and not prediction.Q.requires_grad and S.tolist() == [[[0, 1]]]
    own = torch.autograd.grad(prediction.H.sum() + prediction.Q.sum(), network.logits)[0]
    assert own.shape == network.logits.shape and torch.is_grad_enabled()


def test_supervision_is_made_in_full_precision():
    """Under autocast the network may count in bfloat16; CRF and growing do not."""
    seen = []
    def refine(H, picture):
        seen.append((H.dtype, (H[:, :, 0] @ H[:, :, 0].mT).dtype))
        return H
    network = Says([[[[1., 2.]], [[0., 3.]], [[.5, .5]]]])
    with torch.autocast("cpu", torch.bfloat16):
        network.logits.data = network.logits.data.float()
        prediction, _ = supervised(network, Method(losses, keep, refine), Batch(torch.zeros(1, 3, 4, 8), torch.tensor([[True, False]]), torch.zeros(1, 1, 2, dtype=torch.uint8), ("a",)))
    assert seen == [(torch.float32, torch.float32)] and prediction.H.dtype == torch.float32


def test_keep_and_crf_first():
    """SEC keeps its cues; crf_first grows in what the CRF says instead of the prediction."""
    S, T = torch.tensor([[[1, 255]]], dtype=torch.uint8), torch.tensor([[True, True]])
    batch = Batch(torch.zeros(1, 3, 4, 8), T, S, ("a",))
    H, Q = torch.tensor([.3, .4, .3])[None, :, None, None].expand(1, 3, 1, 2), torch.tensor([.05, .9, .05])[None, :, None, None].expand(1, 3, 1, 2)
    assert keep(batch, Prediction(H)) is S
    assert grown(batch, Prediction(H, Q=Q)).tolist() == [[[1, 255]]] and grown(batch, Prediction(H, Q=Q), crf_first=True).tolist() == [[[1, 1]]]
    with pytest.raises(DataError, match="has no CRF"):
        grown(batch, Prediction(H), crf_first=True)


# ---- pictures and views --------------------------------------------------------------------------------------------------

def test_small_picture_brings_the_colours_back():
    """Normalised as lesson 03b does it and brought back: the same bytes at the same size; at half the size, the mean of uniform blocks."""
    rng, mean, std = np.random.default_rng(0), (.485, .456, .406), (.229, .224, .225)
    blocks = torch.from_numpy(rng.integers(0, 256, (2, 3, 4, 6)).astype(np.uint8))
    picture = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shape = lambda values: torch.tensor(values)[:, None, None]
    normalised = (picture / 255 - shape(mean)) / shape(std)
    assert torch.equal(small_picture(normalised, mean, std, (8, 12)), picture)
    uniform = torch.full((1, 3, 8, 12), 77, dtype=torch.uint8)
    assert (small_picture((uniform / 255 - shape(mean)) / shape(std), mean, std, (3, 5)) == 77).all()
    ends = torch.tensor([-9., 9.]).view(2, 1, 1, 1).expand(2, 3, 2, 2)      # no picture, but no wrap around 255 either
    assert small_picture(ends, mean, std, (2, 2)).flatten(1).unique().tolist() == [0, 255]


@pytest.mark.parametrize("kind, size, answers", [("crop", 64, 16), ("warp", 64, 16), ("crop", 65, 17), ("warp", 50, 13)])
def test_views_have_the_size_of_an_answer(opened, kind, size, answers):
    """Image size×size, cues as many cells as the network answers with."""
    view = training_view(opened.network, kind, size)
    for i in range(4):
        name, T, sample = TrainingSet(opened.data, view, opened.cues)[0, i]
        assert sample.image.shape == (3, size, size) and sample.S.shape == (answers, answers) and name == opened.data.ids[i]
    assert opened.network(sample.image[None]).shape[2:] == (answers, answers)


def test_a_warp_squeezes_and_mirrors_half_of_the_time(opened):
    """Left and right cues change sides in some views and in none with mirror=False."""
    def sided(name):
        return np.array([[1, 255]], np.uint8)
    where = {}
    for mirror in (True, False):
        images = TrainingSet(opened.data, training_view(opened.network, "warp", 8, mirror=mirror), sided)
        where[mirror] = {tuple(images[epoch, 0][2].S[0].tolist()) for epoch in range(12)}
    assert where == {True: {(1, 255), (255, 1)}, False: {(1, 255)}}


@pytest.mark.parametrize("kind", ["crop", "warp"])
def test_whole_view_shows_everything_without_luck(opened, kind):
    """Every cue of every picture is in it, in any epoch alike."""
    images = TrainingSet(opened.data, whole_view(opened.network, kind, 48), opened.cues)
    for i in range(4):
        first, later = images[0, i][2], images[7, i][2]
        assert torch.equal(first.image, later.image) and torch.equal(first.S, later.S)
        h, w = (48, 48) if kind == "warp" else opened.data.image(i).shape[:2]
        assert first.image.shape == (3, h, w) and first.S.shape == (-(-h // 4), -(-w // 4))
        assert set(first.S.unique().tolist()) == set(np.unique(opened.cues(opened.data.ids[i])).tolist())


@pytest.mark.parametrize("options, message", [({"kind": "zoom"}, "crop or warp"), ({"size": 3}, "smaller than the stride"), ({"mirror": False}, "asked not to mirror")])
def test_views_that_make_no_sense_are_refused(opened, options, message):
    with pytest.raises(DataError, match=message):
        training_view(opened.network, **options)


# ---- looking -------------------------------------------------------------------------------------------------------------

def test_row_0_is_the_quality_of_the_cues(opened, tmp_path, toyvoc):
    """The same number as scoring the cues themselves with lesson 05, with nothing of lesson 40 in between."""
    look = Look(opened.network, DSRG, TrainingSet(opened.seen, whole_view(opened.network), opened.cues), tmp_path / "kept")
    row = look(0)
    for i, name in enumerate(opened.data.ids):               # the label under the centre of each cell, and of each pixel, in loops
        h, w = opened.seen.mask(i).shape
        cells = np.array([[opened.cues(name)[int((y + .5) / -(-h // 4) * 12), int((x + .5) / -(-w // 4) * 12)] for x in range(-(-w // 4))] for y in range(-(-h // 4))])
        assert (read_labels(tmp_path / f"kept/0/{name}.png") == cells).all()
        pixels = np.array([[cells[int((y + .5) / h * len(cells)), int((x + .5) / w * cells.shape[1])] for x in range(w)] for y in range(h)])
        write_labels(tmp_path / f"cues/{name}.png", pixels.astype(np.uint8))
    expected = evaluate_folder(tmp_path / "cues", opened.seen, partial=True).summary()
    assert row["epoch"] == 0 and all(row[name] == pytest.approx(expected[name], abs=1e-12) for name in ("precision", "recall", "iou", "labelled"))


def test_looking_leaves_the_network_alone(toyvoc, opened):
    """Weights, buffers, mode and luck are those of before, also of a network with batch norm and dropout."""
    class Normed(Tiny):
        def __init__(self, classes):
            super().__init__(classes, dropout=.5)
            self.trunk.insert(1, nn.BatchNorm2d(8))
    network = Normed(opened.data.classes).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    look = Look(network, DSRG, TrainingSet(opened.seen, whole_view(network), opened.cues))
    assert look(1) == look(1)
    assert equal(before, network) and network.training and all(p.grad is None for p in network.parameters())
    assert torch.equal(state[0], torch.get_rng_state()) and state[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_training_never_opens_a_mask(opened, tmp_path, monkeypatch):
    """The set it learns from was opened without, so that a mask could not even be asked for; looking asks for exactly its own."""
    asked = []
    seen = opened.seen.__class__(**{**vars(opened.seen), "read_mask": lambda name, read=opened.seen.read_mask: asked.append(name) or read(name)})
    network = Tiny(opened.data.classes)
    look = Look(network, DSRG, TrainingSet(seen.subset([2]), whole_view(network), opened.cues))
    with pytest.raises(DataError, match="opened without"):
        opened.data.mask(0)
    train_segmenter(opened.data, opened.cues, network, DSRG, Training(**{**PLAIN, "epochs": 2}), training_view(network, size=48), tmp_path, look, device="cpu")
    assert asked == [opened.data.ids[2]] * 3


def test_without_masks_only_the_pictures_are_kept(opened, tmp_path):
    """The row says nothing that nobody can know."""
    row = Look(opened.network, DSRG, TrainingSet(opened.data, whole_view(opened.network), opened.cues), tmp_path, kept=2)(1)
    assert row == {"epoch": 1} and sorted(p.name for p in (tmp_path / "1").iterdir()) == [f"{name}.png" for name in opened.data.ids[:2]]


# ---- bad input -----------------------------------------------------------------------------------------------------------

def go(opened, folder=None, data=None, cues=None, look=None, **settings):
    """A short training of the toy."""
    network = Tiny(opened.data.classes)
    return train_segmenter(opened.data if data is None else data, cues or opened.cues, network, DSRG, Training(**{**PLAIN, "epochs": 1, **settings}),
                           training_view(network, size=48), folder, look, device="cpu")


def test_bad_input_is_refused_in_one_line(opened, tmp_path):
    """No pictures; a network of other classes; a look without a folder; a cue that is no class; cues that refuse."""
    few = opened.data.__class__(opened.data.classes[:2], opened.data.ids, opened.data.tags[:, :2], opened.data.image_file)
    wrong = {"empty": lambda: go(opened, data=opened.data.subset(np.zeros(4, bool))),
             "7 classes apart.*expected 3": lambda: go(opened, data=few),
             "no folder for what it sees": lambda: go(opened, look=lambda epoch: {}),
             "is spoiled": lambda: go(opened, cues=Refusing(opened.cues, opened.data.ids[1]))}
    for message, call in wrong.items():
        with pytest.raises(DataError, match=message) as error:
            call()
        assert "\n" not in str(error.value) and "To mend it" in str(error.value)


def test_a_reading_process_that_dies_is_one_line(opened, tmp_path):
    """Killed by the system: what happened and what helps, no traceback of torch; without it the run goes on. So is what a reader refuses."""
    with pytest.raises(DataError, match="a process that reads pictures died.*fewer workers") as error:
        go(opened, tmp_path, cues=Dying(opened.cues, opened.data.ids[1]), workers=1, epochs=2)
    assert "\n" not in str(error.value)
    assert len(go(opened, tmp_path, epochs=2)) == 2
    with pytest.raises(DataError) as error:
        go(opened, cues=Refusing(opened.cues, opened.data.ids[1]), workers=1)
    assert str(error.value) == f"{opened.data.ids[1]} is spoiled; expected cues. To mend it: make them again"


@pytest.mark.parametrize("where", ["save", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint(toyvoc, tmp_path, monkeypatch, undisturbed, where):
    """No space while the third checkpoint is written, or renamed: the error says so, the one before is whole, and the run goes on from it."""
    left = [2]
    def full(real, picks, *arguments):
        if picks(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[1]))
        return real(*arguments)
    if where == "save":
        monkeypatch.setattr(torch, "save", partial(full, torch.save, lambda state, path: True))
    else:
        monkeypatch.setattr(os, "replace", partial(full, os.replace, lambda source, target: Path(target).name == "last.pt"))
    with pytest.raises(OSError, match="No space left on device"):
        train(toyvoc, tmp_path)
    monkeypatch.undo()
    found = [p for p in (tmp_path / "last.pt", tmp_path / "previous.pt") if p.exists()]
    assert load_checkpoint(found[0])["iteration"] > 0 and not [p for p in tmp_path.iterdir() if "part" in p.name]
    assert equal(train(toyvoc, tmp_path)[0], undisturbed[0]) and diary(tmp_path) == diary(undisturbed[2])


def test_a_torn_checkpoint_names_its_mend(toyvoc, undisturbed, tmp_path):
    """last.pt cut in half is refused with the command that puts previous.pt in its place; after it the run ends with the same bits."""
    network, _, folder = undisturbed
    shutil.copytree(folder, tmp_path / "run")
    last, previous = tmp_path / "run/last.pt", tmp_path / "run/previous.pt"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated or damaged") as error:
        train(toyvoc, tmp_path / "run", checkpoint_minutes=10.)
    assert f"mv '{previous}' '{last}'" in str(error.value)
    os.replace(previous, last)
    assert equal(train(toyvoc, tmp_path / "run", checkpoint_minutes=10.)[0], network)


# ---- where the time goes, and how fast to learn --------------------------------------------------------------------------

def test_profile_adds_up(opened):
    """Seven parts, all positive; the ratio is their sum over forward and backward; the network is really trained."""
    network = Tiny(opened.data.classes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    begin = time.perf_counter()
    parts = profile_step(opened.data, opened.cues, network, DSRG, Training(batch_size=2, learning_rate=.01), training_view(network, size=48), updates=5, device="cpu")
    assert set(parts) == {"reading", "network", "refine", "supervise", "loss", "backward", "optimiser"} and min(parts.values()) > 0
    assert 5 * sum(parts.values()) < time.perf_counter() - begin
    assert weak_overhead({"reading": 1., "network": 2., "refine": .5, "backward": 3., "loss": .5}) == pytest.approx(1.4)
    assert not equal(before, network)


RATES = [("sec", 15, {0: 1e-3, 1999: 1e-3, 2000: 1e-4, 6000: 1e-6}), ("dsrg-text", 20, {1999: 5e-4, 2000: 5e-5}),
         ("dsrg-files", 20, {999: 5e-4, 1000: 1.65e-4, 2000: 5.445e-5}), ("dsrg-retrain", 10, {0: 1e-3, 10_000: 5.358867e-4}),
         ("deeplab", 10, {10_000: 5.358867e-4}), ("dgcn", 16, {0: 2.5e-6, 199: 5e-4, 3 * 661: 1.5e-4, 6 * 661: 4.5e-5}),
         ("salient", 10, {19_999: 2.5e-4, 20_000: 2.5e-5})]


@pytest.mark.parametrize("name, batch, rates", RATES)
def test_rates_of_the_papers(name, batch, rates):
    """Written down from the papers and their files, update by update; 10 582 pictures make 661 updates of 16."""
    from wsss_nb.schedule import factor_at, make_plan
    settings = LEARNING[name]
    plan = make_plan(10_582, settings)
    assert settings.batch_size == batch and settings.momentum == .9 and settings.weight_decay == 5e-4
    for t, rate in rates.items():
        assert settings.learning_rate * factor_at(settings, t, plan.iterations, plan.per_epoch) == pytest.approx(rate, rel=1e-4)
