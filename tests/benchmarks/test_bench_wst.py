"""What learning from twelve seeds costs, against the ways one would write it first. Asserts no time.

    pytest tests/benchmarks/test_bench_wst.py -s
    python tests/benchmarks/test_bench_wst.py

12 seeds × 16 pictures × 21 classes × 41×41, forward and backward, on one thread and on all; every set of times is measured
alternately, and the ratio printed is that of the best of each. All ways give the same loss and gradient, which is asserted.
"""
import time

import pytest
import torch
from torch.nn.functional import cross_entropy, nll_loss

from wsss_nb.core import generator
from wsss_nb.losses import minus_log
from wsss_nb.wst import fold_by_counting, fold_by_loop, multi_seed_loss, seed_shares

VOID = 255
K, B, N, SIDE = 12, 16, 21, 41


def batch(alike: float, dtype=torch.float32):
    """Logits, and seeds of which a fifth says nothing and a share repeats the network's class."""
    rng = generator(0, "bench", int(100 * alike))
    logits = torch.from_numpy(rng.normal(size=(B, N, SIDE, SIDE)) * 2).to(dtype)
    S = torch.from_numpy(rng.integers(0, N, (B, K, SIDE, SIDE)))
    S = torch.where(torch.from_numpy(rng.random(S.shape) < alike), logits.argmax(1, keepdim=True), S)
    return logits, S.masked_fill(torch.from_numpy(rng.random(S.shape) < .2), VOID).to(torch.uint8)


def weights(H, S):
    """A softmax over whether a seed agrees."""
    return (S == H.detach().argmax(1, keepdim=True)).to(H.dtype).softmax(1)


def seed_by_seed(H, S):
    """Torch's cross-entropy for each seed, each with its own logarithm."""
    w = weights(H, S)
    return sum((w[:, k] * nll_loss(H.log(), S[:, k].long(), ignore_index=VOID, reduction="none")).mean() for k in range(S.shape[1]))


def one_logarithm(H, S):
    """The logarithm once, then seed by seed what its labels pick."""
    w, logs, known = weights(H, S), minus_log(H), S != VOID
    return sum((w[:, k] * logs.gather(1, torch.where(known[:, k], S[:, k].long(), 0)[:, None])[:, 0] * known[:, k]).mean() for k in range(S.shape[1]))


def all_at_once(H, S):
    """No loop: what all labels pick, in one gather."""
    known = S != VOID
    return (weights(H, S) * minus_log(H.gather(1, torch.where(known, S, 0).long())) * known).sum() / S[:, 0].numel()


def by_counting(H, S):
    """The road for GPUs."""
    return (fold_by_counting(H.detach(), S, *seed_shares(S.shape[1], 1., H.dtype, H.device)) * minus_log(H)).sum() / S[:, 0].numel()


WAYS = {"here": multi_seed_loss, "seed by seed": seed_by_seed, "seed by seed, one logarithm": one_logarithm, "all seeds in one gather": all_at_once,
        "folded by counting": by_counting}


def alternately(calls, rounds=8, wait=lambda: None):
    """The best seconds of each."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for k, call in enumerate(calls):
            wait()
            start = time.perf_counter()
            call()
            wait()
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def learning(way, H, S):
    """Forward and backward, to the probabilities."""
    return lambda: torch.autograd.grad(way(H, S), H)[0]


@pytest.mark.parametrize("alike", [0., .8])
@pytest.mark.parametrize("threads", [1, None])
def test_ratio_to_the_loops(alike, threads):
    """Print the milliseconds, and how many times as long the other ways take."""
    exact, labels = batch(alike, torch.float64)
    want = multi_seed_loss(exact.softmax(1), labels)
    for way in WAYS.values():
        torch.testing.assert_close(way(exact.softmax(1), labels), want, rtol=1e-10, atol=0)
    logits, S = batch(alike)
    H, before = logits.softmax(1).requires_grad_(), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        calls = [learning(way, H, S) for way in WAYS.values()]
        for call in calls:
            torch.testing.assert_close(call(), calls[0](), rtol=1e-4, atol=1e-7)
        ours, *others = alternately(calls)
    finally:
        torch.set_num_threads(before)
    print(f"\n{alike:.0%} of the labels agree, {threads or before} threads: {1e3 * ours:.1f} ms; " + ", ".join(f"{name} {took / ours:.1f} times" for name, took in zip(list(WAYS)[1:], others)))


def test_parts():
    """Where the time goes, and what one seed with torch's fused cross-entropy on logits costs."""
    logits, S = batch(.8)
    H, table = logits.softmax(1).requires_grad_(), seed_shares(K, 1., torch.float32)
    y = fold_by_loop(H.detach(), S, *table)
    free = logits.clone().requires_grad_()
    parts = {"folding": lambda: fold_by_loop(H.detach(), S, *table), "logarithm and gradient": lambda: torch.autograd.grad((y * minus_log(H)).sum(), H),
             "plain cross-entropy with one seed": lambda: torch.autograd.grad(cross_entropy(free, S[:, 0].long(), ignore_index=VOID), free)}
    print("\n" + ", ".join(f"{name} {1e3 * took:.1f} ms" for name, took in zip(parts, alternately(list(parts.values())))))


def test_gpu():
    """The same on a GPU."""
    if not torch.cuda.is_available():
        print("\nno GPU here, nothing measured")
        return
    logits, S = (x.cuda() for x in batch(.8))
    H = logits.softmax(1).requires_grad_()
    ways = {name: way for name, way in WAYS.items() if name != "folded by counting"}
    ours, *others = alternately([learning(way, H, S) for way in ways.values()], wait=torch.cuda.synchronize)
    print(f"\non {torch.cuda.get_device_name()}: {1e3 * ours:.2f} ms; " + ", ".join(f"{name} {took / ours:.1f} times" for name, took in zip(list(ways)[1:], others)))


if __name__ == "__main__":
    for alike in (0., .8):
        for threads in (1, None):
            test_ratio_to_the_loops(alike, threads)
    test_parts()
    test_gpu()
