"""The training loop: killed and resumed, shared by processes, cut into parts, refused."""
import math
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop_toy import PLAIN, Toy, elsewhere, network, step_of, train
from torch import nn

from wsss_nb import checkpoint, run, schedule
from wsss_nb.checkpoint import load_checkpoint, read_log
from wsss_nb.core import DataError
from wsss_nb.loop import Training, fit, polite

OTHERS = multiprocessing.get_context("forkserver")       # a clean process, with torch loaded once for all of them
OTHERS.set_forkserver_preload(["wsss_nb.loop", "torch._dynamo"])   # which DDP loads


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever machine this is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def equal(a, b) -> bool:
    """All weights and buffers, bit for bit."""
    a, b = (net if isinstance(net, dict) else net.state_dict() for net in (a, b))
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def distance(a, b) -> float:
    """The largest difference of a weight."""
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def diary(folder) -> list[dict]:
    """The log without its clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(Path(folder) / "log.jsonl")]


def start(folder, environment=None, **options) -> multiprocessing.Process:
    """The toy in a process of its own."""
    process = OTHERS.Process(target=elsewhere, args=(environment or {}, folder, options), daemon=False)
    process.start()
    return process


def finished(*processes) -> None:
    """Wait for processes that must end well."""
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody disturbs: network, history, folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    return *train(folder, checkpoint_minutes=10.), folder


# ---- kill and resume -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers, minutes, often", [(0, 0., True), (2, .0005, False)])
def test_killed_run_ends_with_the_same_bits(tmp_path, undisturbed, workers, minutes, often):
    """SIGKILL at a random update, the same command again: weights, buffers, history and log of a run nobody disturbed."""
    when = random.Random(os.urandom(8)).randint(3, 14)      # of 20 updates; named when the test fails
    options = dict(workers=workers, checkpoint_minutes=minutes, checkpoint_epochs=often)
    process = start(tmp_path, **options)
    while not any(row["iteration"] >= when for row in read_log(tmp_path / "log.jsonl")) and process.is_alive():
        time.sleep(.001)
    process.kill()
    process.join()
    finished(start(tmp_path, **options))
    stored = load_checkpoint(tmp_path / "last.pt")
    net, history, folder = undisturbed
    assert stored["iteration"] == 20 and equal(stored["network"], net), f"killed at {when}"
    clean = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert clean(stored["history"]) == clean(history) and len(history) == 4
    # a checkpoint's settings differ in the clock only, which changes no weight; the logs are the same text
    assert diary(tmp_path) == diary(folder), f"killed at {when}"


@pytest.mark.parametrize("stops", [(1,), (4, 5, 6), (2, 7, 13, 19)])
def test_resume_in_the_middle_of_an_epoch_and_of_a_line(tmp_path, undisturbed, stops):
    """Epochs have 5 updates and lines 3: stopping between them changes neither weights nor means."""
    for stop in stops:
        train(tmp_path, stop_after=stop, checkpoint_minutes=10., workers=0)
        assert load_checkpoint(tmp_path / "last.pt")["iteration"] == stop
    net, history = train(tmp_path, checkpoint_minutes=10.)
    assert equal(net, undisturbed[0]) and diary(tmp_path) == diary(undisturbed[2])
    assert [row["loss"] for row in history] == [row["loss"] for row in undisturbed[1]]


def test_resume_continues_the_luck_of_python_and_numpy(tmp_path):
    """A step may draw from any generator."""
    def lucky(net):
        def step(batch):
            noise = random.random() + np.random.rand() + random.gauss(0, 1) + np.random.normal()
            return {"tags": (net(batch.image) - noise).square().mean()}
        return step
    nets = [network() for _ in range(3)]
    fit(nets[0], Toy(), lucky(nets[0]), Training(**PLAIN), device="cpu")
    fit(nets[1], Toy(), lucky(nets[1]), Training(**PLAIN), tmp_path, "cpu", stop_after=7)
    fit(nets[2], Toy(), lucky(nets[2]), Training(**PLAIN), tmp_path, "cpu")
    assert equal(nets[0], nets[2])


def test_adamw_resumes(tmp_path):
    """Its memory is larger than momentum."""
    options = dict(optimiser="adamw", learning_rate=.01)
    train(tmp_path, stop_after=9, **options)
    assert equal(train(tmp_path, **options)[0], train(**options)[0])


def test_finished_run_returns_at_once(tmp_path, undisturbed):
    """Starting a finished run again reads it, and calls no step."""
    net, history, folder = undisturbed
    other = network()
    rows = fit(other, Toy(), lambda batch: pytest.fail("trained again"), Training(**{**PLAIN, "checkpoint_minutes": 10.}), folder, "cpu")
    assert rows == history and equal(other, net)


def test_interrupt_ends_the_update_and_saves(tmp_path, undisturbed):
    """Ctrl-C and SIGTERM in the middle of a step lose nothing; the handlers are put back."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    for number, at in ((signal.SIGINT, 4), (signal.SIGTERM, 9)):
        net = network()
        def step(batch, net=net, number=number, left=[at]):  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(number)
            return step_of(net)(batch)
        with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
            fit(net, Toy(), step, Training(**{**PLAIN, "checkpoint_minutes": 10.}), tmp_path, "cpu")
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 13
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert equal(train(tmp_path, checkpoint_minutes=10.)[0], undisturbed[0])


