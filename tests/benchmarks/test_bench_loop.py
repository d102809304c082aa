"""What the loop costs over the bare ten lines, in one run. Asserts no time.

    pytest tests/benchmarks/test_bench_loop.py -s
    python tests/benchmarks/test_bench_loop.py --updates 500
"""
import tempfile
import time

import pytest
import torch
from torch import nn

from wsss_nb.loop import fit
from wsss_nb.schedule import Training, batch_keys, factor_at, make_plan
from wsss_nb.tagged import Sample, collate

IMAGES, BATCH = 64, 16


class Stored:
    "Pictures that lie in memory: what is measured is the loop, not the disk."

    def __init__(self, size):
        torch.manual_seed(0)
        self.images, self.T = torch.rand(IMAGES, 3, size, size), torch.rand(IMAGES, 6) < .4

    def __len__(self):
        return IMAGES

    def __getitem__(self, key):
        return f"image{key[1]}", self.T[key[1]], Sample(self.images[key[1]])


def network(width):
    "Three convolutions and a linear layer."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6))


def step_of(net):
    "Multi-label classification."
    return lambda batch: {"tags": nn.functional.binary_cross_entropy_with_logits(net(batch.image), batch.T.float())}


def ten_lines(net, data, step, settings):
    "The loop everybody writes first; it reads the loss each update, as most do."
    plan, losses = make_plan(len(data), settings), []
    optimiser = torch.optim.SGD(net.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay)
    for t, keys in enumerate(batch_keys(plan, settings)):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * factor_at(settings, t, plan.iterations, plan.per_epoch)
        total = sum(step(collate([data[key] for key in keys])).values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(total.item())
    return losses


def seconds(*works, rounds=5):
    "Processor time of each, the shortest of a few rounds in which all take turns; other processes do not count."
    torch.set_num_threads(1)
    times = []
    for _ in range(rounds):
        marks = [time.process_time()]
        for work in works:
            work()
            marks.append(time.process_time())
        times.append([b - a for a, b in zip(marks, marks[1:])])
    return [min(column) for column in zip(*times)]


@pytest.mark.parametrize("size, width", [(16, 8), (32, 16), (64, 24)], ids=["tiny", "small", "larger"])
def test_ratio_to_ten_lines(size, width, updates=20):
    "Print the times, their ratios and the cost of an update; the weights are the same bits."
    data, settings, nets = Stored(size), Training(batch_size=BATCH, iterations=updates, learning_rate=.01), []
    def run(train, *more):
        nets.append(network(width))
        train(nets[-1], data, step_of(nets[-1]), settings, *more)
    bare, full, kept = seconds(lambda: run(ten_lines), lambda: run(fit, None, "cpu"), lambda: run(fit, tempfile.mkdtemp(), "cpu"))
    assert all(torch.equal(p, q) for net in nets[1:] for p, q in zip(nets[0].parameters(), net.parameters()))
    print(f"\n{updates} updates of {BATCH} images of {size}x{size}: ten lines {bare:.3f} s, fit {full:.3f} s ({full / bare:.2f} times, "
          f"{1e3 * (full - bare) / updates:+.2f} ms an update), with log and a checkpoint each epoch {kept:.3f} s ({kept / bare:.2f} times)")


def test_bench_fit(benchmark):
    "Ten updates, for pytest-benchmark's table."
    data, settings = Stored(16), Training(batch_size=BATCH, iterations=10)
    net = network(8)
    benchmark.pedantic(fit, (net, data, step_of(net), settings), {"device": "cpu"}, rounds=10, warmup_rounds=2)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100)
    updates = parser.parse_args().updates
    for size, width in ((16, 8), (32, 16), (64, 24), (128, 48)):
        test_ratio_to_ten_lines(size, width, updates)
