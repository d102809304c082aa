"""Mask R-CNN: what it is fed, what it is built from, what it gives back."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsss_nb.core import DataError
from wsss_nb.detection import (
    DetectionPreset,
    detect,
    detect_many,
    detection_losses,
    detection_set,
    join_pictures,
    milestones,
    shown_size,
    train_detector,
)
from wsss_nb.networks import small
from wsss_nb.rcnn import SmallPyramid, bare_rcnn, class_count, has_frozen_norms, load_detector, mask_rcnn, new_name, save_detector
from wsss_nb.schedule import Training
from wsss_nb.tagged import Instances
from wsss_nb.voc import voc_folder

TINY = DetectionPreset(Training(epochs=2, batch_size=2, learning_rate=1e-3, optimiser="adamw"), low=.5, high=1.2)


@pytest.fixture(scope="module")
def pictures(toyvoc):
    """Six pictures with their objects."""
    return voc_folder(toyvoc, "train", instances=True).subset(range(6))


def new(n_classes=6, short=48, seed=0):
    """A small network for small views."""
    torch.manual_seed(seed)
    return mask_rcnn("small", n_classes, short=short)


def nothing(data):
    """No object in any picture."""
    def empty(image_id):
        found = data.read_instances(image_id)
        return Instances(found.masks[:0], found.boxes[:0], found.classes[:0])
    return empty


def test_pyramid_is_the_small_trunk_at_every_second_place():
    """Stride 8 with adjacent taps is the trunk's dilated layers, computed sparsely."""
    pyramid, trunk = SmallPyramid().eval(), small().eval()
    trunk.load_state_dict(pyramid.body.state_dict())
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(pyramid.body(image), trunk(image)[..., ::2, ::2])
        assert [tuple(v.shape[1:]) for v in pyramid(image).values()] == [(48, 24, 32), (48, 12, 16), (48, 6, 8)]


def test_boxes_follow_masks(pictures):
    """After any scale and mirror, each box is the smallest around its mask, counted pixel by pixel."""
    shown, network = 0, new()
    views = detection_set(pictures, pictures.read_instances, network, TINY)
    for epoch in range(3):
        for i in range(len(pictures)):
            name, image, target = views[epoch, i]
            truth = pictures.read_instances(name)
            assert image.shape[1:] == target["masks"].shape[1:] and set(target["labels"].tolist()) <= set(truth.classes)
            for mask, box in zip(target["masks"], target["boxes"].tolist()):
                ys, xs = zip(*[(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]])
                assert box == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
                shown += 1
    assert shown > 18


def test_masks_follow_the_picture():
    """A bright square stays under its mask, mirrored or not, at every scale."""
    from wsss_nb.tagged import TaggedImages
    image = np.zeros((60, 80, 3), np.uint8)
    mask = np.zeros((1, 60, 80), bool)
    mask[0, 10:40, 5:35] = True
    image[mask[0]] = 255

    class Fake(TaggedImages):
        def image(self, i):
            return image
    data = Fake(("thing",), ("a",), np.ones((1, 1), bool), None)
    views = detection_set(data, lambda i: Instances(mask, np.array([[5., 10, 35, 40]]), np.array([1])), new(1), TINY)
    mirrored = set()
    for epoch in range(8):
        _, picture, target = views[epoch, 0]
        bright = picture[0] > 0
        agree = (bright & (target["masks"][0] > 0)).sum() / (bright | (target["masks"][0] > 0)).sum()
        assert agree > .85
        mirrored.add(bool(target["boxes"][0, 0] > picture.shape[2] / 3))
    assert mirrored == {True, False}


def test_views_depend_on_seed_epoch_and_place_alone(pictures):
    """Asked twice, in another order, the same view comes back; another epoch gives another."""
    views = detection_set(pictures, pictures.read_instances, new(), TINY, seed=3)
    first = views[1, 2]
    views[0, 1]
    torch.testing.assert_close(views[1, 2][1], first[1])
    assert views[2, 2][1].shape != first[1].shape or not torch.equal(views[2, 2][1], first[1])


