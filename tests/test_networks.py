"""Trunks: their sizes by hand, their numbers against torchvision and a second writing of ResNet-38, their layers tapped and frozen."""
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, max_pool2d, relu
from torchvision import models

from wsss_nb.core import DataError
from wsss_nb.networks import TRUNKS, Layer, Trunk, geometry, resnet, resnet38, small, tap, timm_trunk, trunk, vgg16

torch.set_num_threads(1)


def count(network) -> int:
    """Numbers a network learns."""
    return sum(p.numel() for p in network.parameters())


def on_paper(make, *arguments):
    """A network without numbers, for its shapes."""
    with torch.device("meta"):
        return make(*arguments)


# ---- sizes by hand ------------------------------------------------------------------------------------------------------

def wide(a: int, m: int, b: int) -> int:
    """A block of two 3×3 convolutions: two norms, two convolutions, and a shortcut where the width changes or it skips."""
    return 2 * a + 9 * a * m + 2 * m + 9 * m * b + (a * b if a != b else 0)


def bottleneck(a: int, m: int, n: int, b: int) -> int:
    """A block of 1×1, 3×3, 1×1 and its shortcut."""
    return 2 * a + a * m + 2 * m + 9 * m * n + 2 * n + n * b + a * b


RESNET38 = (3 * 64 * 9 + wide(64, 128, 128) + 2 * wide(128, 128, 128) + wide(128, 256, 256) + 2 * wide(256, 256, 256)
            + wide(256, 512, 512) + 5 * wide(512, 512, 512) + wide(512, 512, 1024) + 2 * wide(1024, 512, 1024)
            + bottleneck(1024, 512, 1024, 2048) + bottleneck(2048, 1024, 2048, 4096) + 2 * 4096)
SIZES = {
    "small": 27 * 24 + 216 * 48 + 432 * 64 + 2 * 576 * 64 + 2 * (24 + 48 + 64 + 64 + 64),
    "vgg16": 14_714_688,                                        # torchvision's documented 138,357,544 less 123,642,856 of its hidden layers
    "resnet50": 25_557_032 - 2048 * 1000 - 1000,                # torchvision's documented sizes less fc
    "resnet101": 44_549_160 - 2048 * 1000 - 1000,
    "resnet38": RESNET38}


@pytest.mark.parametrize("name", SIZES)
def test_size_by_hand(name):
    """Parameters counted layer by layer on paper, or documented by torchvision."""
    assert count(on_paper(trunk, name)) == SIZES[name]


def test_every_backbone_has_a_size_here():
    """A new one must be counted too; the hidden layers of VGG16 are what its documented size is larger by."""
    assert set(SIZES) == set(TRUNKS)
    assert 138_357_544 - SIZES["vgg16"] == 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000