def test_fit_in_a_thread():
    """A thread may not handle signals, and trains all the same."""
    done = []
    thread = threading.Thread(target=lambda: done.append(train(epochs=1)))
    thread.start()
    thread.join()
    assert len(done[0][1]) == 1


# ---- order and parts -----------------------------------------------------------------------------------------------------

def test_workers_change_nothing(undisturbed):
    """Two workers read what the training process would have read."""
    assert equal(train(workers=2)[0], undisturbed[0])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 30))
def test_every_part_of_every_batch_is_read_once(images, batch, accumulate, processes, drop, start):
    """All processes together read exactly the batches of one process, in order; a late start reads the rest."""
    try:
        settings = Training(batch_size=batch, accumulate=accumulate, drop_last=drop, epochs=3)
        plan = schedule.make_plan(images, settings, processes)
    except DataError:
        return
    whole = list(schedule.batch_keys(plan, settings))
    assert len(whole) == plan.iterations == 3 * plan.per_epoch
    for epoch in range(3):
        seen = [key for keys in whole[epoch * plan.per_epoch:(epoch + 1) * plan.per_epoch] for key in keys]
        assert len(set(seen)) == len(seen) == (images // batch * batch if drop else images)
        assert {e for e, _ in seen} == {epoch} and {i for _, i in seen} <= set(range(images))
    assert list(schedule.batch_keys(plan, settings, start)) == whole[start:]
    parts = [list(schedule.part_keys(plan, settings, start, rank, processes)) for rank in range(processes)]
    for k, keys in enumerate(whole[start:]):
        mine = [part for p in parts for part in p[k * accumulate:(k + 1) * accumulate]]
        assert sum(mine, []) == keys and min(map(len, mine)) > 0 and max(map(len, mine)) - min(map(len, mine)) <= 1


def test_epochs_differ_in_order():
    """Each epoch shuffles anew, each seed too."""
    settings = Training(batch_size=30, epochs=2)
    first, second = schedule.batch_keys(schedule.make_plan(30, settings), settings)
    other = next(schedule.batch_keys(schedule.make_plan(30, settings), Training(batch_size=30, seed=1)))
    orders = [[i for _, i in keys] for keys in (first, second, other)]
    assert len({tuple(order) for order in orders}) == 3 and all(sorted(order) == list(range(30)) for order in orders)


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"accumulate": 8}, {"accumulate": 2, "drop_last": False}])
def test_accumulation_equals_the_large_batch(changes):
    """Parts of 2, 3 and 3 images, or single ones, or a short last batch in parts: the same losses and weights to 1e-5."""
    whole, rows = train(dropout=0., **{k: v for k, v in changes.items() if k != "accumulate"})
    if "drop_last" in changes:
        changes = {**changes, "batch_size": 8}
    parts, part_rows = train(dropout=0., **changes)
    assert distance(whole, parts) < 1e-5
    np.testing.assert_allclose([row["loss"] for row in part_rows], [row["loss"] for row in rows], atol=1e-5)


