"""Segmenters: sizes by formula, heads against numpy, groups as the papers, weights that arrive or are refused, files, memory."""
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsss_nb import backbones
from wsss_nb import segmenter as module
from wsss_nb.backbones import backbone
from wsss_nb.classifier import make_grey
from wsss_nb.core import DataError
from wsss_nb.memory import memory, memory_parts
from wsss_nb.networks import TRUNKS, small, trunk
from wsss_nb.pretraining import save_classifier
from wsss_nb.schedule import check_groups
from wsss_nb.segmenter import (
    Segmenter,
    Summed,
    cut_down,
    fill_hidden,
    from_classifier,
    head_rates,
    load_segmenter,
    make_head,
    probabilities,
    save_segmenter,
    segmenter,
)

torch.set_num_threads(1)
CHANNELS = {"small": 64, "vgg16": 512, "resnet50": 2048, "resnet101": 2048, "resnet38": 4096}
HIDDEN = {"small": 128, "vgg16": 1024, "resnet50": 0, "resnet101": 0, "resnet38": 0}
STRIDES = {"small": 4, "vgg16": 8, "resnet50": 8, "resnet101": 8, "resnet38": 8}
CLASSES = ("bird", "boat", "car", "cat", "cow", "sheep")


def on_meta(*arguments, **options) -> Segmenter:
    """A segmenter of shapes alone."""
    with torch.device("meta"):
        return segmenter(*arguments, weights="random", **options)


def named(kind: str = "largefov", seed: int = 0, **options) -> Segmenter:
    """The small segmenter with names for its classes."""
    torch.manual_seed(seed)
    network = segmenter("small", 7, kind, "random", **options).eval()
    network.classes = CLASSES
    return network


# ---- sizes ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["linear", "largefov", "aspp"])
@pytest.mark.parametrize("name", TRUNKS)
def test_every_variant(name, kind):
    """Parameters of the head by formula, one answer for every `stride` pixels, and every parameter in one group."""
    network, n, D, m = on_meta(name, 21, kind).eval(), 21, CHANNELS[name], HIDDEN[name]
    branch = 9 * D * m + m + m * m + m + m * n + n if m else 9 * D * n + n
    expected = {"linear": D * n + n, "largefov": branch, "aspp": 4 * branch}[kind]
    assert sum(p.numel() for p in network.head.parameters()) == expected
    image = torch.zeros(2, 3, 321, 321, device="meta")
    side = math.ceil(321 / STRIDES[name])
    assert network(image).shape == (2, n, side, side) and network.features(image).shape == (2, D, side, side)
    assert (side == 41) is (name != "small")
    assert (network.stride, network.n_classes, network.mean, network.std) == (STRIDES[name], 21, network.trunk.mean, network.trunk.std)
    check_groups(network, network.groups())


def test_vgg16_is_the_network_of_sec():
    """20,505,429 numbers: VGG16's 14,714,688 convolutions, fc6 4,719,616, fc7 1,049,600, fc8 21,525."""
    network = on_meta("vgg16", 21)
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.head.named_children()}
    assert sizes == {"fc6": 4_719_616, "relu6": 0, "drop6": 0, "fc7": 1_049_600, "relu7": 0, "drop7": 0, "fc8": 21_525}
    assert sum(p.numel() for p in network.parameters()) == 14_714_688 + 4_719_616 + 1_049_600 + 21_525 == 20_505_429
    assert (network.head.fc6.dilation, network.head.fc6.padding, network.head.drop6.p, network.head.drop7.p) == ((12, 12), (12, 12), .5, .5)
    assert on_meta("vgg16", 21, dropout=.1).head.drop7.p == .1


