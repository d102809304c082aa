"""Attention, centres and crops against the obvious way, in the same run. Asserts no time."""
import time

import numpy as np
import pytest
import torch

from wsss_nb.attention import instance_attention
from wsss_nb.centres import centre_loss, cosine_distance, move_centres
from wsss_nb.instance_features import features_of, instance_features
from wsss_nb.pretraining import new_network
from wsss_nb.voc import voc_folder


def seconds(work, times=3) -> float:
    """The fastest of a few runs, after one to warm up."""
    work()
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spans.append(time.perf_counter() - start)
    return min(spans)


@pytest.mark.parametrize("n", [3, 30, 300])
def test_box_means(n):
    """VOC's size and classes: two matrix products, a slice for each box, an integral image."""
    A, corner = torch.rand(20, 375, 500), torch.rand(n, 2) * torch.tensor([300., 200])
    boxes = torch.cat([corner, corner + torch.tensor([150., 120])], 1).floor()
    def slices():
        return torch.stack([A[:, top:bottom, left:right].mean((1, 2)) for left, top, right, bottom in boxes.int().tolist()])
    def integral():
        total = torch.nn.functional.pad(A.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
        left, top, right, bottom = boxes.long().T
        return (total[:, bottom, right] - total[:, top, right] - total[:, bottom, left] + total[:, top, left]).T / (150 * 120)
    torch.testing.assert_close(instance_attention(A, boxes), slices(), atol=1e-5, rtol=1e-4)
    ours = seconds(lambda: instance_attention(A, boxes))
    print(f"\n{n} boxes: {1e3 * ours:.1f} ms; box by box {seconds(slices) / ours:.1f}×, integral image {seconds(integral) / ours:.1f}×")


def test_centres():
    """ImageNet's shape, a batch of 256: loss and move against loops over pictures and classes."""
    features, labels, centres = torch.randn(256, 2048), torch.randint(1000, (256,)), torch.randn(1000, 2048)
    def loop():
        loss = sum(cosine_distance(f, centres[y]) for f, y in zip(features, labels.tolist())) / 256
        moved = centres.clone()
        for k in labels.unique().tolist():
            members = features[labels == k]
            moved[k] -= .5 * (centres[k] - members).sum(0) / (1 + len(members))
        return loss, moved
    torch.testing.assert_close(loop(), (centre_loss(features, labels, centres), move_centres(centres, features, labels)), atol=1e-4, rtol=1e-4)
    ours = seconds(lambda: (centre_loss(features, labels, centres), move_centres(centres, features, labels)))
    print(f"\nloss and centres of a batch: {1e3 * ours:.1f} ms; picture by picture {seconds(loop) / ours:.1f}×")


def test_features_of_a_data_set(toyvoc):
    """Crops of several pictures at once against picture by picture, and what part of it reading takes."""
    data, network = voc_folder(toyvoc, "train", instances=True), new_network("small", tuple("abcdef")).eval()
    def alone():
        return torch.cat([instance_features(network, data.image(i), data.instances(i).boxes, 64) for i in range(len(data))])
    def reading():
        return [np.asarray(data.instances(i).boxes) for i in range(len(data)) if data.image(i) is not None]
    ours = seconds(lambda: features_of(network, data, data.read_instances, 64))
    print(f"\n{len(data)} pictures: {1e3 * ours:.0f} ms; picture by picture {seconds(alone) / ours:.2f}×, reading alone {seconds(reading) / ours:.2f}×")