def test_parts_are_weighted_by_their_images():
    """One update of 8 in 3 parts equals one step of plain gradient descent done by hand."""
    from wsss_nb.tagged import collate
    settings = Training(batch_size=8, accumulate=3, iterations=1, learning_rate=.5, momentum=0., weight_decay=0., schedule="constant")
    net, hand = network(0.), network(0.)
    fit(net, Toy(), step_of(net), settings, device="cpu")
    keys = next(schedule.batch_keys(schedule.make_plan(45, settings), settings))
    losses = [sum(step_of(hand)(collate([Toy()[key]])).values()) for key in keys]
    gradients = torch.autograd.grad(sum(losses) / 8, list(hand.parameters()))
    for p, q, g in zip(net.parameters(), hand.parameters(), gradients):
        torch.testing.assert_close(p, q - .5 * g, atol=1e-6, rtol=0)


# ---- several processes ---------------------------------------------------------------------------------------------------

def free_port() -> str:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start_two(folder, **options) -> list[multiprocessing.Process]:
    """What torchrun does: two processes, each told its number."""
    port = free_port()
    return [start(folder, {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                  **options) for r in range(2)]


@pytest.mark.parametrize("options", [{"batch_size": 7, "accumulate": 2, "clip": .5}, {"drop_last": False, "batch_size": 8}])
def test_two_processes_equal_one(tmp_path, options):
    """Uneven shares (7 images in 4 parts; a last batch of 5): losses and weights of one process to 1e-5, one log, one checkpoint."""
    options = {**options, "dropout": 0.}
    finished(*start_two(tmp_path, **options))
    net, rows = train(tmp_path / "one", **options)
    stored = load_checkpoint(tmp_path / "last.pt")
    np.testing.assert_allclose([row["loss"] for row in stored["history"]], [row["loss"] for row in rows], atol=1e-5, rtol=0)
    assert max((stored["network"][name] - value).abs().max().item() for name, value in net.state_dict().items()) < 1e-5
    assert [row["iteration"] for row in diary(tmp_path)] == [row["iteration"] for row in diary(tmp_path / "one")]
    assert len(stored["processes"]) == 2


def test_two_processes_resume_exactly(tmp_path):
    """Each process goes on with its own luck: stopped and resumed equals undisturbed, bit for bit; one process may take over."""
    for folder, stops in ((tmp_path / "whole", (None,)), (tmp_path / "cut", (8, None))):
        for stop in stops:
            finished(*start_two(folder, stop_after=stop, epochs=3))
    whole, cut = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert equal(whole["network"], cut["network"]) and diary(tmp_path / "whole") == diary(tmp_path / "cut")
    luck = [p["random"]["torch"] for p in whole["processes"]]
    assert not torch.equal(*luck)


def test_one_process_goes_on_where_two_stopped(tmp_path):
    """The number of processes may change; the weights go on from the checkpoint."""
    finished(*start_two(tmp_path, dropout=0., stop_after=8))
    assert distance(train(tmp_path, dropout=0.)[0], train(dropout=0.)[0]) < 1e-5


def test_processes_agree_on_what_went_wrong(tmp_path):
    """The NaN of one process spoils all; both name its images and its update, and no checkpoint is written after it."""
    settings = Training(**PLAIN)
    keys = [[i for _, i in batch] for batch in schedule.batch_keys(schedule.make_plan(45, settings), settings)]
    update, image = next((t, i) for t in range(5, 20) for i in keys[t][4:] if i not in sum(keys[:t], []))   # the second process reads it
    (tmp_path / "told").mkdir()
    processes = start_two(tmp_path / "run", spoiled=(image,), dropout=0., errors=str(tmp_path / "told"))
    for process in processes:
        process.join(120)
    first, second = (path.read_text() for path in sorted((tmp_path / "told").iterdir()))
    images = ", ".join(f"toy{i}" for i in keys[update][4:])
    assert first == second and f"the loss 'tags' is nan in epoch {1 + update // 5}, update {update + 1}, on the images {images};" in first
    assert load_checkpoint(tmp_path / "run" / "last.pt")["iteration"] <= update


# ---- a loss that is not finite -------------------------------------------------------------------------------------------

def test_nonfinite_loss_names_loss_update_and_images(tmp_path):
    """On a CPU at once: the weights in memory are those of the update before, the checkpoint too."""
    settings = Training(**PLAIN)
    keys = list(schedule.batch_keys(schedule.make_plan(45, settings), settings))
    fresh = {i for _, i in keys[3]} - {i for t in range(3) for _, i in keys[t]}
    image = min(fresh)                                       # first read in update 4
    net, data = network(), Toy(spoiled=(image,))
    with pytest.raises(DataError) as error:
        fit(net, data, step_of(net), settings, tmp_path, "cpu")
    images = ", ".join(f"toy{i}" for _, i in keys[3])
    assert f"the loss 'tags' is nan in epoch 1, update 4, on the images {images};" in str(error.value)
    assert all(p.isfinite().all() for p in net.parameters())
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 3


def test_means_look_late_and_name_the_first():
    """As on a GPU: losses of many updates are looked at together, and the first bad one is named."""
    means, team = run.Means(), run.join_team("cpu")
    leaf = lambda value: torch.tensor(value, requires_grad=True)
    for t in range(9):
        means.add(0, t, (f"a{t}", f"b{t}"), 1., {"x": leaf(1.), "y": leaf(math.inf if t >= 6 else 2.)})
    with pytest.raises(DataError, match="the loss 'y' is inf in epoch 1, update 7, on the images a6, b6;"):
        means.look(team)


def test_adding_losses_does_not_wait(monkeypatch):
    """`add` reads no value of a tensor: on a GPU that would wait for it."""
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, name=name: waits.append(name))
    run.Means().add(0, 0, ("a",), 1., {"x": torch.ones((), requires_grad=True), "y": torch.ones((), requires_grad=True)})
    assert waits == []