def test_layers_of_aspp_are_deeplabs():
    """fc6_1 … fc8_4 on VGG16 with rates 6, 12, 18, 24; on a ResNet one dilated convolution a rate."""
    vgg, resnet = on_meta("vgg16", 21, "aspp"), on_meta("resnet101", 21, "aspp")
    convolutions = lambda network: {name: m.dilation[0] for name, m in network.head.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions(vgg) == {f"rate{r}.fc{layer}_{k}": r if layer == 6 else 1 for k, r in enumerate((6, 12, 18, 24), 1) for layer in (6, 7, 8)}
    assert convolutions(resnet) == {f"rate{r}.fc8_{k}": r for k, r in enumerate((6, 12, 18, 24), 1)}


@pytest.mark.parametrize("stride, side, rates", [(8, 41, (6, 12, 18, 24)), (16, 21, (3, 6, 9, 12)), (32, 11, (2, 3, 4, 6))])
def test_rates_follow_the_stride(stride, side, rates):
    """A coarser trunk gets smaller rates, so that the view in pixels stays."""
    network = on_meta("resnet50", 21, "aspp", stride=stride).eval()
    assert network.rates == rates and network(torch.zeros(1, 3, 321, 321, device="meta")).shape[2:] == (side, side)


def test_any_trunk_of_timm():
    """A modern trunk of 320 channels gets hidden layers of 640; one that asks for its own width gets that."""
    pytest.importorskip("timm")
    network = segmenter("timm:tf_efficientnet_lite0", 7, "aspp", "random", stride=16).eval()
    assert (network.hidden, network.rates) == (640, (3, 6, 9, 12)) and network(torch.zeros(1, 3, 64, 96)).shape == (1, 7, 4, 6)
    check_groups(network, network.groups())
    assert on_meta("resnet50", 21, hidden=256).head.fc6.out_channels == 256


# ---- what a head computes -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate", [1, 2, 5])
def test_dilated_head_against_a_loop(rate):
    """Nine weighted places for each cell; outside the map there is nothing."""
    torch.manual_seed(rate)
    head, features = make_head("largefov", 3, 2, (rate,)), torch.randn(1, 3, 6, 7)
    W, f = head.fc8.weight.detach().numpy().astype(float), features[0].numpy().astype(float)
    nn.init.normal_(head.fc8.bias)
    expected = np.zeros((2, 6, 7)) + head.fc8.bias.detach().numpy()[:, None, None]
    for y, x, dy, dx in np.ndindex(6, 7, 3, 3):
        v, u = y + (dy - 1) * rate, x + (dx - 1) * rate
        if 0 <= v < 6 and 0 <= u < 7:
            expected[:, y, x] += W[:, :, dy, dx] @ f[:, v, u]
    assert np.allclose(head(features)[0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("hidden", [0, 8])
def test_aspp_is_the_sum_of_four_largefovs(hidden):
    """The same weights in four heads of one rate give, added, the same logits."""
    torch.manual_seed(0)
    aspp, features = make_head("aspp", 5, 3, (1, 2, 3, 4), hidden).eval(), torch.randn(2, 5, 9, 8)
    total = 0
    for rate, branch in zip((1, 2, 3, 4), aspp.children()):
        alone = make_head("largefov", 5, 3, (rate,), hidden).eval()
        alone.load_state_dict(dict(zip(alone.state_dict(), branch.state_dict().values())))
        total = total + alone(features)
    assert torch.allclose(aspp(features), total, atol=1e-6)
    assert not torch.allclose(aspp(features), 2 * total, atol=1e-6)


def test_linear_head_is_the_classifier_without_its_average():
    """With the classifier's weights in the channels 1…C, the mean of the map is the classifier's logit."""
    torch.manual_seed(0)
    classifier = backbone("small", 6, weights="random").eval()
    network = from_classifier(classifier, 7, "linear")
    network.head.fc8.weight.data[1:] = classifier.weight.data[:, :, None, None]
    image = torch.randn(2, 3, 40, 52)
    with torch.no_grad():
        assert torch.allclose(network(image).mean((2, 3))[:, 1:], classifier(image), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "largefov", "aspp"])
def test_gradient_reaches_every_parameter(kind):
    """No branch and no layer is left out of the sum."""
    network = named(kind, dropout=0.).train()
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_new_layers():
    """What says the classes starts at N(0, 0.01) and bias 0; hidden layers without weights as Kaiming has it."""
    torch.manual_seed(0)
    network = segmenter("small", 21, "aspp", "random")
    last = torch.cat([p.detach().flatten() for name, p in network.head.named_parameters() if "fc8" in name and "weight" in name])
    assert float(last.std()) == pytest.approx(.01, rel=.03) and abs(float(last.mean())) < 5e-4
    assert not any(p.any() for name, p in network.head.named_parameters() if name.endswith("bias"))
    assert float(network.head.rate6.fc6_1.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** .5, rel=.03)


def test_taps():
    """Inner layers of trunk and head by their dotted names, the trunk's last ones by `top`."""
    network, image = named(), torch.randn(1, 3, 32, 32)
    maps = network.taps(image, ["head.fc7", "head.fc8", *network.top])
    assert network.top == ("trunk.block4", "trunk.block5") and maps["head.fc7"].shape == (1, 128, 8, 8)
    assert torch.equal(maps["head.fc8"], network(image)) and torch.equal(maps["trunk.block5"], network.features(image))
    with pytest.raises(DataError, match="head.fc7"):
        network.taps(image, ["head.fc9"])


# ---- groups ---------------------------------------------------------------------------------------------------------------

def speeds(network, **options) -> dict[str, tuple]:
    """For each parameter its (scale, decay); each must be in exactly one group."""
    names, found = {id(p): name for name, p in network.named_parameters()}, {}
    for group in network.groups(**options):
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group["scale"], group["decay"])
    return found


def test_groups_of_secs_and_dsrgs_files():
    """Biases ×2 without decay; with pretrained fc6 and fc7 only fc8 is ×10, else the whole head."""
    network = on_meta("vgg16", 21)
    new = speeds(network)
    assert (new["trunk.conv1_1.weight"], new["trunk.conv1_1.bias"]) == ((1, None), (2, 0))
    assert (new["head.fc6.weight"], new["head.fc7.bias"], new["head.fc8.weight"], new["head.fc8.bias"]) == ((10, None), (20, 0), (10, None), (20, 0))
    network.pretrained = True
    old = speeds(network)
    assert (old["head.fc6.weight"], old["head.fc7.bias"], old["head.fc8.weight"], old["head.fc8.bias"]) == ((1, None), (2, 0), (10, None), (20, 0))
    assert set(old) == set(new) == {name for name, _ in network.named_parameters()}
    assert speeds(network, new=3., bias=1., bias_decay=None)["head.fc8.bias"] == (3, None)


def test_frozen_norms_stay():
    """Frozen batch norms are in no group and keep their statistics in training; those that are not do not."""
    torch.manual_seed(0)
    frozen, free = (segmenter("resnet50", 5, "linear", "random", freeze=freeze).train() for freeze in (True, False))
    assert not [name for name in speeds(frozen) if ".bn" in name or "downsample.1" in name] and [name for name in speeds(free) if ".bn" in name]
    for network in (frozen, free):
        network(torch.randn(1, 3, 33, 33))
    assert not frozen.trunk.bn1.running_mean.any() and free.trunk.bn1.running_mean.any()


# ---- weights arrive -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def vgg16_file() -> dict[str, torch.Tensor]:
    """Tensors under torchvision's names; fc7 is narrow in memory only because it is expanded from one row."""
    torch.manual_seed(0)
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    layers = [name for name, m in trunk("vgg16").named_children() if isinstance(m, nn.Conv2d)]
    state = trunk("vgg16").state_dict()
    tensors = {f"features.{k}.{part}": state[f"{name}.{part}"] for k, name in zip(places, layers) for part in ("weight", "bias")}
    six = torch.arange(4096.)[:, None] * 1e-3 + torch.arange(25088.)[None] * 1e-5
    return tensors | {"classifier.0.weight": six, "classifier.0.bias": torch.arange(4096.),
                      "classifier.3.weight": torch.arange(4096.)[None].expand(4096, 4096) * 1., "classifier.3.bias": -torch.arange(4096.),
                      "classifier.6.weight": torch.zeros(1000, 4), "classifier.6.bias": torch.zeros(1000)}


@pytest.fixture
def imagenet(monkeypatch, vgg16_file):
    """The tensors above play torchvision's file."""
    for place in (backbones, module):
        monkeypatch.setattr(place, "imagenet_weights", lambda name: (vgg16_file, "vgg16-397923af.pth"))
    return vgg16_file


@pytest.mark.parametrize("kind, last", [("largefov", ""), ("aspp", "_3")])
def test_vgg16_from_imagenet(imagenet, kind, last):
    """Channel k comes from 4k, place (y, x) from (3y, 3x), in every branch; fc8 is new, and alone so."""
    network = segmenter("vgg16", 21, kind)
    head = network.head if kind == "largefov" else network.head.rate18
    fc6, fc7, fc8 = (head.get_submodule(f"fc{k}{last}") for k in (6, 7, 8))
    for k, d, y, x in ((0, 0, 0, 0), (1023, 511, 2, 2), (7, 100, 1, 2)):
        row, column = 4 * k, 49 * d + 7 * (3 * y) + 3 * x
        assert float(fc6.weight.detach()[k, d, y, x]) == pytest.approx(row * 1e-3 + column * 1e-5, abs=1e-6)
    assert float(fc6.bias.detach()[5]) == 20 and float(fc7.bias.detach()[5]) == -20 and float(fc7.weight.detach()[9, 11, 0, 0]) == 44
    assert float(fc8.weight.detach().std()) == pytest.approx(.01, rel=.1)
    assert torch.equal(network.trunk.conv5_3.weight, imagenet["features.28.weight"])
    assert network.pretrained and {name for name, (scale, _) in speeds(network).items() if scale >= 10} == {
        name for name, _ in network.named_parameters() if "fc8" in name}


def test_vgg16_from_a_converted_file(tmp_path, vgg16_file):
    """A file with fc6 and fc7 by name is taken as it is; one without them leaves them new; half of them are refused."""
    names = [name for name, m in trunk("vgg16").named_children() if isinstance(m, nn.Conv2d)]
    convolutions = {f"{name}.{part}": v for (name, part), v in zip(((n, p) for n in names for p in ("weight", "bias")), vgg16_file.values())}
    hidden = {"fc6.weight": torch.rand(1024, 512, 3, 3), "fc6.bias": torch.rand(1024), "fc7.weight": torch.rand(1024, 1024, 1, 1), "fc7.bias": torch.rand(1024)}
    torch.save(convolutions | hidden, tmp_path / "vgg16_20M.pth")
    network = segmenter("vgg16", 7, weights=tmp_path / "vgg16_20M.pth")
    assert network.pretrained and all(torch.equal(network.head.state_dict()[name], v) for name, v in hidden.items())
    network.pretrained = False
    torch.save({"conv1_1.bias": torch.zeros(64)}, tmp_path / "bare.pth")
    assert not fill_hidden(network, tmp_path / "bare.pth").pretrained
    torch.save({"fc6.weight": hidden["fc6.weight"], "fc6.bias": hidden["fc6.bias"]}, tmp_path / "half.pth")
    with pytest.raises(DataError, match=r"half.pth.*fc7.weight"):
        fill_hidden(network, tmp_path / "half.pth")


def test_hidden_layers_of_another_width(imagenet):
    """512 channels take every eighth; a width that does not divide is refused with the file's name."""
    narrow = Segmenter(trunk("vgg16"), 7, hidden=512)
    assert float(fill_hidden(narrow, "imagenet").head.fc6.bias.detach()[3]) == 24
    with pytest.raises(DataError, match="vgg16-397923af.pth"):
        fill_hidden(Segmenter(trunk("vgg16"), 7, hidden=700), "imagenet")
    assert cut_down({"conv1_1.weight": torch.zeros(1)}) == {}


def test_from_classifier_copies_the_trunk():
    """The features are the classifier's, grey is left out, frozen stays frozen, and nothing is shared."""
    torch.manual_seed(0)
    classifier = backbone("small", 6, weights="random").eval()
    classifier.classes = CLASSES
    classifier.trunk.freeze("block1")
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        colour = classifier.features(image)
        grey = make_grey(classifier).features(image)
        network = from_classifier(classifier, 7, "aspp")
        assert torch.equal(network.features(image), colour) and not torch.allclose(colour, grey)
    assert network.classes == CLASSES and network.top == ("trunk.block4", "trunk.block5") and "grey" not in dict(network.trunk.named_children())
    assert not [name for name in speeds(network) if "block1" in name] and not network.train().trunk.block1.norm.training
    mine, theirs = ({p.data_ptr() for p in part.parameters()} for part in (network.trunk, classifier.trunk))
    assert not mine & theirs


def test_from_classifier_of_vgg16(tmp_path, imagenet):
    """The classifier's own fc6 and fc7 stay behind; ImageNet's come when they are asked for."""
    classifier = backbone("vgg16", 3)
    network = from_classifier(classifier, 4)
    assert not network.pretrained and not torch.equal(network.head.fc6.weight, classifier.head.fc6.weight)
    asked = from_classifier(classifier, 4, weights="imagenet")
    assert asked.pretrained and float(asked.head.fc6.bias.detach()[5]) == 20 and torch.equal(asked.trunk.conv1_1.weight, classifier.trunk.conv1_1.weight)


# ---- probabilities --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_in_every_precision(dtype):
    """Sum 1, never below floor / (1 + n floor), finite at extreme logits, at least float32."""
    torch.manual_seed(0)
    logits = (torch.randn(2, 21, 5, 5) * 200).to(dtype)
    H = probabilities(logits)
    assert H.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and H.isfinite().all()
    assert (H.sum(1) - 1).abs().max() < 1e-5 and float(H.min()) >= 1e-4 / (1 + 21e-4) * (1 - 1e-5)


def test_probabilities_by_hand():
    """Logits 0 and log 3 are 1/4 and 3/4; a floor of 1/8 makes them 3/10 and 7/10; no floor leaves them."""
    logits = torch.tensor([0., math.log(3)]).reshape(1, 2, 1, 1)
    assert torch.allclose(probabilities(logits, .125).flatten(), torch.tensor([.3, .7]))
    assert torch.allclose(probabilities(logits, 0.).flatten(), torch.tensor([.25, .75]))
    assert torch.autograd.gradcheck(probabilities, torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True))


