"""A toy segmentation for the tests of lesson 40, which other processes can import: twelve pictures, a network of two convolutions, DSRG."""
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsss_nb.core import IGNORE, DataError
from wsss_nb.crf import mean_field
from wsss_nb.losses import balanced_seeding_loss, boundary_loss
from wsss_nb.schedule import Training
from wsss_nb.tagged import TrainingSet
from wsss_nb.training import Look, Method, grown, train_segmenter, training_view, whole_view
from wsss_nb.voc import voc_folder

PLAIN = dict(epochs=3, batch_size=3, learning_rate=.01, weight_decay=.001, log_every=3, checkpoint_minutes=0., schedule="poly")


class Tiny(nn.Module):
    """A segmenter without batch norm, so that several processes see what one sees; dropout where a test wants luck."""
    mean, std, stride = (.5, .4, .3), (.2, .25, .3), 4

    def __init__(self, classes, dropout=0.):
        super().__init__()
        torch.manual_seed(0)
        self.classes, self.n_classes = classes, 1 + len(classes)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Conv2d(8, self.n_classes, 3, 1, 1)

    def forward(self, image):
        return self.head(self.trunk(image))

    def groups(self, *ignored):
        return [{"params": list(self.trunk.parameters())}, {"params": list(self.head.parameters())}]


def centre_cues(data, i):
    """A dot of the first tag in the middle, background in the corners."""
    S = np.full((12, 12), IGNORE, np.uint8)
    S[5:7, 5:7] = 1 + data.tags[i].argmax()
    S[:2, :2] = S[-2:, -2:] = 0
    return S


class Cues:
    """Cues by id; can be sent to worker processes."""

    def __init__(self, data):
        self.S = {name: centre_cues(data, i) for i, name in enumerate(data.ids)}

    def __call__(self, name):
        return self.S[name]


def losses(prediction, S, batch):
    """DSRG's two."""
    return {"seed": balanced_seeding_loss(prediction.H, S), "boundary": boundary_loss(prediction.H, prediction.Q)}


# nearly every pixel is sure enough: what is taught depends on the weights from the first update on
DSRG = Method(losses, partial(grown, theta_foreground=.1, theta_background=.4), partial(mean_field, scale=12., validate=False))


def train(root, folder=None, dropout=.3, looks=True, killed_looking_at=None, **settings):
    """Train the toy by DSRG; the network and its history."""
    data, seen = (voc_folder(root, "train", masks=masks).subset(range(12)) for masks in (False, True))
    network, settings, cues = Tiny(data.classes, dropout), Training(**{**PLAIN, **settings}), Cues(data)
    view = training_view(network, size=48, low=.8, high=1.2)
    look = Look(network, DSRG, TrainingSet(seen.subset(range(4)), whole_view(network), cues), Path(folder) / "supervision", kept=1) if folder and looks else None
    if killed_looking_at is not None:
        look = partial(look_and_die, look, killed_looking_at)
    return network, train_segmenter(data, cues, network, DSRG, settings, view, folder, look, device="cpu")


def look_and_die(look, at, epoch):
    """SIGKILL after looking, before the row is written."""
    row = look(epoch)
    if epoch == at:
        os.kill(os.getpid(), 9)
    return row


def elsewhere(environment, root, folder, options):
    """The same in another process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    train(root, folder, **options)


class Dying:
    """Cues whose reader is killed when it comes to one picture, as the system does when memory is full."""

    def __init__(self, cues, name):
        self.cues, self.name = cues, name

    def __call__(self, name):
        if name == self.name and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), 9)
        return self.cues(name)


class Refusing:
    """Cues that refuse one picture."""

    def __init__(self, cues, name):
        self.cues, self.name = cues, name

    def __call__(self, name):
        if name == self.name:
            raise DataError(f"{name} is spoiled; expected cues. To mend it: make them again")
        return self.cues(name)