def test_spoiled_weights_are_not_saved(tmp_path):
    """A finite loss with an infinite gradient: the checkpoint before it stays."""
    net = network(0.)
    def step(batch, count=[0]):  # noqa: B006
        count[0] += 1
        return {"x": step_of(net)(batch)["tags"] + (0. if count[0] < 4 else (net[-1].bias - net[-1].bias.detach()).square().sum().sqrt())}
    with pytest.raises(DataError, match="not finite after update 4"):
        fit(net, Toy(), step, Training(**PLAIN), tmp_path, "cpu")
    assert load_checkpoint(tmp_path / "last.pt")["iteration"] == 3


# ---- schedules, groups, clipping, precision ------------------------------------------------------------------------------

HAND = [  # settings, update, updates in all, updates in an epoch, factor by hand
    ({"schedule": "constant"}, 7, 10, 5, 1.),
    ({"schedule": "poly", "power": .5}, 75, 100, 10, .5),                               # (1 - .75) ** .5
    ({"schedule": "poly"}, 0, 20000, 661, 1.),
    ({"schedule": "poly"}, 10000, 20000, 661, .5358867),                                # .5 ** .9
    ({"schedule": "poly_epoch", "power": 2}, 19, 50, 10, .64),                          # epoch 1 of 5
    ({"schedule": "poly_epoch", "power": 1}, 20, 25, 10, 1 / 3),                        # epoch 2 of 3, the last is short
    ({"schedule": "step"}, 1999, 8000, 500, 1.), ({"schedule": "step"}, 2000, 8000, 500, .1), ({"schedule": "step"}, 6000, 8000, 500, .001),
    ({"schedule": "step", "step_every": 1000, "step_factor": .33}, 3500, 8000, 500, .035937),   # .33 ** 3
    ({"schedule": "step_epoch", "step_every": 3, "step_factor": .3}, 29, 70, 10, 1.), ({"schedule": "step_epoch", "step_every": 3, "step_factor": .3}, 60, 70, 10, .09),
    ({"schedule": "constant", "warm_up": 200}, 0, 1000, 100, .005), ({"schedule": "constant", "warm_up": 200}, 199, 1000, 100, 1.),
    ({"schedule": "step", "step_every": 100, "warm_up": 200}, 149, 1000, 100, .075),    # .75 up the ramp, one stair down
]