# ---- files ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, options", [("linear", {}), ("largefov", {"rates": (3,), "hidden": 0}), ("aspp", {"hidden": 16, "dropout": .2})])
def test_saved_and_loaded(tmp_path, kind, options):
    """The same logits, classes, head, groups and frozen layers; ready to judge."""
    network = named(kind, **options)
    network.trunk.freeze("block1", "block2.norm")
    network.pretrained = kind == "aspp"
    save_segmenter(tmp_path / "a.pt", network, "small")
    again, image = load_segmenter(tmp_path / "a.pt", CLASSES), torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        assert torch.equal(again(image), network(image))
    assert not again.training and again.classes == CLASSES and speeds(again) == speeds(network)
    assert (again.kind, again.rates, again.hidden, again.dropout) == (network.kind, network.rates, network.hidden, network.dropout)
    assert not again.train().trunk.block1.norm.training and again.trunk.block3.norm.training


def test_saved_stride(tmp_path):
    """A ResNet at stride 16 comes back at stride 16."""
    network = segmenter("resnet50", 3, "linear", "random", stride=16)
    network.classes = ("cat", "dog")
    save_segmenter(tmp_path / "a.pt", network, "resnet50")
    assert load_segmenter(tmp_path / "a.pt").stride == 16


def test_files_that_are_refused(tmp_path):
    """Other classes, no names, another trunk, a classifier's file, no file, something else, numbers that are not finite."""
    network, path = named(), tmp_path / "a.pt"
    save_segmenter(path, network, "small")
    with pytest.raises(DataError, match=r"a\.pt knows the classes bird.*expected cat, dog"):
        load_segmenter(path, ("cat", "dog"))
    with pytest.raises(DataError, match="bird, boat"):
        load_segmenter(path, CLASSES[::-1])
    for spoil, message in ((lambda s: s.pop("rates"), "save_segmenter"), (lambda s: s.update(kind="x"), "save_segmenter"), (lambda s: s.update(state={"a": 1}), "save_segmenter"),
                           (lambda s: s.update(backbone="vgg16", stride=8), "another network"), (lambda s: s.update(head="linear", rates=[]), "another network"),
                           (lambda s: s["state"]["head.fc8.bias"].fill_(math.nan), "NaN")):
        saved = torch.load(path, weights_only=True)
        spoil(saved)
        torch.save(saved, tmp_path / "b.pt")
        with pytest.raises(DataError, match=message) as error:
            load_segmenter(tmp_path / "b.pt")
        assert "b.pt" in str(error.value)
    classifier = backbone("small", 6, weights="random")
    classifier.classes = CLASSES
    save_classifier(tmp_path / "c.pt", classifier, "small")
    for name in ("c.pt", "none.pt"):
        with pytest.raises(DataError, match=name):
            load_segmenter(tmp_path / name)
    with pytest.raises(DataError, match="stride 4"):
        save_segmenter(tmp_path / "d.pt", network, "resnet50")
    network.head = nn.Conv2d(64, 7, 1)
    with pytest.raises(DataError, match=r"d\.pt is of another network"):
        save_segmenter(tmp_path / "d.pt", network, "small")
    network.classes = ()
    with pytest.raises(DataError, match="0 names for 6 classes"):
        save_segmenter(tmp_path / "d.pt", network, "small")
    assert not (tmp_path / "d.pt").exists()


