"""Lesson 51b: every picture to one process; two processes make one run, also when one of them is killed."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_toy import TINY, tiny

from wsss_nb import manifest, scores, sharing, stages
from wsss_nb.checkpoint import read_log
from wsss_nb.config import load_config
from wsss_nb.core import DataError
from wsss_nb.files import folder_hash
from wsss_nb.inference import predict_folder
from wsss_nb.manifest import read_manifest
from wsss_nb.run import Team
from wsss_nb.segmenter import load_segmenter
from wsss_nb.sharing import meet, require_alike, share, versions
from wsss_nb.voc import voc_folder

CPU = torch.device("cpu")


@given(st.integers(0, 99), st.integers(1, 9))
def test_each_item_belongs_to_one(n, size):
    """All shares together are all items, none twice, and they differ by one at most."""
    shares = [list(share(n, Team(rank, size, CPU))) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nobody_is_waited_for():
    """What a single process brings is all there is."""
    assert meet(Team(0, 1, CPU), 5) == [5]


def test_other_versions_are_refused():
    """The process, the library and both versions are named; the same versions pass."""
    require_alike([versions()] * 3)
    with pytest.raises(DataError, match="process 1 has torchvision 0.1, process 0 has .*install torchvision=="):
        require_alike([versions(), versions() | {"torchvision": "0.1"}])


def test_no_stage_begins_among_other_versions(toyvoc, tmp_path, monkeypatch):
    """The first stage compares before it writes anything."""
    monkeypatch.setattr(manifest, "meet", lambda team, value: [value, value | {"torch": "1.0"}])
    with pytest.raises(DataError, match="process 1 has torch 1.0"):
        stages.prepare(tiny(toyvoc), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def both(monkeypatch, name, value) -> None:
    """Stages and their scores ask the same."""
    for module in (stages, scores):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def second(monkeypatch):
    """This process plays the second of two, which meets nobody."""
    team = Team(1, 2, CPU)
    both(monkeypatch, "join_team", lambda device=None: team)
    both(monkeypatch, "meet", lambda team, value=None: [value])


def test_the_second_process_makes_every_second_file(finished_run, toyvoc, tmp_path, second):
    """Cues, labels to retrain on, and predictions; none of the first one's, and no manifest, note or score."""
    run, data = Path(shutil.copytree(finished_run, tmp_path / "run")), tiny(toyvoc)
    ids, odd = voc_folder(toyvoc, "train").ids, voc_folder(toyvoc, "train").ids[1::2]
    for gone in ("cues", "retrain", "predict", "evaluate"):
        shutil.rmtree(run / gone)
    with pytest.raises(DataError, match=f"lacks the cues of {len(ids[::2])} of {len(ids)} images"):   # nobody made the others: they are missed
        stages.cues.__wrapped__(data, run)
    assert sorted(path.stem for path in (run / "cues").glob("*.npz")) == sorted(odd)
    with pytest.raises(DataError, match="lacks the label maps"):
        stages.retrain.__wrapped__(data, run)
    assert sorted(path.stem for path in (run / "retrain/1/labels").glob("*.png")) == sorted(odd) and not (run / "retrain/1/labels.json").exists()
    shutil.copytree(finished_run / "retrain", run / "retrain", dirs_exist_ok=True)
    stages.predict.__wrapped__(data, run)
    assert sorted(path.stem for path in (run / "predict/val").glob("*.png")) == sorted(voc_folder(toyvoc, "val").ids[1::2])
    stages.evaluate.__wrapped__(data, run)
    assert not (run / "evaluate").exists()


def test_shares_make_the_same_predictions(finished_run, toyvoc, tmp_path):
    """Three processes one after the other write what one writes."""
    data, network = voc_folder(toyvoc, "val"), load_segmenter(finished_run / "train/segmenter.pt")
    for rank in range(3):
        predict_folder(network, data, tmp_path / "shared", accepted=data.tags, only=share(len(data), Team(rank, 3, CPU)))
    predict_folder(network, data, tmp_path / "alone", accepted=data.tags)
    assert folder_hash(tmp_path / "shared") == folder_hash(tmp_path / "alone")


def test_scores_of_shares_add_up(finished_run, toyvoc, tmp_path, monkeypatch):
    """Two processes' confusion matrices are that of all pictures."""
    run, brought = Path(shutil.copytree(finished_run, tmp_path / "run")), []
    both(monkeypatch, "join_team", lambda device=None: Team(1, 2, CPU))
    both(monkeypatch, "meet", lambda team, value=None: brought.append(value) or [value])
    stages.evaluate.__wrapped__(tiny(toyvoc), run)
    both(monkeypatch, "join_team", lambda device=None: Team(0, 2, CPU))
    both(monkeypatch, "meet", lambda team, value=None: [value, brought.pop(0)])
    before = {path: path.read_text() for path in run.glob("evaluate/val*.json")}
    for path in before:
        path.unlink()
    stages.evaluate.__wrapped__(tiny(toyvoc), run)
    assert len(before) >= 3 and before == {path: path.read_text() for path in run.glob("evaluate/val*.json")}


# ---- two processes -------------------------------------------------------------------------------------------------------