@pytest.mark.parametrize("settings, iteration, iterations, per_epoch, factor", HAND)
def test_schedules_by_hand(settings, iteration, iterations, per_epoch, factor):
    """Every schedule at a few updates."""
    assert schedule.factor_at(Training(**settings), iteration, iterations, per_epoch) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("name, ours, theirs", [
    ("poly", {"schedule": "poly"}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 50, .9)),
    ("step", {"schedule": "step", "step_every": 7, "step_factor": .3}, lambda o: torch.optim.lr_scheduler.StepLR(o, 7, .3)),
    ("warm_up", {"schedule": "constant", "warm_up": 5}, lambda o: torch.optim.lr_scheduler.LinearLR(o, .2, 1., 4))])
def test_schedules_equal_those_of_torch(name, ours, theirs):
    """The same rates as torch's schedulers, which count for themselves."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.)
    scheduler, settings = theirs(optimiser), Training(**ours)
    for t in range(50):
        assert schedule.factor_at(settings, t, 50, 10) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-9)
        optimiser.step()
        scheduler.step()


def test_schedule_may_be_a_function(tmp_path):
    """Any function of the three numbers; another one is refused when the run goes on."""
    def halving(iteration, iterations, per_epoch):
        assert (iterations, per_epoch) == (20, 5)
        return .5 ** (iteration // per_epoch)
    _, rows = train(tmp_path, schedule=halving)
    assert [row["learning_rate"] for row in rows] == [.1, .05, .025, .0125]
    with pytest.raises(DataError, match="schedule is poly now and was .*halving"):
        train(tmp_path)


def test_groups_learn_at_their_own_rate():
    """After one plain step each parameter moved by rate × scale × (gradient + decay × weight)."""
    net, before = network(0.), network(0.)
    settings = Training(**{**PLAIN, "iterations": 1, "momentum": 0., "schedule": "constant", "weight_decay": .5, "batch_size": 45})
    groups = [{"params": [net[0].weight, net[-1].weight]}, {"params": [net[0].bias], "scale": 2., "decay": 0.}, {"params": [net[-1].bias], "scale": 10.}]
    fit(net, Toy(), step_of(net), settings, device="cpu", groups=groups)
    from wsss_nb.tagged import collate
    losses = step_of(before)(collate([Toy()[0, i] for i in range(45)]))
    gradient = dict(zip([n for n, _ in before.named_parameters()], torch.autograd.grad(sum(losses.values()), list(before.parameters()))))
    rule = {"0.weight": (1, .5), "0.bias": (2, 0), f"{len(net) - 1}.weight": (1, .5), f"{len(net) - 1}.bias": (10, .5)}
    for (name, new), old in zip(net.named_parameters(), before.parameters()):
        scale, decay = rule[name]
        torch.testing.assert_close(new, old - .1 * scale * (gradient[name] + decay * old), atol=1e-6, rtol=1e-5)


def test_frozen_parameters_stay():
    """requires_grad_(False) is enough; momentum and decay do not touch them."""
    net = network(0.)
    net[0].requires_grad_(False)
    fit(net, Toy(), step_of(net), Training(**PLAIN), device="cpu")
    assert equal(net[0], network(0.)[0]) and not torch.equal(net[-1].weight, network(0.)[-1].weight)


@pytest.mark.parametrize("clip", [.01, .1])
def test_clip_bounds_the_step(clip):
    """With rate 1 and nothing else, one update moves the weights by `clip`."""
    net = network(0.)
    fit(net, Toy(), step_of(net), Training(batch_size=8, iterations=1, learning_rate=1., momentum=0., weight_decay=0., schedule="constant", clip=clip), device="cpu")
    moved = sum((p - q).square().sum() for p, q in zip(net.parameters(), network(0.).parameters())).sqrt()
    assert moved.item() == pytest.approx(clip, rel=1e-3)


def test_amp_runs_in_bfloat16_and_is_close():
    """The step sees bfloat16, the weights stay float32, the losses are those of float32 to 2 %."""
    net, seen = network(0.), []
    def step(batch):
        seen.append(net[0](batch.image).dtype)
        return step_of(net)(batch)
    rows = fit(net, Toy(), step, Training(**PLAIN, amp=True), device="cpu")
    exact = train(dropout=0.)[1]
    assert set(seen) == {torch.bfloat16} and net[0].weight.dtype == torch.float32
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in exact], rtol=.02)
    assert [r["loss"] for r in rows] != [r["loss"] for r in exact]


def test_channels_last_reaches_network_and_images():
    """Both are stored channels last, and the result is the same to rounding."""
    net, seen = network(0.), []
    def step(batch):
        seen.append(batch.image.is_contiguous(memory_format=torch.channels_last) and not batch.image.is_contiguous())
        return step_of(net)(batch)
    fit(net, Toy(), step, Training(**PLAIN, channels_last=True), device="cpu")
    assert all(seen) and net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert distance(net, train(dropout=0.)[0]) < 1e-5


def test_fit_equals_the_ten_lines():
    """Torch's optimiser and scheduler in the loop everybody writes: the same bits."""
    from wsss_nb.core import seed_everything
    from wsss_nb.tagged import collate
    net = network()
    settings = Training(**PLAIN)
    optimiser = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=.01)
    seed_everything(0)
    for t, keys in enumerate(schedule.batch_keys(schedule.make_plan(45, settings), settings)):
        optimiser.param_groups[0]["lr"] = .1 * (1 - t / 20) ** .9
        optimiser.zero_grad()
        sum(step_of(net)(collate([Toy()[key] for key in keys])).values()).backward()
        optimiser.step()
    assert equal(net, train()[0])


