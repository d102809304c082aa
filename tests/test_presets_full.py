"""Every preset at the size of its paper: counts of pictures and updates, learning rates, parameters, geometry and names, each worked out here by other arithmetic."""
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.centres import FEATURE_PRESETS
from wsss_nb.config import as_dict, load_config
from wsss_nb.costs import Work, count_parameters, curve, hours, multiply_adds, network_cost, rate_at, sampled, sparkline, told_work
from wsss_nb.detection import PRESETS as DETECTORS
from wsss_nb.memory import memory
from wsss_nb.networks import geometry, trunk
from wsss_nb.opening import check_layers, check_recipe, describe, needs_of, open_data, trainings
from wsss_nb.preset_table import CLASSES, detector_cost, learned_on, names, preset_row, preset_table, works_of
from wsss_nb.presets import COCO, LITE, NEEDS, PRESETS, RESULTS, VOC, data_set, reported
from wsss_nb.recipes import RECIPES
from wsss_nb.schedule import Training, make_plan
from wsss_nb.segmenter import segmenter
from wsss_nb.settings import flatten

MODERN = ("dsrg/voc-efficientnet-lite0", "ours/photo")   # their network is timm's, which the extra `modern` brings
FULL = [name for name in PRESETS if not name.endswith("/toy")]
WANTED = """dsrg/voc-vgg16 dsrg/voc-resnet101 dsrg/coco-vgg16 cues/voc-res38 cues/voc-res50 salient/voc-vgg16 salient/voc-resnet101 salient/voc+si-vgg16 salient/voc+si-resnet101
    salient/features-imagenet salient/coco-maskrcnn dgcn/voc-resnet101 dgcn/voc-res38 dgcn/coco-vgg16 wst/voc-vgg16 wst/voc-resnet101 sec/voc-vgg16""".split()


# ---- folders of the true shape ------------------------------------------------------------------------------------------------

def pictures(folder: Path, stems: list[str], sizes: list[tuple[int, int]]) -> None:
    """A grey JPEG of each size, and a link to one of them for each id."""
    folder.mkdir(parents=True)
    for k, (w, h) in enumerate(sizes):
        Image.new("L", (w, h), 127).save(folder.parent / f"{folder.name}-{k}.jpg")
    for k, stem in enumerate(stems):
        (folder / f"{stem}.jpg").hardlink_to(folder.parent / f"{folder.name}-{k % len(sizes)}.jpg")


@pytest.fixture(scope="session")
def voc_shaped(data_folder, tmp_path_factory) -> Path:
    """VOC 2012 with the true lists and tags, and pictures of its usual sizes that show nothing."""
    root, lists = tmp_path_factory.mktemp("voc") / "VOC2012", {name: (data_folder / f"voc12/{name}.txt").read_text() for name in ("train_aug", "val", "train")}
    pictures(root / "JPEGImages", sorted({i for name in ("train_aug", "val") for i in lists[name].split()}), [(500, 375), (375, 500), (500, 333), (333, 500), (500, 334)])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, text in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text(text)
    (root / "image_labels.txt").write_text((data_folder / "voc12/image_labels.txt").read_text())
    return root