def start(run: Path, data: Path) -> subprocess.Popen:
    """The command line in two processes that torchrun starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"--set={text}" for text in (*TINY, "train.epochs=3", "device=cpu")]
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "--", "wsss_nb",
                             "run", "--recipe", "dsrg/toy", "--data", str(data), "--run", str(run), *words],
                            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def shared(toyvoc, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes that nobody disturbed, and what was printed."""
    run = tmp_path_factory.mktemp("two") / "run"
    work = start(run, toyvoc)
    out, error = work.communicate(timeout=240)
    assert work.returncode == 0, error[-2000:]
    return run, out


def test_two_processes_make_one_run(shared, toyvoc):
    """All stages: each file once, every picture done, and the first process alone talks."""
    run, printed = shared
    train, val = (voc_folder(toyvoc, split).ids for split in ("train", "val"))
    assert printed.count("4/8 train") == 1 and printed.count("The whole story") == 1
    assert {path.stem for path in (run / "cues").glob("*.npz")} == set(train) == {path.stem for path in (run / "retrain/1/labels").glob("*.png")}
    assert {path.stem for path in (run / "predict/val").glob("*.png")} == set(val)
    assert [row["epoch"] for row in read_log(run / "train/quality.jsonl")] == [0, 1, 2, 3]
    config = load_config("dsrg/toy", toyvoc, overrides=[*TINY, "train.epochs=3", "device=cpu"])
    assert stages.classify(config, run) == read_manifest(run / "classify")
    scores = {name: json.loads((run / f"evaluate/{name}.json").read_text()) for name in ("val", "val.cam")}
    assert scores["val"]["images"] == len(val) and np.sum(scores["val"]["confusion"]) == np.sum(scores["val.cam"]["confusion"])     # the maps' pixels too are counted by both processes


def test_one_of_two_is_killed_and_the_run_goes_on(shared, toyvoc, tmp_path):
    """SIGKILL to the second process in the middle of training: the command ends, and called again ends as if nothing had been."""
    work, run = start(tmp_path / "run", toyvoc), tmp_path / "run"
    while not (run / "train/last.pt").exists():
        assert work.poll() is None, work.communicate()[1][-2000:]
        time.sleep(.02)
    next(child for child in psutil.Process(work.pid).children() if child.environ().get("RANK") == "1").send_signal(signal.SIGKILL)
    _, error = work.communicate(timeout=240)
    assert work.returncode != 0 and "SIGKILL" in error and not (run / "train/segmenter.pt").exists()
    again = start(run, toyvoc)
    _, error = again.communicate(timeout=240)
    assert again.returncode == 0, error[-2000:]
    for network in ("train", "retrain/1"):
        one, other = (torch.load(where / network / "segmenter.pt", weights_only=True)["state"] for where in (run, shared[0]))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert folder_hash(run / "predict") != "" and {path.name: path.read_bytes() for path in (run / "predict/val").glob("*.png")} == {path.name: path.read_bytes() for path in (shared[0] / "predict/val").glob("*.png")}
    assert (run / "evaluate/val.json").read_text() == (shared[0] / "evaluate/val.json").read_text()


def test_patience_is_asked_for_in_a_group_of_its_own():
    """A week, through Gloo: not the group of training, which takes silence for death."""
    asked = {}
    before = sharing.dist.new_group
    sharing._patient.cache_clear()
    sharing.dist.new_group = lambda **how: asked.update(how)
    try:
        sharing._patient()
    finally:
        sharing.dist.new_group = before
        sharing._patient.cache_clear()
    assert asked["backend"] == "gloo" and asked["timeout"].days >= 7


# ---- a cluster -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for torchrun, which waits for TERM, and for Slurm's own command; both write down what they were asked."""
    for name, does in (("torchrun", 'echo "$@" > asked\n[ "$2" = "" ] || trap "echo left > left; exit 0" TERM\n[ -e quick ] || while :; do sleep .05; done'), ("scontrol", 'echo "$@" > queued')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(cluster, *words):
    """The job as Slurm starts it: number 7, on two GPUs."""
    script = Path(__file__).parent.parent / "data_scripts/slurm.sh"
    return subprocess.Popen(["bash", str(script), *words], cwd=cluster, env=os.environ | {"PATH": f"{cluster}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}, stdout=subprocess.PIPE, text=True)


def test_a_job_out_of_time_puts_itself_back(cluster):
    """TERM reaches the training, which leaves; then the job is queued again."""
    job = submit(cluster, "dsrg/voc-vgg16", "VOC2012", "runs/x", "--set", "train.workers=6")
    until = time.time() + 20
    while not (cluster / "asked").exists() and time.time() < until:
        time.sleep(.02)
    time.sleep(.2)                                   # the stand-in sets its trap
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert (cluster / "asked").read_text().split() == "--standalone --nproc-per-node 2 -m -- wsss_nb run --recipe dsrg/voc-vgg16 --data VOC2012 --run runs/x --set train.workers=6".split()
    assert (cluster / "left").exists() and (cluster / "queued").read_text().split() == ["requeue", "7"]


def test_a_job_that_is_done_stays_done(cluster):
    """The run's own end is the job's; too few words are a line of help."""
    (cluster / "quick").touch()
    assert submit(cluster, "dsrg", "toyvoc", "runs/x").wait(20) == 0 and not (cluster / "queued").exists()
    told = submit(cluster, "dsrg")
    assert told.wait(20) == 2 and "usage: sbatch" in told.stdout.read()