# ---- what is written -----------------------------------------------------------------------------------------------------

def test_history_and_log(undisturbed):
    """One row an epoch; lines after updates 3 and 5 of each epoch, and their means make the epoch's."""
    _, history, folder = undisturbed
    rows = read_log(folder / "log.jsonl")
    assert [row["epoch"] for row in history] == [1, 2, 3, 4] and [row["iteration"] for row in history] == [5, 10, 15, 20]
    assert [(row["event"], row["iteration"]) for row in rows[:6]] == [("line", 3), ("line", 5), ("epoch", 5), ("line", 8), ("line", 10), ("epoch", 10)]
    for epoch in range(4):
        a, b, whole = rows[3 * epoch:3 * epoch + 3]
        for name in ("tags", "size", "loss"):
            assert whole[name] == pytest.approx((3 * a[name] + 2 * b[name]) / 5)
        assert whole["loss"] == pytest.approx(whole["tags"] + whole["size"]) and whole["seconds"] >= 0
    assert history[0]["learning_rate"] == pytest.approx(.1 * (1 - 4 / 20) ** .9)


def test_iterations_win_over_epochs():
    """7 updates of 5 in an epoch: two rows, the second of two updates."""
    rows = train(iterations=7)[1]
    assert [(row["epoch"], row["iteration"]) for row in rows] == [(1, 5), (2, 7)]