@pytest.mark.parametrize("options, message", [
    ({"head": "largefow"}, "largefov"), ({"n_classes": 1}, "at least 2"), ({"n_classes": 7.}, "at least 2"), ({"rates": (6, 12)}, "one, whole"),
    ({"rates": (0,)}, "from 1"), ({"head": "aspp", "rates": ()}, "one or more"), ({"head": "aspp", "rates": (6, 6)}, "all different"),
    ({"head": "linear", "rates": (3,)}, "none")])
def test_arguments_that_are_refused(options, message):
    """Each in one line that says what, what was expected and how to mend it."""
    with pytest.raises(DataError, match=message) as error:
        Segmenter(small(), **{"n_classes": 7} | options)
    assert "To mend it" in str(error.value) and "\n" not in str(error.value)


def test_images_that_are_refused():
    """Bytes, one picture without its batch, an empty batch."""
    for image in (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(DataError, match="normalised"):
            named()(image)
    with pytest.raises(DataError, match="no ImageNet weights for small"):
        segmenter("small", 7)


def test_a_head_from_outside():
    """Any module can be a branch or the head; the groups follow."""
    network = named("aspp")
    network.head = Summed({"near": nn.Conv2d(64, 7, 1), "far": nn.Conv2d(64, 7, 3, padding=9, dilation=9)})
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7, 8, 8)
    check_groups(network, network.groups())
    assert speeds(network)["head.near.weight"] == (10, None)
    assert head_rates("linear", 8) == ()