@pytest.fixture(scope="session")
def coco_shaped(data_folder, tmp_path_factory) -> Path:
    """COCO 2014 with the true lists and tags, 702 and 367 pictures without a tag beside them, boxes and no outlines."""
    root = tmp_path_factory.mktemp("coco") / "COCO"
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1 + c, "name": f"class {c}"} for c in range(80)]
    for name, empty in (("train", 702), ("val", 367)):
        with gzip.open(data_folder / f"coco14/{name}.txt.gz", "rt") as file:
            rows = [line.split() for line in file] + [[f"COCO_{name}2014_none{k}"] for k in range(empty)]
        pictures(root / f"{name}2014", [row[0] for row in rows], [(640, 480), (480, 640), (640, 427), (427, 640), (500, 375)])
        images = [{"id": k, "file_name": f"{row[0]}.jpg"} for k, row in enumerate(rows)]
        objects = [{"id": k, "image_id": i, "category_id": 1 + int(c), "bbox": [1, 1, 2, 2]} for k, (i, c) in enumerate((i, c) for i, row in enumerate(rows) for c in row[1:])]
        (root / f"annotations/instances_{name}2014.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    pictures(root / "test2015", ["t1", "t2"], [(640, 480)])
    (root / "annotations/image_info_test-dev2015.json").write_text(json.dumps({"images": [{"id": k, "file_name": f"t{k}.jpg"} for k in (1, 2)], "categories": categories}))
    return root


# by hand: (batch, images) -> updates; 10,582 = 529·20 + 2 = 661·16 + 6; 82,081 = 5,130·16 + 1
UPDATES = {"sec/voc-vgg16": {"train": 8000}, "dsrg/voc-vgg16": {"classify/colour": 8000, "train": 8000, "retrain/1": 20_000}, "dsrg/voc-resnet101": {"train": 8000, "retrain/1": 20_000},
           "dsrg/coco-vgg16": {"train": 8000, "retrain/1": 20_000}, "dsrg/voc-efficientnet-lite0": {"classify/colour": 8000, "train": 8000, "retrain/1": 20_000}, "cues/voc-res50": {"classify/colour": 20 * 661, "classify/grey": 13_220, "train": 20_000},
           "cues/voc-res38": {"classify/grey": 13_220, "train": 20_000}, "dgcn/voc-resnet101": {"train": 4627, "retrain/1": 20_000}, "dgcn/voc-res38": {"train": 4627},
           "dgcn/coco-vgg16": {"train": 35_910, "classify/colour": 8000}, "wst/voc-vgg16": {"classify/second": 13_220, "train": 20_000}, "wst/voc-resnet101": {"train": 20_000},
           "wst/voc-resnet38-vgg16": {"train": 20_000}, "salient/voc-vgg16": {"classify/colour": 13_220, "train": 30_000}, "salient/voc-resnet101": {"train": 30_000},
           "salient/voc+si-vgg16": {"train": 30_000}, "salient/voc+si-resnet101": {"train": 30_000}, "salient/coco-maskrcnn": {"classify/colour": 20 * (122_218 // 16)},
           "baseline/voc-vgg16": {"train": 8000}, "balanced/voc-vgg16": {"train": 8000},
           "ours/photo": {"classify/colour": 40 * (10_582 // 8), "train": 40 * 1322}, "ours/voc-resnet101": {"classify/colour": 13_220, "train": 20_000}}
SIDES = {"ours/photo": "224×224"}


def test_every_row_of_the_papers_is_a_preset():
    """The list of the issue, each with a row of numbers, a method, and a place in the table."""
    assert set(WANTED) <= set(names()) == {*FULL, "salient/features-imagenet"} and set(FULL) == set(RESULTS) and set(UPDATES) == set(FULL)
    assert {name.split("/")[0] for name in FULL} == set(RECIPES) and set(NEEDS) <= set(PRESETS)


@pytest.mark.parametrize("name", FULL)
def test_a_dry_run_of_every_preset(name, request):
    """10,582 and 1,449, or 82,081 and 40,137 pictures; updates as counted by hand; parameters, memory and the curve in words; nothing is written."""
    if name in MODERN:
        pytest.importorskip("timm")
    root = request.getfixturevalue("coco_shaped" if "/coco-" in name else "voc_shaped")
    config = load_config(name, root)
    told = describe(config, root / "nowhere")
    train, val = (82_081, 40_137) if "/coco-" in name else (10_582, 1_449)
    train, val = (train + val, 2) if name == "salient/coco-maskrcnn" else (train, val)
    assert f"{train} for training, {val} for validation" in told and not (root / "nowhere").exists() and "nothing yet" in told
    works = trainings(config, 81 if "/coco-" in name else 21)
    for key, updates in UPDATES[name].items():
        line = next(line for line in told.splitlines() if line.startswith(f"  {key} "))
        assert f" {updates:,} updates of {works[key].settings.batch_size} views of {SIDES.get(name, '321×321')}" in line and make_plan(train, works[key].settings).iterations == updates
        parameters = network_cost(works[key].network, works[key].n_classes, works[key].size, 1, works[key].head).parameters
        assert f"{parameters:,} parameters" in line
    assert set(re.findall("[▁-█]{48}", told)) and f"about {max(memory_of(work) for work in works.values()) / 2**30:.1f} GiB" in told
    assert ("needs     data.simple" in told) == ("+si" in name) == bool(needs_of(config))


def memory_of(work: Work) -> int:
    """Of the network itself, built here."""
    return network_cost(work.network, work.n_classes, work.size, work.settings.batch_size, work.head, work.stride).memory


def test_both_lists_of_coco(coco_shaped, data_folder):
    """82,783 and 40,504 with the pictures that have no tag; the tags are the list's own."""
    every = load_config("dsrg/coco-vgg16", coco_shaped, overrides=["data.tagged=false"])
    told = describe(every, "runs/x")
    assert "82783 for training, 40504 for validation" in told and "train2014: all 82,783 pictures, 702 of them without a tag; val2014: all 40,504 pictures, 367 of them without a tag" in told
    assert "train2014: 82,081 of 82,783 pictures, those with a tag" in describe(load_config("dsrg/coco-vgg16", coco_shaped), "runs/x")
    with gzip.open(data_folder / "coco14/train.txt.gz", "rt") as file:
        rows = [line.split() for line in file]
    data = open_data(load_config("dsrg/coco-vgg16", coco_shaped), "train", masks=True)
    assert data.read_mask is None and data.ids == tuple(row[0] for row in rows)
    assert data.tags.sum() == sum(len(set(row[1:])) for row in rows) and [np.flatnonzero(data.tags[k]).tolist() for k in (0, 9, 82_080)] == [sorted({int(c) for c in rows[k][1:]}) for k in (0, 9, 82_080)]


def test_without_what_it_needs_a_preset_does_not_begin(voc_shaped):
    """Refused before anything is trained; named, with what it must be."""
    config = load_config("salient/voc+si-vgg16", voc_shaped)
    data = open_data(config, "train")
    with pytest.raises(Exception, match=r"salient/voc\+si-vgg16 needs data.simple.*a folder of folders.*--set data.simple=…"):
        check_recipe(config, data)
    check_recipe(load_config("salient/voc-vgg16", voc_shaped), data)


# ---- learning rates -----------------------------------------------------------------------------------------------------------

# preset, training, pictures; learning rate at the first update, at some others, and at the last, by formula
RATES = [("sec/voc-vgg16", "train", 10_582, {0: 1e-3, 1999: 1e-3, 2000: 1e-4, 4000: 1e-5, 7999: 1e-6}),
         ("dsrg/voc-vgg16", "train", 10_582, {0: 5e-4, 999: 5e-4, 1000: 5e-4 * .33, 4000: 5e-4 * .33**4, 7999: 5e-4 * .33**7}),
         ("dsrg/voc-resnet101", "retrain/1", 10_582, {0: 1e-3, 10_000: 1e-3 * .5**.9, 19_999: 1e-3 * (1 / 20_000)**.9}),
         ("dsrg/voc-vgg16", "classify/colour", 10_582, {0: 5e-4, 4000: 5e-6, 7999: 5e-7}),
         ("wst/voc-resnet101", "classify/second", 10_582, {0: 1e-3, 660: 1e-3, 661: 1e-3 * .95**.9, 6610: 1e-3 * .5**.9, 13_219: 1e-3 * .05**.9}),
         ("wst/voc-vgg16", "train", 10_582, {0: 1e-3, 5000: 1e-3 * .75**.9}),
         ("dgcn/voc-res38", "train", 10_582, {0: 5e-4 / 200, 99: 2.5e-4, 199: 5e-4, 1982: 5e-4, 1983: 1.5e-4, 3966: 4.5e-5, 4626: 4.5e-5}),
         ("dgcn/coco-vgg16", "train", 82_081, {3 * 5130 - 1: 5e-4, 3 * 5130: 1.5e-4, 35_909: 4.5e-5}),
         ("salient/voc-resnet101", "train", 10_582, {0: 2.5e-4, 19_999: 2.5e-4, 20_000: 2.5e-5, 29_999: 2.5e-5})]


@pytest.mark.parametrize("name, key, images, wanted", RATES)
def test_learning_rates_by_formula(name, key, images, wanted):
    """At the start, in the middle and at the end; the curve begins and ends with them."""
    settings = works_of(name)[key].settings
    plan = make_plan(images, settings)
    assert {i: rate_at(settings, plan, i) for i in wanted} == pytest.approx(wanted)
    drawn = curve(settings, plan, 5)
    assert len(drawn) == 5 and drawn[0] == rate_at(settings, plan, 0) and drawn[-1] == rate_at(settings, plan, plan.iterations - 1) and drawn[2] == rate_at(settings, plan, round((plan.iterations - 1) / 2))


def test_other_numbers_of_the_papers():
    """Batch, momentum, decay, dropout, views, scales, thresholds: what the design says they are."""
    sec, dsrg, dgcn, wst, salient, cues = (load_config(f"{name}") for name in ("sec/voc-vgg16", "dsrg/voc-vgg16", "dgcn/voc-resnet101", "wst/voc-resnet101", "salient/voc-vgg16", "cues/voc-res38"))
    assert (sec.train.batch_size, sec.train.head, sec.train.mirror, sec.train.view, sec.retrain.rounds) == (15, "largefov", False, "warp", 0)
    assert (dsrg.train.batch_size, dsrg.train.view, dsrg.retrain.view, dsrg.retrain.batch_size, dsrg.predict.scales, dsrg.train.bias, dsrg.train.new) == (20, "warp", "crop", 10, (.75, 1., 1.25), 2., 10.)
    assert all((c.train.momentum, c.train.weight_decay, c.train.bias_decay, c.train.size) == (.9, 5e-4, 0., 321) for c in (sec, dsrg, dgcn, wst, salient, cues))
    assert (dgcn.train.batch_size, dgcn.train.epochs, dgcn.train.warm_up, dgcn.options) == (16, 7, 200, {"layers": ("trunk.layer1", "trunk.layer3")})
    assert (wst.train.batch_size, wst.train.view, wst.classify.preset, wst.retrain.rounds) == (10, "crop", "wst", 0) and load_config("wst/voc-vgg16").train.network == "vgg16"
    assert (salient.train.batch_size, salient.cues.size, salient.instances.size) == (10, None, 224)
    assert (cues.classify.network, cues.train.network, cues.train.weights, cues.predict.amend, cues.predict.variants) == ("resnet38", "resnet38", "classifier", 0., ("tags",))
    mask = DETECTORS[load_config("salient/coco-maskrcnn").detect.preset].training
    assert (mask.iterations, mask.batch_size, mask.learning_rate, mask.weight_decay) == (90_000, 16, .02, 1e-4) and FEATURE_PRESETS["salient/features-imagenet"].centre == 1e-3


# ---- parameters, by hand ------------------------------------------------------------------------------------------------------

VGG = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]


def vgg_trunk() -> int:
    """Thirteen 3×3 convolutions with biases."""
    return sum(9 * a * b + b for a, b in VGG)


def fc(n: int) -> int:
    """fc6 3×3 512→1024, fc7 1×1 1024→1024, fc8 1×1 1024→n."""
    return 9 * 512 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * n + n


def resnet(blocks: list[int]) -> int:
    """7×7 stem; bottlenecks w, w, 4w with batch norms; a projection at the head of each stage."""
    total, inside = 49 * 3 * 64 + 2 * 64, 64
    for width, n in zip((64, 128, 256, 512), blocks):
        for k in range(n):
            total += inside * width + 9 * width * width + width * 4 * width + 2 * (width + width + 4 * width)
            total += (inside * 4 * width + 2 * 4 * width) if k == 0 else 0
            inside = 4 * width
    return total


def resnet38() -> int:
    """From the table of the facts: pre-activation blocks, batch norm before each convolution, 1×1 shortcut where the width changes or the stride is 2."""
    total, inside = 9 * 3 * 64, 64
    for mid, out, n in ((128, 128, 3), (256, 256, 3), (512, 512, 6), (512, 1024, 3)):
        for k in range(n):
            total += 2 * inside + 9 * inside * mid + 2 * mid + 9 * mid * out + (inside * out if k == 0 else 0)
            inside = out
    for mid, wide, out in ((512, 1024, 2048), (1024, 2048, 4096)):
        total += 2 * inside + inside * mid + 2 * mid + 9 * mid * wide + 2 * wide + wide * out + inside * out
        inside = out
    return total + 2 * 4096


def efficientnet_lite0() -> int:
    """From the table of the paper, without squeeze-and-excitation: 1×1 to e times the channels, k×k on each channel alone, 1×1 back, each with a batch norm; the stem has 32 channels."""
    total, inside = 9 * 3 * 32 + 2 * 32, 32
    for k, e, out, n in ((3, 1, 16, 1), (3, 6, 24, 2), (5, 6, 40, 2), (3, 6, 80, 3), (5, 6, 112, 3), (5, 6, 192, 4), (3, 6, 320, 1)):
        for _ in range(n):
            wide = e * inside
            total += (inside * wide + 2 * wide if e > 1 else 0) + k * k * wide + 2 * wide + wide * out + 2 * out
            inside = out
    return total


@pytest.mark.parametrize("name, head, n, wanted", [
    ("vgg16", "largefov", 21, vgg_trunk() + fc(21)), ("vgg16", "aspp", 21, vgg_trunk() + 4 * fc(21)), ("vgg16", "aspp", 81, vgg_trunk() + 4 * fc(81)),
    ("resnet50", "largefov", 21, resnet([3, 4, 6, 3]) + 9 * 2048 * 21 + 21), ("resnet101", "aspp", 21, resnet([3, 4, 23, 3]) + 4 * (9 * 2048 * 21 + 21)),
    ("resnet50", "aspp", 21, resnet([3, 4, 6, 3]) + 4 * (9 * 2048 * 21 + 21)), ("resnet38", "largefov", 21, resnet38() + 9 * 4096 * 21 + 21),
    ("vgg16", None, 20, vgg_trunk() + (9 * 512 * 1024 + 1024) + (9 * 1024 * 1024 + 1024) + 1024 * 20 + 20),
    ("resnet50", None, 20, resnet([3, 4, 6, 3]) + 2048 * 20 + 20), ("resnet38", None, 20, resnet38() + 4096 * 20),
    (LITE, "aspp", 21, efficientnet_lite0() + 4 * (9 * 320 * 640 + 640 + 640 * 640 + 640 + 640 * 21 + 21)), (LITE, None, 20, efficientnet_lite0() + 320 * 20 + 20)])
def test_parameters_by_hand(name, head, n, wanted):
    """From tables of layers, by another arithmetic than the networks'."""
    if name == LITE:
        pytest.importorskip("timm")
    assert network_cost(name, n, 65, 1, head).parameters == wanted


def test_numbers_that_others_print():
    """torchvision's 25,557,032 of ResNet-50 and 44,549,160 of ResNet-101, ends included; VGG16's 14,714,688 convolutions; 4,652,008 of EfficientNet-Lite0."""
    assert efficientnet_lite0() + 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000 == 4_652_008
    assert resnet([3, 4, 6, 3]) + 2048 * 1000 + 1000 == 25_557_032 and resnet([3, 4, 23, 3]) + 2048 * 1000 + 1000 == 44_549_160 and vgg_trunk() == 14_714_688


# ---- geometry and names -------------------------------------------------------------------------------------------------------

# VGG16-LargeFOV: (layer, kernel, stride, dilation); a cell's field grows by (kernel - 1)·dilation·step so far
LARGEFOV = [("conv1_1", 3, 1, 1), ("conv1_2", 3, 1, 1), ("pool1", 3, 2, 1), ("conv2_1", 3, 1, 1), ("conv2_2", 3, 1, 1), ("pool2", 3, 2, 1),
            ("conv3_1", 3, 1, 1), ("conv3_2", 3, 1, 1), ("conv3_3", 3, 1, 1), ("pool3", 3, 2, 1), ("conv4_1", 3, 1, 1), ("conv4_2", 3, 1, 1), ("conv4_3", 3, 1, 1), ("pool4", 3, 1, 1),
            ("conv5_1", 3, 1, 2), ("conv5_2", 3, 1, 2), ("conv5_3", 3, 1, 2), ("pool5", 3, 1, 1), ("pool5a", 3, 1, 1)]


def fields(layers: list[tuple[str, int, int, int]]) -> list[tuple[str, int, int]]:
    """Name, step and field after each layer."""
    found, step, field = [], 1, 1
    for name, kernel, stride, dilation in layers:
        field, step = field + (kernel - 1) * dilation * step, step * stride
        found.append((name, step, field))
    return found


def test_largefov_by_hand():
    """Names, steps and fields of VGG16's layers; 243 pixels of trunk with SEC's pools; fc6 with rate 12 looks 192 pixels further."""
    assert [(layer.name, layer.stride, layer.field) for layer in geometry(trunk("vgg16"))] == fields(LARGEFOV)
    assert fields(LARGEFOV)[-1] == ("pool5a", 8, 1 + 4 + 2 + 8 + 4 + 24 + 8 + 48 + 16 + 96 + 16 + 16)
    with torch.device("meta"):
        head = segmenter("vgg16", 21, "largefov", "random").head
    assert [name for name, _ in head.named_children()] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"] and head.fc6.dilation == (12, 12)
    assert fields([*LARGEFOV, ("fc6", 3, 1, 12)])[-1][2] == fields(LARGEFOV)[-1][2] + 2 * 12 * 8


@pytest.mark.parametrize("name, head, rates", [("vgg16", "aspp", (6, 12, 18, 24)), ("resnet101", "aspp", (6, 12, 18, 24)), ("resnet50", "largefov", (12,)), ("resnet38", "largefov", (12,)), ("vgg16", "largefov", (12,))])
def test_output_stride_and_rates(name, head, rates):
    """321 pixels become 41 cells of 8 pixels; the branches look as far as DeepLab's."""
    with torch.device("meta"):
        network = segmenter(name, 21, head, "random")
        answer = network.eval()(torch.empty(1, 3, 321, 321))
    assert answer.shape == (1, 21, 41, 41) and network.stride == 8 and network.rates == rates
    dilated = [m.dilation[0] for key, m in network.head.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert dilated == list(rates)


def test_names_of_layers():
    """The layers that presets name exist and hand over the first and third stage: 4 and 8 pixels a cell of the ResNets."""
    for name in FULL:
        check_layers(load_config(name))
    for name, shapes in {"dgcn/voc-resnet101": [(256, 17), (1024, 9)], "dgcn/voc-res38": [(128, 33), (512, 9)], "dgcn/coco-vgg16": [(64, 33), (256, 9)]}.items():
        config = load_config(name)
        with torch.device("meta"):
            network = segmenter(config.train.network, 21, config.train.head, "random")
            found = network.eval().taps(torch.empty(1, 3, 65, 65), config.options["layers"])
        assert [found[layer].shape[1:3] for layer in config.options["layers"]] == [torch.Size(shape) for shape in shapes]
    with torch.device("meta"):
        made = {name: [key for key, _ in trunk(name).named_children()] for name in ("resnet101", "resnet38")}
    assert made["resnet101"] == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    blocks = [f"b{stage}" + (f"_{k}" if k else "") for stage, n in ((2, 3), (3, 3), (4, 6), (5, 3)) for k in range(n)]
    assert made["resnet38"] == ["conv1a", *blocks, "b6", "b7", "bn7", "relu7"]


# ---- costs --------------------------------------------------------------------------------------------------------------------

def test_multiply_adds_by_hand():
    """VGG16-LargeFOV at 321: every convolution's weights times its places."""
    places = [321**2] * 2 + [161**2] * 2 + [81**2] * 3 + [41**2] * 6
    wanted = sum(9 * a * b * p for (a, b), p in zip(VGG, places)) + 41**2 * (9 * 512 * 1024 + 1024 * 1024 + 1024 * 21)
    with torch.device("meta"):
        network = segmenter("vgg16", 21, "largefov", "random").train()
    assert multiply_adds(network, 321) == wanted and network.training and count_parameters(network) == vgg_trunk() + fc(21)
    cost = network_cost("vgg16", 21, 321, 15, "largefov")
    assert cost.work == 3 * 15 * wanted and cost.memory == memory(network, 321, 15)
    assert network_cost("vgg16", 21, 321, 15, "largefov", accumulate=3).memory == memory(network, 321, 5) and network_cost("vgg16", 21, 321, 15, "largefov", moments=2).memory > cost.memory
    assert hours(cost.work, 8000) == pytest.approx(45 * wanted * 8000 / 5e12 / 3600)


def test_lines_of_text():
    """Eight heights, the largest the highest; a batch that is too large is said, not raised."""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇██" and sparkline([0, 0]) == "▁▁" and sparkline([]) == ""
    plan = make_plan(10, Training(iterations=7, batch_size=5))
    assert sampled(plan, 3) == [0, 3, 6] and sampled(plan, 100) == list(range(7)) and sampled(make_plan(5, Training(iterations=1, batch_size=5)), 4) == [0]
    assert told_work("train", Work("small", Training(), 64, 3, "linear"), 15) == [f"{'train':17}small linear: {network_cost('small', 3, 64, 16, 'linear').parameters:,} parameters, but 15 pictures make no batch of 16: set a smaller batch size"]


# ---- the table ----------------------------------------------------------------------------------------------------------------

def test_numbers_of_the_papers():
    """Those that could be checked; a dash for the others; full supervision beside them."""
    assert (RESULTS["sec/voc-vgg16"].val, RESULTS["sec/voc-vgg16"].test) == (50.7, 51.7) and (RESULTS["dsrg/voc-resnet101"].val, RESULTS["dsrg/voc-resnet101"].test) == (61.4, 63.2)
    assert RESULTS["dsrg/coco-vgg16"].val == 26.0 and (VOC.full.val, VOC.full.test, COCO.full.val, COCO.full.test) == (67.6, 70.3, 40.98, None)
    assert all(result.source for result in RESULTS.values() if (result.val, result.test) != (None, None))
    assert reported("dsrg/voc-vgg16", "dsrg") == {"val.train": 57.6, "val": 59.0} and reported("wst/voc-vgg16", "wst") == {} and reported("dsrg/toy", "dsrg") == {"val.train": 57.6, "val": 59.0}
    assert [data_set(name).name for name in ("dsrg/coco-vgg16", "dsrg/voc-vgg16")] == ["COCO 2014", "PASCAL VOC 2012"] and CLASSES == {"PASCAL VOC 2012": 20, "COCO 2014": 80}


def test_the_table_has_a_row_for_each_preset():
    """Memory of the most hungry training and hours of all, as counted one by one."""
    rows = {name: preset_row(name) for name in ("dsrg/voc-vgg16", "salient/coco-maskrcnn", "salient/features-imagenet")}
    text = preset_table(rows.values())
    assert [line.split()[0] for line in text.splitlines() if "/" in line.split(" ")[0]] == list(rows) and "assumed 5e+12" in text
    costs = [network_cost("vgg16", 20, 321, 20), network_cost("vgg16", 21, 321, 20, "aspp"), network_cost("vgg16", 21, 321, 10, "aspp")]
    row = rows["dsrg/voc-vgg16"]
    assert row.memory == max(cost.memory for cost in costs) and row.hours == pytest.approx(sum(hours(cost.work, n) for cost, n in zip(costs, (8000, 8000, 20_000))))
    line = next(line for line in text.splitlines() if line.startswith("dsrg/voc-vgg16"))
    assert line.split()[1:] == ["59.0", "–", "67.6", "70.3", f"{row.memory / 2**30:.1f}", f"{row.hours:.1f}"]
    assert learned_on("salient/coco-maskrcnn").train == 122_218 and rows["salient/coco-maskrcnn"].trained["detect"][1] == 90_000 and set(rows["salient/coco-maskrcnn"].trained) == {"classify/colour", "detect"}
    assert rows["salient/features-imagenet"].trained["features"] == (25_557_032, 90 * 5004)


def test_without_timm_the_table_is_printed_all_the_same(monkeypatch):
    """Two dashes for the one row that cannot be counted, and what to install; every other row as before."""
    monkeypatch.setattr("wsss_nb.preset_table.find_spec", lambda name: None)
    row, other = preset_row(MODERN[0]), preset_row("sec/voc-vgg16")
    assert (row.memory, row.hours, row.trained) == (None, None, {}) and other.memory > 2**30
    text = preset_table([row, other])
    assert text.splitlines()[2].split() == [MODERN[0], "–", "–", "67.6", "70.3", "–", "–"] and "pip install 'wsss_nb[modern]'" in text
    assert "modern" not in preset_table([other]) and text.splitlines()[3] == preset_table([other]).splitlines()[2]


def test_the_row_without_a_paper():
    """Nothing to compare with, and told so; DSRG's numbers on another trunk, whose answers are as fine as the others'."""
    assert RESULTS[MODERN[0]][:4] == (None,) * 4 and "no paper" in RESULTS[MODERN[0]].source and reported(MODERN[0], "dsrg") == {}
    modern, old = (load_config(name) for name in (MODERN[0], "dsrg/voc-vgg16"))
    changed = {key for key in flatten(as_dict(old)) if flatten(as_dict(old))[key] != flatten(as_dict(modern))[key]}
    assert changed == {"preset", "classify.network", "train.network", "retrain.network", "train.stride", "retrain.stride", "cues.scales"}
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert segmenter(LITE, 21, "aspp", "random", 8).eval()(torch.empty(1, 3, 321, 321)).shape == (1, 21, 41, 41)


def test_mask_rcnn_by_hand():
    """torchvision prints 44,401,393 parameters for 91 outputs, with norms that do not learn; ours has 81, and norms that do."""
    cost, norms = detector_cost("salient/coco-maskrcnn"), 2 * 64 + sum(2 * n * 6 * width + 2 * 4 * width for width, n in zip((64, 128, 256, 512), (3, 4, 6, 3)))
    assert cost.parameters == 44_401_393 - 10 * (1024 + 1 + 4 * 1024 + 4 + 256 + 1) + norms
    assert cost.work == 3 * 16 * pyramid_work()


def pyramid_work() -> int:
    """ResNet-50 with stride 32 and a pyramid of 256 channels, on 800×1344."""
    at = lambda step: (800 // step) * (1344 // step)
    total, inside = 49 * 3 * 64 * at(2), 64
    for width, n, step in zip((64, 128, 256, 512), (3, 4, 6, 3), (4, 8, 16, 32)):
        for k in range(n):
            before = at(step // 2) if k == 0 and width > 64 else at(step)
            total += inside * width * before + (9 * width * width + width * 4 * width) * at(step) + (inside * 4 * width * at(step) if k == 0 else 0)
            inside = 4 * width
    return total + sum((256 * side * c + 9 * 256 * 256 * side) for c, side in zip((256, 512, 1024, 2048), map(at, (4, 8, 16, 32))))
