"""Two true updates of a preset on a CPU, at its paper's input size, with random weights: python tests/full_size.py dsrg/voc-vgg16 [--whole]

The pictures are noise and the weights random, so the losses mean nothing but that they are finite. What is true: networks, views, cues' size, supervision with its CRF,
growing or cut, losses, groups of parameters, rates. A batch is done picture by picture, as train.accumulate does it; of two pictures, or with --whole of as many as the paper's.
"""
from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from wsss_nb.backbones import backbone
from wsss_nb.centres import FEATURE_PRESETS, FeatureNetwork
from wsss_nb.centres import _step as feature_step
from wsss_nb.classifier import PRESETS as CLASSIFIERS
from wsss_nb.classifier import multilabel_loss
from wsss_nb.config import load_config
from wsss_nb.core import Batch, check, seed_everything
from wsss_nb.costs import rate_at
from wsss_nb.detection import PRESETS as DETECTORS
from wsss_nb.detection import detection_losses, detection_set, join_pictures
from wsss_nb.networks import trunk
from wsss_nb.opening import classifier_names, classifier_start, recipe_of
from wsss_nb.preset_table import CLASSES, learned_on, names
from wsss_nb.rcnn import mask_rcnn
from wsss_nb.recipes import mask_loss
from wsss_nb.schedule import Training, make_optimiser, make_plan, set_rate
from wsss_nb.segmenter import segmenter
from wsss_nb.tagged import Instances, TaggedImages, TrainingSet, collate, mask_boxes
from wsss_nb.training import Method, training_view, wsss_step

SIZES = [(500, 375), (375, 500), (640, 480), (500, 333)]


class Updates(NamedTuple):
    """What two updates of one training showed."""
    name: str
    losses: list[dict[str, float]]   # of each update
    unreached: list[str]             # trainable parameters without a gradient, or with one that is zero everywhere, in both updates
    trainable: int                   # parameters
    seconds: float
    gib: float                       # the process's largest memory so far


