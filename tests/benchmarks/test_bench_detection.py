"""How many pictures a second Mask R-CNN learns from, and what of it is resizing. Asserts no time.

    pytest tests/benchmarks/test_bench_detection.py -s
"""
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsss_nb.core import generator
from wsss_nb.detection import COCO_1X, TOY_DETECTOR, detect, detect_many, detection_losses, detection_set, join_pictures
from wsss_nb.rcnn import bare_rcnn
from wsss_nb.tagged import Instances, TaggedImages, mask_boxes


class Drawn(TaggedImages):
    """Pictures of one size made from noise: what is in them costs nothing and changes nothing."""
    size = (480, 640)

    def image(self, i):
        return generator(0, "picture", i).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def proxies(self, name):
        """Seven ellipses, as many as COCO has objects in a picture, as a detector would hand them over."""
        (h, w), rng = self.size, generator(0, "proxies", int(name))
        y, x = np.mgrid[:h, :w]
        masks = np.stack([((y - rng.uniform(0, h)) / (h * rng.uniform(.05, .3)))**2 + ((x - rng.uniform(0, w)) / (w * rng.uniform(.05, .3)))**2 < 1 for _ in range(7)])
        return Instances(masks, mask_boxes(masks), rng.integers(1, len(self.classes) + 1, 7), rng.random(7))


def drawn(n, size, n_classes):
    """So many pictures of this size."""
    data = Drawn(tuple(f"c{k}" for k in range(n_classes)), tuple(map(str, range(n))), np.ones((n, n_classes), bool), None)
    object.__setattr__(data, "size", size)
    return data


def batches_of(data, network, preset, batch):
    """The batches of an epoch, read ahead so that only the network is timed, and the seconds a picture took to read."""
    pictures = detection_set(data, data.proxies, network, preset)
    start = time.perf_counter()
    items = [pictures[0, i] for i in range(len(data))]
    seconds = (time.perf_counter() - start) / len(data)
    return [join_pictures(items[k:k + batch], network.transform.size_divisible) for k in range(0, len(items), batch)], seconds


def pictures_a_second(network, batches, device, amp, times=3):
    """Whole updates: forward, five losses, backward, a step; the first round warms up."""
    network.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-4)
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for round_ in range(times + 1):
        if round_ == 1:
            wait()
            start = time.perf_counter()
        for batch in batches:
            batch = batch.to(device)
            batch = replace(batch, image=batch.image.contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
                losses = detection_losses(network, batch)
            sum(losses.values()).backward()
            optimiser.step()
    wait()
    return times * sum(map(len, batches)) / (time.perf_counter() - start)


def test_throughput_on_a_gpu():
    """ResNet-50 with a pyramid, 80 classes, pictures of 480×640 shown at 800×1067, seven proxies in each: float32 against bfloat16."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: the throughput at COCO's size is measured where one is; the small twin below runs everywhere")
    data = drawn(16, (480, 640), 80)
    rates = {}
    for amp in (False, True):
        network = bare_rcnn("resnet50", 80, frozen=True)
        read, seconds = batches_of(data, network, COCO_1X, 8)
        rates[amp] = pictures_a_second(network, read, "cuda", amp)
    print(f"\n{torch.cuda.get_device_name()}: {rates[False]:.1f} pictures/s in float32, {rates[True]:.1f} in bfloat16, {rates[True] / rates[False]:.2f} times; "
          f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at batch 8; reading takes {seconds * 1e3:.0f} ms a picture, {rates[True] * seconds:.1f} workers keep up")
    assert min(rates.values()) > 0


def test_throughput_twin():
    """The same on the CPU with the small network at ToyVOC's size."""
    data, network = drawn(8, (128, 176), 6), bare_rcnn("small", 6)
    read, seconds = batches_of(data, network, TOY_DETECTOR, 4)
    rate = pictures_a_second(network, read, "cpu", False, times=2)
    print(f"\nsmall network on {torch.get_num_threads()} threads: {rate:.1f} pictures/s learned from; reading takes {seconds * 1e3:.1f} ms, {rate * seconds:.0%} of it")
    assert rate > 0


def test_resizing_outside_the_loop():
    """Torchvision's own entry resizes pictures and masks inside each update; ours has it done by the reader."""
    data, network = drawn(8, (240, 320), 6), bare_rcnn("small", 6).train()
    pictures = [torch.from_numpy(data.image(i)).permute(2, 0, 1) / 255 for i in range(8)]
    truth = [{"boxes": torch.from_numpy(f.boxes), "labels": torch.from_numpy(f.classes), "masks": torch.from_numpy(f.masks.astype(np.uint8))}
             for f in map(data.proxies, data.ids)]
    (batch,), _ = batches_of(data, network, TOY_DETECTOR, 8)
    seconds = {}
    for name, run in {"theirs": lambda: network(pictures, truth), "ours": lambda: detection_losses(network, batch)}.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            sum(run().values()).backward()
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    print(f"\nan update's forward and backward with resizing {1e3 * seconds['theirs']:.0f} ms, without {1e3 * seconds['ours']:.0f} ms: "
          f"{seconds['theirs'] / seconds['ours']:.2f} times")
    assert min(seconds.values()) > 0


def test_detecting_together():
    """Eight pictures at once against one after the other."""
    data, network = drawn(8, (128, 176), 6), bare_rcnn("small", 1).eval()
    images = [data.image(i) for i in range(8)]
    seconds = {}
    for name, run in {"alone": lambda: [detect(network, image) for image in images], "together": lambda: detect_many(network, images)}.items():
        run()
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    print(f"\n{1e3 * seconds['alone'] / 8:.1f} ms a picture alone, {1e3 * seconds['together'] / 8:.1f} together: {seconds['alone'] / seconds['together']:.2f} times as fast")
    assert min(seconds.values()) > 0
