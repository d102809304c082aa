"""A toy problem for the tests of the loop, which other processes can import."""
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsss_nb.core import DataError, generator
from wsss_nb.loop import Training, fit
from wsss_nb.tagged import Sample

PLAIN = dict(epochs=4, batch_size=8, learning_rate=.1, log_every=3, checkpoint_minutes=0., weight_decay=.01)


class Toy:
    """Images whose channels are brighter where a tag is set; noise and mirror depend on (epoch, i)."""

    def __init__(self, n=45, spoiled=()):
        self.n, self.spoiled = n, spoiled

    def __len__(self):
        return self.n

    def __getitem__(self, key):
        epoch, i = key
        rng = generator(7, "toy", epoch, i)
        T = torch.tensor([i % 2 == 0, i % 3 == 0])
        image = rng.normal(0, .3, (3, 8, 8)).astype(np.float32)
        image[:2] += T.numpy()[:, None, None] * np.linspace(0, 1, 8, dtype=np.float32)[::rng.choice([-1, 1])]
        if i in self.spoiled:
            image[0, 0, 0] = np.nan
        return f"toy{i}", T, Sample(torch.from_numpy(image))


def network(dropout=.3):
    """Convolution, batch norm and dropout: weights, buffers and luck."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(8)] if dropout else []
    return nn.Sequential(nn.Conv2d(3, 8, 3), *norm, nn.ReLU(), nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def step_of(net):
    """Two losses."""
    def step(batch):
        logits = net(batch.image)
        return {"tags": nn.functional.binary_cross_entropy_with_logits(logits, batch.T.float()), "size": .01 * logits.square().mean()}
    return step


def train(folder=None, dropout=.3, data=None, spoiled=(), stop_after=None, **settings):
    """Train the toy; the network and its history."""
    net = network(dropout)
    rows = fit(net, Toy(spoiled=spoiled) if data is None else data, step_of(net), Training(**{**PLAIN, **settings}), folder, "cpu", stop_after=stop_after)
    return net, rows


def elsewhere(environment, folder, options):
    """The same in another process; with `errors`, a refusal is written there."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    errors = options.pop("errors", None)
    try:
        train(folder, **options)
    except DataError as error:
        if not errors:
            raise
        Path(errors, environment["RANK"]).write_text(str(error))