def noise(folder: Path, n: int, n_classes: int, single: bool = False) -> TaggedImages:
    """Pictures of true sizes that show nothing, with one to three tags."""
    rng, tags = np.random.default_rng(0), np.zeros((n, n_classes), bool)
    for i in range(n):
        w, h = SIZES[i % len(SIZES)]
        coarse = rng.integers(0, 256, (h // 25, w // 25, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((w, h), Image.BILINEAR).save(folder / f"{i}.png")
        tags[i, rng.choice(n_classes, 1 if single else rng.integers(1, 4), replace=False)] = True
    return TaggedImages(tuple(f"class{c}" for c in range(n_classes)), tuple(map(str, range(n))), tags, lambda name: folder / f"{name}.png")


def random_cues(data: TaggedImages, size: tuple[int, int], seeds: int) -> Callable[[str], np.ndarray]:
    """Label maps as cues are: patches of the tags' classes and of background, half of it unlabelled; several where the recipe learns from several."""
    def cues(name: str) -> np.ndarray:
        rng = np.random.default_rng(int(name) + 1)
        known = np.array([255, 255, 0, *(1 + np.flatnonzero(data.tags[int(name)]))])
        maps = [np.kron(known[rng.integers(0, len(known), (-(-size[0] // 8), -(-size[1] // 8)))], np.ones((8, 8), int))[:size[0], :size[1]] for _ in range(max(1, seeds))]
        return np.stack(maps).astype(np.uint8) if seeds > 1 else maps[0].astype(np.uint8)
    return cues


def updates_of(name: str, network: nn.Module, step: Callable[[object], dict[str, Tensor]], batches: list[list[object]], settings: Training, groups: list[dict] | None, images: int) -> Updates:
    """Two updates as the loop does them, each of several parts; which parameters moved."""
    start, losses, reached = time.perf_counter(), [], set()
    network.train()
    optimiser, plan = make_optimiser(network, settings, groups), make_plan(images, settings)
    for iteration, parts in enumerate(batches):
        optimiser.zero_grad(set_to_none=True)
        total: dict[str, float] = {}
        for part in parts:
            found = step(part)
            (sum(found.values()) / len(parts)).backward()
            total = {key: total.get(key, 0.) + float(value.detach()) / len(parts) for key, value in found.items()}
        reached |= {key for key, p in network.named_parameters() if p.grad is not None and bool((p.grad != 0).any()) and bool(p.grad.isfinite().all())}
        set_rate(optimiser, rate_at(settings, plan, iteration))
        optimiser.step()
        losses.append(total)
    wanted = {key: p.numel() for key, p in network.named_parameters() if p.requires_grad}
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**(20 if sys.platform == "linux" else 30)
    return Updates(name, losses, sorted(set(wanted) - reached), sum(wanted.values()), time.perf_counter() - start, gib)


def batches_of(data: TaggedImages, size: int, view: Callable, cues: Callable | None) -> list[list[Batch]]:
    """Two batches in parts of one picture; the second sees other views of the same pictures."""
    images = TrainingSet(data, view, cues)
    return [[collate([images[epoch, i]]) for i in range(len(data))] for epoch in range(2)]


def two_updates(preset: str, folder: Path,
                batch: int | None = 2,   # pictures; None: the paper's
                size: int | None = None, # of the views; None: the paper's
                ) -> Iterator[Updates]:
    """Every training of a preset: classifiers, segmenter, retraining; or features, or the detector."""
    check(preset in names(), f"there is no preset {preset}", ", ".join(names()), "choose one of these")
    seed_everything(0)
    images = learned_on(preset).train
    if preset in FEATURE_PRESETS:
        yield features(preset, folder, batch, size, images)
        return
    config, C = load_config(preset), CLASSES[learned_on(preset).name]
    seen = CLASSIFIERS[config.classify.preset]
    for name in classifier_names(config):
        data = noise(folder, batch or seen.training.batch_size, C)
        network = backbone(classifier_start(config, name)[0], C, "random")
        side = size or seen.size
        view = replace(seen, size=side).transform(network.mean, network.std)
        step = lambda part, network=network: {"loss": multilabel_loss(network(part.image), part.T)}
        yield updates_of(f"classify/{name}", network, step, batches_of(data, side, view, None), seen.training, network.groups(seen.new, seen.bias, seen.bias_decay), images)
        del network
    if preset in DETECTORS:
        yield detector(preset, folder, batch, C)
        return
    recipe = recipe_of(config)
    rounds = [("train", config.train, recipe.method)] + [("retrain", config.retrain, Method(mask_loss))] * bool(config.retrain.rounds)
    for name, settings, method in rounds:
        data = noise(folder, batch or settings.batch_size, C)
        network, side = segmenter(settings.network, 1 + C, settings.head, "random", settings.stride), size or settings.size
        view = training_view(network, settings.view, side, settings.low, settings.high, settings.mirror)
        cues = random_cues(data, config.cues.size or (375, 500), len(recipe.seeds) if name == "train" else 1)
        yield updates_of(name, network, wsss_step(network, method), batches_of(data, side, view, cues), settings, network.groups(settings.new, settings.bias, settings.bias_decay), images)
        del network


def features(preset: str, folder: Path, batch: int | None, size: int | None, images: int) -> Updates:
    """Salient instances' features: cross-entropy and centre loss."""
    made = FEATURE_PRESETS[preset]
    data = noise(folder, batch or made.training.batch_size, 1000, single=True)
    network = FeatureNetwork(trunk(made.backbone, made.stride), data.classes, made.backbone)
    view = replace(made, size=size or made.size).transform(network)
    return updates_of("features", network, lambda part: feature_step(network, made, part), batches_of(data, made.size, view, None), made.training, None, images)


def detector(preset: str, folder: Path, batch: int | None, C: int) -> Updates:
    """Mask R-CNN on rectangles, on pictures of 800 pixels."""
    made = DETECTORS[preset]
    data, network = noise(folder, batch or made.training.batch_size, C), mask_rcnn("resnet50", C)
    def rectangles(name: str) -> Instances:
        h, w = data.image(int(name)).shape[:2]
        masks = np.zeros((2, h, w), bool)
        masks[0, h // 8:h // 2, w // 8:w // 2], masks[1, h // 2:, w // 3:] = True, True
        return Instances(masks, mask_boxes(masks), np.array([1, 2 + int(name) % (C - 1)]))
    pictures = detection_set(data, rectangles, network, made)
    batches = [[join_pictures([pictures[epoch, i]], network.transform.size_divisible) for i in range(len(data))] for epoch in range(2)]
    return updates_of("detect", network, lambda part: detection_losses(network, part), batches, made.training, None, learned_on(preset).train)


def told(preset: str, found: Updates) -> str:
    """One training in a line or two."""
    losses = "; then ".join(", ".join(f"{key} {value:.4g}" for key, value in update.items()) for update in found.losses)
    reached = "all reached by gradients" if not found.unreached else f"NOT reached: {', '.join(found.unreached)}"
    return f"{preset} {found.name} (random weights): {losses}\n    {found.trainable:,} trainable parameters, {reached}; {found.seconds:.0f} s, at most {found.gib:.1f} GiB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+", choices=[*names(), "all"], metavar="PRESET")
    parser.add_argument("--whole", action="store_true", help="as many pictures as the paper's batch")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, help="of the views; the paper's where nothing is said")
    asked = parser.parse_args()
    for preset in names() if "all" in asked.presets else asked.presets:
        with tempfile.TemporaryDirectory() as folder:
            for found in two_updates(preset, Path(folder), None if asked.whole else asked.batch, asked.size):
                print(told(preset, found), flush=True)
