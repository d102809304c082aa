"""Does a big network learn at all? It has to learn four photographs by heart, from their masks, from random weights, on a CPU: python tests/overfit.py vgg16 resnet38

What is asked of it is little, and fails where a gradient, a rate, a label or a picture goes astray: the four are the COCO sample's clearest (`clearest` says by which rule),
they are shown as squares of 161 pixels, and the network's own predictions are scored on the masks at full size, with mIoU over the classes of these masks and background.
"""
from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from wsss_nb.classifier import judging
from wsss_nb.coco import coco
from wsss_nb.core import IGNORE, Batch, seed_everything
from wsss_nb.evaluation import confusion, mean_iou
from wsss_nb.inference import predict_probabilities
from wsss_nb.loop import fit
from wsss_nb.recipes import mask_loss
from wsss_nb.schedule import Training
from wsss_nb.segmenter import Segmenter, segmenter
from wsss_nb.tagged import TaggedImages, TrainingSet
from wsss_nb.training import Method, whole_view, wsss_step

SIZE, PICTURES, GOAL = 161, 4, .8


class Case(NamedTuple):
    """A network and how it is taught."""
    network: str
    head: str
    optimiser: str
    rate: float
    updates: int
    new: float = 1.   # times the rate: how fast the head learns


# The heads of dsrg/voc-vgg16 and cues/voc-res38. VGG16 without batch norm wants AdamW's equal steps. ResNet-38 wants SGD: under AdamW at 1e-4 its loss falls as fast (0.02 after
# 30 updates), but every step moves all layers so far that the batch norms' running statistics cannot follow, and what the network then says of the same pictures is worth 11 %. Its head reads
# 4096 channels at nine places and must go slower than its trunk: at .01 for both the loss stays at .47, and mIoU at 78 %. With these numbers, too, the score follows the loss late:
# half-way it is 16 % at a loss of .2, and it rises when the rate falls.
CASES = {"vgg16": Case("vgg16", "aspp", "adamw", 1e-4, 80), "resnet38": Case("resnet38", "largefov", "sgd", .05, 48, .2)}


def clearest(data: TaggedImages, n: int = PICTURES, least: float = .05, most: float = .6) -> TaggedImages:
    """The n pictures whose largest class covers most, each of another largest class; none covers more than `most`, or less than `least`."""
    found = []
    for i in range(len(data)):
        share = np.bincount(data.mask(i).ravel(), minlength=IGNORE + 1)[1:data.n_classes] / data.mask(i).size
        if share.any() and share.max() < most and share[share > 0].min() >= least:
            found.append((share.max(), 1 + share.argmax(), i))
    chosen: dict[int, int] = {}
    for _, c, i in sorted(found, reverse=True):
        chosen.setdefault(int(c), i)
    return data.subset(list(chosen.values())[:n])


def photographs(folder: str | Path) -> TaggedImages:
    """The clearest four of the COCO sample, with masks."""
    return clearest(coco(Path(folder, "coco_sample/images"), Path(folder, "coco_sample/instances_sample.json"), masks=True, only_tagged=True))


def score(network: Segmenter, data: TaggedImages, size: int = SIZE) -> float:
    """mIoU of what the network says of squares of `size` pixels, at the pictures' own sizes."""
    said = [predict_probabilities(network, data.image(i), sizes=(size,)).argmax(0).to(torch.uint8).cpu().numpy() for i in range(len(data))]
    return mean_iou(sum(confusion(label, data.mask(i), data.n_classes) for i, label in enumerate(said)))


def overfit(case: Case, data: TaggedImages, masks: Callable[[str], np.ndarray] | None = None, size: int = SIZE, every: int = 20, tell: Callable[[str], None] = print) -> tuple[float, float]:
    """Teach a network with random weights these pictures and nothing else; its mIoU before and after. Other masks than the pictures' own teach it something else."""
    seed_everything(0)
    network = segmenter(case.network, data.n_classes, case.head, "random").train()
    images, learn, start, done = TrainingSet(data, whole_view(network, "warp", size), masks or data.read_mask), wsss_step(network, Method(mask_loss)), time.perf_counter(), 0
    before = score(network, data, size)

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal done
        losses = learn(batch)
        if done % every == 0:
            with judging(network):
                tell(f"{case.network} {case.head}, {done:4} of {case.updates} updates: loss {float(losses['pixel'].detach()):.3f}, mIoU {100 * score(network, data, size):.1f} %, {time.perf_counter() - start:.0f} s")
        done += 1
        return losses

    settings = Training(iterations=case.updates, batch_size=len(data), learning_rate=case.rate, optimiser=case.optimiser, weight_decay=0., warm_up=case.updates // 10)
    fit(network, images, step, settings, device="cpu", groups=network.groups(new=case.new, bias=1., bias_decay=None))
    return before, score(network, data, size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=CASES, metavar="NETWORK", help=" or ".join(CASES))
    parser.add_argument("--data", default=os.environ.get("WSSS_NB_DATA"), help="the folder with coco_sample/; WSSS_NB_DATA where nothing is said")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--every", type=int, default=20, help="updates between two lines")
    asked = parser.parse_args()
    if not asked.data:
        parser.error("--data, or WSSS_NB_DATA: the folder with coco_sample/")
    data = photographs(asked.data)
    print("; ".join(f"{name}: {', '.join(c for c, there in zip(data.classes, tags) if there)}" for name, tags in zip(data.ids, data.tags)), flush=True)
    for name in asked.networks:
        case, start = CASES[name], time.perf_counter()
        case = case._replace(updates=asked.updates or case.updates, rate=asked.rate or case.rate)
        before, after = overfit(case, data, size=asked.size, every=asked.every, tell=lambda line: print(line, flush=True))
        print(f"{name} {case.head}: mIoU {100 * before:.1f} % before, {100 * after:.1f} % after {case.updates} updates and {(time.perf_counter() - start) / 60:.1f} minutes; {'learned' if after >= GOAL else 'NOT learned'}", flush=True)