def test_batch_pads_and_moves(pictures):
    """Pictures of several sizes lie in one corner; the rest is 0; `to` keeps everything."""
    views = detection_set(pictures, pictures.read_instances, new(), TINY)
    items = [views[0, i] for i in range(4)]
    batch = join_pictures(items, 16).to("cpu")
    assert len(batch) == 4 and batch.ids == tuple(item[0] for item in items) and batch.image.shape[2] % 16 == batch.image.shape[3] % 16 == 0
    for picture, (h, w), (_, image, target), kept in zip(batch.image, batch.sizes, items, batch.targets):
        assert torch.equal(picture[:, :h, :w], image) and not picture[:, h:].any() and not picture[:, :, w:].any()
        assert set(kept) == set(target)


def test_shown_size_keeps_the_shape():
    """By hand: 480×640 at 800, at most 1333; a long picture is bound by its longer side."""
    assert shown_size((480, 640), 800, 1333) == (800, 1067)
    assert shown_size((200, 1000), 800, 1333) == (267, 1333)


def test_milestones_are_detectrons():
    """60k and 80k of 90k."""
    assert [round(milestones(k, 90_000, 1), 4) for k in (0, 59_999, 60_000, 79_999, 80_000)] == [1, 1, .1, .1, .01]


def test_pictures_without_objects_are_learned_from(pictures):
    """A batch of none has finite losses and a gradient."""
    network = new().train()
    views = detection_set(pictures, nothing(pictures), network, TINY)
    losses = detection_losses(network, join_pictures([views[0, i] for i in range(2)], 16))
    assert set(losses) == {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())


def test_training_goes_on_exactly(pictures, tmp_path):
    """Stopped and resumed, the weights are those of one go."""
    from functools import partial

    from wsss_nb.loop import fit
    whole = new()
    train_detector(pictures, pictures.read_instances, whole, TINY, tmp_path / "whole", device="cpu")
    part = new()
    facts = {"low": .5, "high": 1.2, "mirror": True, "short": 48}
    part.classes = pictures.classes
    fit(part, detection_set(pictures, pictures.read_instances, part, TINY), partial(detection_losses, part), TINY.training, tmp_path / "part", "cpu",
        facts=facts, join=partial(join_pictures, divisor=16), stop_after=2)
    again = new(seed=5)
    train_detector(pictures, pictures.read_instances, again, TINY, tmp_path / "part", device="cpu")
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), name


def test_every_way_of_the_loop(pictures):
    """bfloat16, channels last, batches in parts and Detectron's milestones: the losses stay finite and every part learns."""
    network = new()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    settings = Training(iterations=3, batch_size=4, accumulate=2, learning_rate=1e-3, schedule=milestones, amp=True, channels_last=True)
    history = train_detector(pictures, pictures.read_instances, network, DetectionPreset(settings), device="cpu")
    assert all(np.isfinite(value) for row in history for value in row.values())
    moved = {name.split(".")[0] for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"backbone", "rpn", "roi_heads"}


def test_views_are_sent_to_workers_without_the_network(pictures):
    """A few kilobytes, not the weights."""
    import pickle
    views = detection_set(pictures, pictures.read_instances, new(), TINY)
    assert len(pickle.dumps(views)) < 20_000
    assert torch.equal(pickle.loads(pickle.dumps(views))[0, 1][1], views[0, 1][1])


def test_one_class_takes_any_object_and_crowds_are_left_out(pictures):
    """A class-agnostic network learns all objects as class 1; a crowd teaches nothing."""
    def crowded(image_id):
        found = pictures.read_instances(image_id)
        return replace(found, crowd=np.arange(len(found)) == 0)
    still = replace(TINY, low=1., high=1.)
    _, _, target = detection_set(pictures, crowded, new(1), still)[0, 0]
    assert len(target["labels"]) == len(pictures.instances(0)) - 1
    views = detection_set(pictures, pictures.read_instances, new(1), still)
    labels = [set(views[0, i][2]["labels"].tolist()) for i in range(len(pictures))]
    assert labels == [{1}] * len(pictures) and max(pictures.instances(i).classes.max() for i in range(len(pictures))) > 1