def test_tensorboard(tmp_path):
    """The same numbers reach TensorBoard, where it is installed."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = train(tmp_path, tensorboard=True)[1]
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("epoch/loss")] == [5, 10, 15, 20]
    assert [e.value for e in events.Scalars("epoch/loss")] == pytest.approx([row["loss"] for row in rows])


def test_tensorboard_missing(tmp_path, monkeypatch):
    """Its absence is told with the command that mends it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match=r"pip install 'wsss_nb\[tensorboard\]'"):
        train(tmp_path, tensorboard=True)


# ---- bad input -----------------------------------------------------------------------------------------------------------

class Trap:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_checkpoint_with_code_is_not_opened(tmp_path):
    """Neither inside a checkpoint nor as a bare pickle does code run."""
    sprung = tmp_path / "sprung"
    for spoil in (lambda path: torch.save({"network": Trap(sprung)}, path), lambda path: path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))):
        spoil(tmp_path / "last.pt")
        with pytest.raises(DataError, match="holds code.*was not opened"):
            train(tmp_path)
    assert not sprung.exists()
    pickle.loads((tmp_path / "last.pt").read_bytes())        # the trap itself works
    assert sprung.exists()


@pytest.mark.parametrize("share", [0., .01, .5, .99])
def test_truncated_checkpoint_is_refused_and_its_mend_works(tmp_path, undisturbed, share):
    """The message names the file and a command; after the command the run ends with the same bits."""
    train(tmp_path, stop_after=7, checkpoint_minutes=10.)
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(DataError) as error:
        train(tmp_path)
    message = str(error.value)
    assert str(path) in message and ("truncated" in message or "empty" in message)
    os.replace(tmp_path / "previous.pt", path)               # mv previous.pt last.pt, as the message says
    assert f"mv '{tmp_path / 'previous.pt'}' '{path}'" in message
    assert load_checkpoint(path)["iteration"] == 5
    assert equal(train(tmp_path, checkpoint_minutes=10.)[0], undisturbed[0]) and diary(tmp_path) == diary(undisturbed[2])


def test_kill_between_the_two_renames(tmp_path, undisturbed):
    """last.pt is gone, previous.pt is there: the run goes on from it."""
    train(tmp_path, stop_after=7, checkpoint_minutes=10.)
    (tmp_path / "last.pt").unlink()
    assert equal(train(tmp_path, checkpoint_minutes=10.)[0], undisturbed[0])


def test_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """A full disk in the middle of a save."""
    checkpoint.save_checkpoint(tmp_path / "last.pt", {"iteration": 1})
    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(tmp_path / "last.pt", {"iteration": 2})
    assert load_checkpoint(tmp_path / "last.pt") == {"iteration": 1} and len(list(tmp_path.iterdir())) == 1


def test_resume_of_another_run_is_refused(tmp_path):
    """Other settings, layers, images or groups: the message names what differs, and nothing is written."""
    train(tmp_path, stop_after=4)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    wrong = {"learning_rate is 0.2 now and was 0.1; epochs|epochs is 9 now and was 4; learning_rate is 0.2": lambda: train(tmp_path, learning_rate=.2, epochs=9),
             "batch_size is 5 now and was 8": lambda: train(tmp_path, batch_size=5),
             "other layers": lambda: train(tmp_path, dropout=0.),
             "images is 46 now and was 45": lambda: train(tmp_path, data=Toy(46)),
             "groups": lambda: fit(net := network(), Toy(), step_of(net), Training(**PLAIN), tmp_path, "cpu",
                                   [{"params": net[:2].parameters(), "scale": 2.}, {"params": net[2:].parameters()}])}
    for message, call in wrong.items():
        with pytest.raises(DataError, match=message):
            call()
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before
    train(tmp_path, workers=1, checkpoint_minutes=5.)      # these may change