# ---- memory ---------------------------------------------------------------------------------------------------------------

def test_memory_of_weights_by_hand():
    """SEC's network: 20,505,429 numbers of 4 bytes; its gradients and momenta as many; AdamW keeps twice as much."""
    parts = memory_parts(on_meta("vgg16", 21), 321, 2)
    assert parts["weights"] == parts["gradients"] == parts["optimiser"] == 4 * 20_505_429
    assert memory_parts(on_meta("vgg16", 21), 33, moments=2)["optimiser"] == 8 * 20_505_429
    assert memory(on_meta("vgg16", 21), 321, 2) == sum(parts.values())


def test_memory_of_activations_by_hand():
    """Convolution, ReLU, pool on one 3×8×8 image: the input, 4×8×8 after the ReLU, 4×4×4 out, and a place (8 bytes) for each of these."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    assert memory_parts(network, 8)["activations"] == 4 * (3 * 64 + 4 * 64 + 4 * 16) + 8 * 4 * 16


@pytest.mark.parametrize("kind", ["linear", "aspp"])
@pytest.mark.parametrize("name", ["small", "vgg16"])
def test_memory_against_a_real_pass(name, kind):
    """The storages autograd holds after a real forward pass, counted by address."""
    torch.manual_seed(0)
    network, held = segmenter(name, 4, kind, "random", hidden=16 if kind == "aspp" else None).train(), {}
    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor
    image = torch.randn(2, 3, 40, 48)
    before = {name: v.clone() for name, v in network.state_dict().items()}
    estimate = memory_parts(network, (40, 48), 2)["activations"]
    assert network.training and all(torch.equal(v, before[name]) for name, v in network.state_dict().items())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(network(keep(image)))
    ours = {v.untyped_storage().data_ptr() for v in network.state_dict().values()}
    assert estimate == sum(storage.nbytes() for address, storage in held.items() if address not in ours)


def test_memory_grows_with_the_batch_and_shrinks_when_frozen():
    """Activations are proportional to the batch; frozen parts have no gradient."""
    network = named().train()
    one, four = (memory_parts(network, 64, batch) for batch in (1, 4))
    assert four["weights"] == one["weights"] and abs(four["activations"] - 4 * one["activations"]) < 4 * 4096      # norms keep 2 numbers a channel
    network.trunk.freeze("block1", "block2")
    less = memory_parts(network, 64, 1)
    assert less["gradients"] < one["gradients"] and less["activations"] < one["activations"]
    with pytest.raises(DataError, match="at least one pixel"):
        memory(network, (0, 5))


def test_it_learns_one_picture(toyvoc):
    """The segmenter of lesson 20, on masks of one ToyVOC picture: the loss falls to a fifth within 25 steps."""
    from wsss_nb.classifier import network_input
    from wsss_nb.transforms import look_up
    from wsss_nb.voc import voc_folder
    data = voc_folder(toyvoc, "train", masks=True)
    network = named("largefov", dropout=0.).train()
    image, mask = network_input(network, data.image(0)[:96, :96]), torch.from_numpy(data.mask(0)[:96, :96])
    S = look_up(mask, (96, 96), 0, 0, (96., 96.), (24, 24)).long()[None]
    optimiser, losses = torch.optim.AdamW(network.parameters(), lr=3e-3), []
    for _ in range(25):
        loss = F.nll_loss(probabilities(network(image)).log(), S, ignore_index=255)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
