"""A network of timm in the place of the papers': classifier and segmenter of every recipe, from tags to a scored page; and the one preset that has it."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_toy import tiny

from wsss_nb.classifier import PRESETS as CLASSIFIERS
from wsss_nb.classifier import Preset
from wsss_nb.files import read_labels
from wsss_nb.opening import classifier_names, classifier_start, recipe_of
from wsss_nb.pretraining import load_classifier, save_classifier
from wsss_nb.recipes import RECIPES, mask_loss
from wsss_nb.schedule import Training
from wsss_nb.segmenter import load_segmenter, segmenter
from wsss_nb.stages import classify, prepare, run_all
from wsss_nb.stored import read_seeds
from wsss_nb.tagged import TrainingSet, collate
from wsss_nb.training import Method, training_view, whole_view, wsss_step
from wsss_nb.voc import voc_folder

pytest.importorskip("timm", reason="timm is not installed (pip install 'wsss_nb[modern]')")
torch.set_num_threads(1)
TINY = "timm:test_efficientnet"   # timm's own for tests: 82,300 numbers
MODERN = (f"classify.network={TINY}", "classify.preset=brief", "classify.weights=random", f"train.network={TINY}", "train.stride=8", "retrain.rounds=0", "cues.size=[8, 8]", "predict.crf=false", "device=cpu")
MORE = {"dgcn": ("options.layers=trunk.timm.network.blocks.2,trunk.timm",), "wst": ("classify.second=timm:test_resnet", "options.scales=[1.0]"), "salient": ("instances.source=saliency", "cues.size=none")}


@pytest.fixture(scope="module")
def fewer(few, tmp_path_factory):
    """Eight pictures to learn from and two to be scored on."""
    folder = Path(shutil.copytree(few, tmp_path_factory.mktemp("data") / "fewer"))
    for split, n in (("train", 8), ("val", 2)):
        path = folder / f"ImageSets/Segmentation/{split}.txt"
        path.write_text("\n".join(path.read_text().split()[:n]) + "\n")
    return folder


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("baseline", "balanced")])   # these two ask of a network what sec and dsrg ask
def test_every_recipe_takes_it(name, fewer, tmp_path, monkeypatch):
    """Classifiers and segmenter are timm's, and every file of the run is there; what was saved is read again as the same network."""
    monkeypatch.setitem(CLASSIFIERS, "brief", Preset(Training(epochs=1, batch_size=8), size=64))
    start = () if name == "cues" else ("train.weights=random",)          # that one goes on from its classifier
    config, run, data = tiny(fewer, f"{name}/toy", *MODERN, *start, *MORE.get(name, ())), tmp_path / "run", voc_folder(fewer, "val", masks=True)
    prepare(config, run)
    classify(config, run)
    for kind in classifier_names(config):
        found, called = load_classifier(run / f"classify/{kind}/classifier.pt"), classifier_start(config, kind)[0]
        assert (found.stride, found.classes, [key for key, _ in found.trunk.named_children()][-1]) == (32, data.classes, "timm")
        found.linear.weight.data.abs_()                                  # after a training of seconds its maps would be dark, and no pixel would get a class
        save_classifier(run / f"classify/{kind}/classifier.pt", found, called)
    run_all(config, run)
    network = load_segmenter(run / "train/segmenter.pt", data.classes)
    assert network.stride == (32 if name == "cues" else 8)
    stored = read_seeds(next((run / "cues").glob("*.npz")), data.classes)
    assert len(stored.S) == (len(recipe_of(config).seeds) or 1)
    for i, image_id in enumerate(data.ids):
        assert read_labels(run / f"predict/val/{image_id}.png", data.n_classes).shape == data.mask(i).shape
    rows = [json.loads(line) for line in (run / "train/log.jsonl").read_text().splitlines()]
    assert rows and all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert (run / "report/index.html").stat().st_size > 0


def test_patches_are_whole(few):
    """ConvNeXt drops what fills no patch: 63 of 65 pixels' last two. A segmenter on it answers for them too, with a gradient, at every size that a view or a picture has; where no pixel is over, nothing changes."""
    torch.manual_seed(0)
    network, data = segmenter("timm:test_convnext", 7, "linear", "random", 8).eval(), voc_folder(few, "train", masks=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        alone = network.head(network.trunk(image))
        assert torch.equal(network(image), alone) and alone.shape[2:] == (8, 12) and not network.patches
        odd = torch.randn(1, 3, 65, 97)
        assert network.trunk(odd).shape[2:] == (8, 12) and network(odd).shape[2:] == (9, 13) and network.patches
        filled = torch.zeros(1, 3, 72, 104)
        filled[:, :, :65, :97] = odd
        assert torch.equal(network(odd), network.head(network.trunk(filled))) and torch.equal(network(image), alone)
    network.train()
    for view in (training_view(network, "crop", 65), training_view(network, "warp", 61), whole_view(network)):
        batch = collate([TrainingSet(data, view, data.read_mask)[0, 0]])
        assert wsss_step(network, Method(mask_loss))(batch)["pixel"].isfinite()
    edge = torch.zeros(1, 3, 65, 65, requires_grad=True)
    network(edge)[0, :, -1, -1].sum().backward()
    assert edge.grad[0, :, -1, -1].any()


def test_the_papers_networks_are_never_filled_up():
    """They look past the edge: nothing is added to any picture."""
    for name in ("small", "timm:test_efficientnet", "timm:test_resnet"):
        network = segmenter(name, 3, "linear", "random").eval()
        with torch.no_grad():
            assert all(network(torch.randn(1, 3, side, side)).shape[-1] == -(-side // network.stride) for side in (64, 65, 95, 97)) and not network.patches