BAD = [({"data": Toy(0)}, "data set is empty"), ({"data": Toy(7)}, "larger than the data set of 7"), ({"accumulate": 9}, "cut into 9 parts"),
       ({"drop_last": False, "accumulate": 6}, "a batch of 5 images is cut into 6 parts"), ({"schedule": "poli"}, "expected constant, poly"),
       ({"optimiser": "adam"}, "sgd or adamw"), ({"epochs": 0}, "epochs is 0"), ({"clip": -1.}, "clip is -1"), ({"batch_size": 2.5}, "batch_size is 2.5"),
       ({"learning_rate": math.nan}, "learning_rate is nan"), ({"iterations": 0}, "iterations is 0"), ({"seed": -1}, "seed is -1"),
       ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'"), ({"amp": "false"}, "amp is 'false'"), ({"tensorboard": 1}, "tensorboard is 1"),
       ({"schedule": lambda t, n, e: math.nan}, "gives nan for update 1"), ({"schedule": lambda t, n, e: -1.}, "gives -1"),
       ({"schedule": lambda t, n, e: 1j}, "gives 1j"), ({"schedule": lambda t, n, e: None}, "gives None")]


@pytest.mark.parametrize("options, message", BAD)
def test_bad_settings_are_refused(options, message):
    """One line that names the setting, what was expected and the mend."""
    with pytest.raises(DataError, match=message) as error:
        train(**options)
    assert "\n" not in str(error.value) and "To mend it" in str(error.value)


def test_resume_with_other_tags_or_facts_is_refused(tmp_path):
    """The same ids with another tag, or another class list, are other data; so is whatever the caller names as a fact."""
    class Tagged(Toy):
        def __init__(self, tags, classes=("boat", "cow")):
            super().__init__()
            self.data = SimpleNamespace(ids=tuple(map(str, range(len(self)))), tags=tags, classes=classes)

    tags = np.zeros((len(Toy()), 2), bool)
    def go(data, **facts):
        torch.manual_seed(0)
        return fit(net := network(), data, step_of(net), Training(**PLAIN), tmp_path, "cpu", facts=facts, stop_after=2)

    go(Tagged(tags), grey=False)
    go(Tagged(tags.copy()), grey=False)
    other = tags.copy()
    other[3, 1] = True
    for message, data, facts in (("tags is", Tagged(other), {"grey": False}), ("classes is", Tagged(tags, ("cow", "boat")), {"grey": False}),
                                 ("grey is True now and was False", Tagged(tags), {"grey": True}), ("grey is None now", Tagged(tags), {})):
        with pytest.raises(DataError, match=message):
            go(data, **facts)


@pytest.mark.parametrize("losses, message", [
    (lambda logits: logits.mean(), r"a tensor of shape \(\)"), (lambda logits: {}, "step returned"), (lambda logits: {"a": logits}, r"shape \(8, 2\)"),
    (lambda logits: {"a": 1.}, "scalar tensor"), (lambda logits: {"a": logits.mean().detach()}, "depend on no trained parameter")])
def test_bad_steps_are_refused(losses, message):
    """What a step may return is said when it returns something else."""
    net = network()
    with pytest.raises(DataError, match=message):
        fit(net, Toy(), lambda batch: losses(net(batch.image)), Training(**PLAIN), device="cpu")


def test_one_image_is_enough():
    """The smallest run: one image, one update."""
    net, rows = train(data=Toy(1), dropout=0., batch_size=1, epochs=1)
    assert len(rows) == 1 and rows[0]["iteration"] == 1


def test_an_interrupt_that_comes_after_the_last_look_is_not_lost():
    """Noted when no update is left that could answer it, it is told at the end; the handler of before is back."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), polite():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