def test_found_objects_fit_the_picture(pictures):
    """Masks are bool at the picture's size, boxes are theirs, the surest come first, and no more than asked."""
    network = new(2)
    network.roi_heads.score_thresh = 0.
    images = [pictures.image(i) for i in range(3)]
    for image, found in zip(images, detect_many(network, images, threshold=0.)):
        assert found.masks.shape[1:] == image.shape[:2] and found.masks.dtype == bool and len(found) > 0
        assert (np.diff(found.scores) <= 0).all() and set(found.classes) <= {1, 2}
    assert len(detect(network, images[0], threshold=0., limit=3)) <= 3
    assert len(detect(network, images[0], threshold=1.1)) == 0
    assert network.training


def test_saved_and_loaded(pictures, tmp_path):
    """The same answers come from the file; another class list and another file are refused."""
    network = new()
    network.classes = pictures.classes
    network.roi_heads.score_thresh = 0.
    save_detector(tmp_path / "d.pt", network)
    loaded = load_detector(tmp_path / "d.pt", pictures.classes)
    loaded.roi_heads.score_thresh = 0.
    a, b = (detect(n, pictures.image(0), 0.) for n in (network.eval(), loaded))
    assert loaded.classes == pictures.classes and np.array_equal(a.masks, b.masks) and np.array_equal(a.scores, b.scores)
    with pytest.raises(DataError, match="knows the classes"):
        load_detector(tmp_path / "d.pt", ("cat",))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="no detector"):
        load_detector(tmp_path / "other.pt")


def test_published_detector_fits_under_its_old_names(tmp_path):
    """Weights under torchvision's old names land where torchvision's own loader puts them, but for the heads of other classes."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    old = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for block in ("inner_blocks", "layer_blocks"):
            for k in range(4):
                name = name.replace(f"fpn.{block}.{k}.0.", f"fpn.{block}.{k}.")
        for k in range(4):
            name = name.replace(f"mask_head.{k}.0.", f"mask_head.mask_fcn{k + 1}.")
        old[name] = value
    assert {new_name(name) for name in old} == set(theirs.state_dict())
    torch.save(old, tmp_path / "old.pth")
    network = mask_rcnn("resnet50", 3, tmp_path / "old.pth")
    ours, wanted = network.state_dict(), theirs.state_dict()
    heads = [name for name in ours if name.startswith(("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits"))]
    assert len(heads) == 6 and all(torch.equal(ours[name], wanted[name]) for name in ours if name not in heads)
    assert has_frozen_norms(network) and class_count(network) == 3


def test_resnet_body_takes_a_classifiers_weights(tmp_path):
    """ImageNet's file, made here with random numbers: body filled, its end dropped, first layers and norms frozen."""
    from torchvision.models import resnet50
    torch.manual_seed(0)
    classifier = resnet50()
    torch.save(classifier.state_dict(), tmp_path / "r50.pth")
    network = mask_rcnn("resnet50", 2, tmp_path / "r50.pth")
    assert torch.equal(network.backbone.body["layer3"][1].conv2.weight, classifier.layer3[1].conv2.weight)
    frozen = {name.split(".")[2] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"} and network.transform.min_size == (800,) and network.transform.max_size == 1333


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda d, n: train_detector(d, d.read_instances, new(4), TINY), "tells 4 classes"),
    (lambda d, n: detection_set(d, lambda i: replace(d.read_instances(i), masks=d.read_instances(i).masks[:, :9]), n, TINY)[0, 0], "the picture's"),
    (lambda d, n: detection_set(d, lambda i: replace(d.read_instances(i), classes=d.read_instances(i).classes + 6), n, TINY)[0, 0], "has class"),
    (lambda d, n: detect(n, np.zeros((9, 9))), "uint8"),
    (lambda d, n: mask_rcnn("tiny", 2), "no detector 'tiny'"),
    (lambda d, n: mask_rcnn("small", 0), "n_classes"),
    (lambda d, n: mask_rcnn("small", 1, "coco"), "no coco weights"),
    (lambda d, n: DetectionPreset(Training(), low=2.), "low"),
    (lambda d, n: save_detector("x.pt", bare_rcnn("small", 3)), "a name for each")])
def test_bad_input(pictures, wrong, said):
    """Each is refused in one line."""
    with pytest.raises(DataError, match=said) as error:
        wrong(pictures, new())
    assert "\n" not in str(error.value)