@pytest.mark.parametrize("h, w", [(321, 321), (1, 1), (1, 500), (33, 64), (375, 500)])
@pytest.mark.parametrize("name, channels, stride", [("small", 64, 4), ("vgg16", 512, 8), ("resnet50", 2048, 8), ("resnet101", 2048, 8), ("resnet38", 4096, 8)])
def test_shape_by_hand(name, channels, stride, h, w):
    """A side of n pixels gets n/stride features, rounded up, also for pictures of one pixel."""
    network = on_paper(trunk, name)
    features = network(torch.zeros(2, 3, h, w, device="meta"))
    assert (network.channels, network.stride) == (channels, stride)
    assert features.shape == (2, channels, -(-h // stride), -(-w // stride))


def test_tiny_pictures_give_finite_features():
    """1×1 and 1×500 pixels are no special case."""
    for h, w in ((1, 1), (1, 500)):
        assert small().eval()(torch.rand(1, 3, h, w)).isfinite().all()


def test_receptive_field_of_vgg16_by_hand():
    """3, 5 | 7 | 11, 15 | 19 | 27, 35, 43 | 51 | 67, 83, 99 | 115 | 147, 179, 211 | 227 | 243, as SEC's pools and dilation make it."""
    rows = geometry(on_paper(vgg16))
    assert [row.field for row in rows] == [3, 5, 7, 11, 15, 19, 27, 35, 43, 51, 67, 83, 99, 115, 147, 179, 211, 227, 243]
    assert [row.stride for row in rows] == [1, 1, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]
    assert rows[-2:] == [Layer("pool5", 512, 8, 227), Layer("pool5a", 512, 8, 243)]


@pytest.mark.parametrize("name", ["resnet50", "resnet38"])
def test_dilation_keeps_the_receptive_field(name):
    """Shortcuts do not count; a ResNet sees the same at stride 8 and 32; ResNet-38 has 37 convolutions and its classifier."""
    rows = geometry(on_paper(trunk, name))
    assert rows[-1].stride == 8
    if name == "resnet50":
        assert len(rows) == 50 and rows[-1].field == geometry(on_paper(resnet, 50, 32))[-1].field == 427
    else:
        # 3, then blocks of two 3×3 at 1, 2, 4, 8 pixels: 2(1+2) + 8(2)+… by stage, then dilations 1,2 | 2,2 | 2,2 | 4 | 4 at 8 pixels
        by_stage = 3 + (2 + 4) + 2 * (4 + 4) + (4 + 8) + 2 * (8 + 8) + (8 + 16) + 5 * (16 + 16) + (16 + 32) + 2 * (32 + 32) + 64 + 64
        assert len(rows) == 37 and rows[-1].field == by_stage


# ---- the same numbers as others -----------------------------------------------------------------------------------------

def test_vgg16_has_torchvisions_convolutions():
    """Layer number N of torchvision is our layer number N; with torchvision's pools and without dilation the numbers agree."""
    torch.manual_seed(0)
    theirs, ours = models.vgg.make_layers(models.vgg.cfgs["D"]), vgg16()
    ours.load_state_dict({f"{list(ours._modules)[int(n)]}.{part}": v for (n, part), v in
                          ((name.split("."), v) for name, v in theirs.state_dict().items())})
    image = torch.randn(1, 3, 64, 96)
    y = image
    for name, layer in ours.named_children():
        if name.startswith("conv"):
            y = relu(conv2d(y, layer.weight, layer.bias, padding=1))
        elif name.startswith("pool") and not name.endswith("a"):
            y = max_pool2d(y, 2)
    with torch.no_grad():
        assert torch.equal(y, theirs(image))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_resnet50_is_torchvisions_made_finer(stride):
    """With the same weights, every 32nd pixel has torchvision's feature, whatever the stride: dilation adds and changes nothing."""
    torch.manual_seed(0)
    theirs, ours = models.resnet50().eval(), resnet(50, stride).eval()
    for module in theirs.modules():              # statistics that a wrong order of norms would show
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, .1), module.running_var.uniform_(.5, 1.5), module.weight.data.uniform_(.2, .6)
    assert not ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    image = torch.randn(1, 3, 65, 100)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        y = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
        step = 32 // stride
        assert torch.allclose(ours(image)[..., ::step, ::step], y, rtol=1e-4, atol=1e-5 * float(y.max()))


def test_dilation_starts_as_late_as_it_can():
    """At stride 16 only the last stage is dilated, so the stage before costs what it always did."""
    for stride, cells in ((32, [4, 2]), (16, [4, 4]), (8, [8, 8])):
        taps = on_paper(resnet, 50, stride).taps(torch.zeros(1, 3, 64, 64, device="meta"), ["layer3", "layer4"])
        assert [tap.shape[2] for tap in taps.values()] == cells


def second_resnet38(tensors: dict, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """ResNet-38 written a second time, from the published layout: a table of blocks, no modules."""
    def norm(name, x):
        mean, var, w, b = (tensors[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        return ((x - mean) / (var + 1e-5).sqrt() * w + b).clamp(min=0)

    found, x = {}, conv2d(x, tensors["conv1a.weight"], padding=1)
    table = [(f"b{s}{'' if k == 0 else f'_{k}'}", 2 if s < 5 and k == 0 else 1, (1 if k == 0 else d, d))
             for s, blocks, d in ((2, 3, 1), (3, 3, 1), (4, 6, 1), (5, 3, 2)) for k in range(blocks)]
    for name, stride, (d1, d2) in table:
        a = found[name] = norm(f"{name}.bn_branch2a", x)
        y = conv2d(a, tensors[f"{name}.conv_branch2a.weight"], stride=stride, padding=d1, dilation=d1)
        y = conv2d(norm(f"{name}.bn_branch2b1", y), tensors[f"{name}.conv_branch2b1.weight"], padding=d2, dilation=d2)
        short = f"{name}.conv_branch1.weight"
        x = y + (conv2d(a, tensors[short], stride=stride) if short in tensors else x)
    for name in ("b6", "b7"):
        a = found[name] = norm(f"{name}.bn_branch2a", x)
        y = conv2d(a, tensors[f"{name}.conv_branch2a.weight"])
        y = conv2d(norm(f"{name}.bn_branch2b1", y), tensors[f"{name}.conv_branch2b1.weight"], padding=4, dilation=4)
        y = conv2d(norm(f"{name}.bn_branch2b2", y), tensors[f"{name}.conv_branch2b2.weight"])
        x = y + conv2d(a, tensors[f"{name}.conv_branch1.weight"])
    return found | {"end": norm("bn7", x)}


def test_resnet38_equals_a_second_writing():
    """Features of a 33×33 picture, and the inputs of stages 5 and 6 that the field taps, from random weights and statistics."""
    torch.manual_seed(0)
    network = resnet38().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, .1), module.running_var.uniform_(.5, 1.5), module.weight.data.uniform_(.5, 1.5), module.bias.data.normal_(0, .1)
    image = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        taps = network.taps(image, ["b5.relu_branch2a", "b6.relu_branch2a", "relu7"])
        expected = second_resnet38(network.state_dict(), image)
    assert taps["relu7"].shape == (1, 4096, 5, 5)
    for ours, theirs in (("b5.relu_branch2a", "b5"), ("b6.relu_branch2a", "b6"), ("relu7", "end")):
        assert torch.allclose(taps[ours], expected[theirs], rtol=1e-3, atol=1e-4), ours


def test_resnet38_drops_where_the_port_drops():
    """Whole channels before the second and third convolution of the last two blocks, 0.3 and 0.5; nowhere else."""
    rates = {name: m.p for name, m in on_paper(resnet38).named_modules() if isinstance(m, nn.Dropout2d) and m.p}
    assert rates == {"b6.dropout_branch2b1": .3, "b6.dropout_branch2b2": .3, "b7.dropout_branch2b1": .5, "b7.dropout_branch2b2": .5}


# ---- layers ---------------------------------------------------------------------------------------------------------------

def test_taps_are_what_layers_said():
    """A tap before a ReLU still has negative numbers in every network; the output is untouched; no hook stays behind."""
    image = torch.randn(1, 3, 40, 40)
    for network, name in ((small(), "block2.norm"), (vgg16(), "conv1_2"), (resnet(50), "bn1"), (resnet(50), "layer2.1.bn2")):
        network.eval()
        before = network(image)
        tapped = network.taps(image, [name])[name]
        assert tapped.min() < 0 and torch.equal(before, network(image)), name
        assert not any(m._forward_hooks for m in network.modules())


def test_taps_of_a_failing_pass_leave_no_hook():
    """A picture with two channels fails; the next pass is clean."""
    network = small()
    with pytest.raises(RuntimeError):
        network.taps(torch.zeros(1, 2, 8, 8), ["block1"])
    assert not any(m._forward_hooks for m in network.modules())
    with pytest.raises(DataError, match="block1"):
        tap(network, torch.zeros(1, 3, 8, 8), ["blok1"])


def test_taps_carry_gradients():
    """A loss on a tap reaches the layers before it and no others."""
    network = small()
    network.taps(torch.randn(2, 3, 16, 16), ["block3"])["block3"].sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == [
        f"block{k}.{part}" for k in (4, 5) for part in ("conv.weight", "norm.weight", "norm.bias")]


def test_frozen_layers_stay():
    """A step of training moves neither the weights of frozen layers nor the statistics of frozen norms; the rest moves."""
    network = small().freeze("block1").freeze_norms()
    before = {name: v.clone() for name, v in network.state_dict().items()}
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), .1, weight_decay=.1)
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    optimiser.step()
    moved = [name for name, v in network.state_dict().items() if not torch.equal(v, before[name])]
    assert moved == [f"block{k}.conv.weight" for k in range(2, 6)]
    assert small().train().block1.norm.training


# ---- timm -----------------------------------------------------------------------------------------------------------------

def test_timm_last_map_channels_first():
    """Channels and stride as promised, also where timm hands channels over last."""
    timm = pytest.importorskip("timm")
    for name, stride, size in (("resnet18", 8, 64), ("mobilenetv3_small_100", 16, 50), ("tf_efficientnet_lite0", None, 65)):
        network = timm_trunk(name, stride).eval()
        assert network.stride == (stride or 32)
        assert network(torch.zeros(1, 3, size, size)).shape == (1, network.channels, -(-size // network.stride), -(-size // network.stride))
    swin = "swin_tiny_patch4_window7_224"
    own = on_paper(timm_trunk, swin)
    assert own.timm.last and own(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 768, 7, 7)
    assert own.mean == timm.get_pretrained_cfg(swin).mean


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_timm_weights_arrive(name):
    """Every number of the trunk is the whole network's number of the same name, whatever timm renames on the way."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = {key: torch.rand_like(v) if v.is_floating_point() else v for key, v in timm.create_model(name).state_dict().items()}
    plain = {key.replace("_", "."): v for key, v in whole.items()}
    own = timm_trunk(name, tensors=whole).timm.network.state_dict()
    assert len(own) > 100 and all(torch.equal(v, plain[key.removeprefix("model.").replace("_", ".")]) for key, v in own.items())
    assert set(whole) == set(timm.create_model(name).state_dict())      # the argument is not eaten up


def test_unknown_names_meet_their_neighbours():
    """A slip of the pen is answered with the right name."""
    pytest.importorskip("timm")
    for nothing in (None, 50):
        with pytest.raises(DataError, match="the backbone is"):
            trunk(nothing)
    for wrong, right in (("resnet-50", "resnet50"), ("vgg-16", "vgg16"), ("smal", "small"), ("timm:tf_efficientnet_light0", "tf_efficientnet_lite0")):
        with pytest.raises(DataError, match=right):
            trunk(wrong)


@pytest.mark.parametrize("name, stride", [("small", 8), ("vgg16", 16), ("resnet38", 16), ("resnet50", 4), ("timm:vgg11", 8)])
def test_stride_that_cannot_be(name, stride):
    """A stride a network lacks is refused, not ignored."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(DataError, match="stride"):
        on_paper(trunk, name, stride)


def test_without_timm(monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match=r"wsss_nb\[modern\]"):
        trunk("timm:resnet18")


def test_trunk_of_ones_own():
    """Layers in a row with names are enough."""
    own = Trunk({"first": nn.Conv2d(3, 5, 3, 2, 1), "second": nn.Conv2d(5, 7, 3, 2, 1)}, 7, 4, (0, 0, 0), (1, 1, 1))
    assert geometry(own) == [Layer("first", 5, 2, 3), Layer("second", 7, 4, 7)]
    assert list(own.taps(torch.zeros(1, 3, 8, 8), ["first"])) == ["first"]
