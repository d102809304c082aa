"""What the losses cost, against the way they are usually written. Asserts no time.

    pytest tests/benchmarks/test_bench_losses.py -s
"""
import time

import torch
from torch.nn.functional import one_hot

from wsss_nb.losses import balanced_seeding_loss, boundary_loss, expansion_loss, pixel_loss, seeding_loss

B, N, SIDE, VOID = 20, 21, 41, 255


def batch():
    """Probabilities with gradient, a second opinion, labels of which half are unlabelled, tags: DSRG's shapes."""
    torch.manual_seed(0)
    H, Q = (torch.randn(B, N, SIDE, SIDE).softmax(1) for _ in range(2))
    S = torch.randint(0, N, (B, SIDE, SIDE))
    S[torch.rand(S.shape) < .5] = VOID
    return H.requires_grad_(), Q, S, torch.rand(B, N - 1) < .1


def seconds(call, times: int = 5) -> float:
    """The best of a few forward and backward passes."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call().backward()
        best = min(best, time.perf_counter() - start)
    return best


def usual_seeding(H, S):
    """A map for each class, as the authors' files hold labels, and the logarithm of everything."""
    labels = one_hot(S.clamp(max=N), N + 1)[..., :N].movedim(-1, 1).float()
    return -((labels * H.log()).sum((1, 2, 3)) / labels.sum((1, 2, 3))).mean()


def loop_seeding(H, S):
    """Class by class and picture by picture."""
    total = 0.
    for h, s in zip(H, S):
        total = total - sum(h[c][s == c].log().sum() for c in range(N)) / (s != VOID).sum()
    return total / len(H)


def test_ratio_to_the_usual_ways():
    """Seeding on 20 pictures of 41×41 with 21 classes, forward and backward; the values are equal."""
    H, Q, S, T = batch()
    ours = seconds(lambda: seeding_loss(H, S))
    for name, usual in {"a map for each class": usual_seeding, "class by class": loop_seeding}.items():
        torch.testing.assert_close(usual(H, S), seeding_loss(H, S))
        took = seconds(lambda usual=usual: usual(H, S))
        print(f"\nseeding, {name}: {1e3 * took:.1f} ms, here {1e3 * ours:.1f} ms, {took / ours:.1f} times as fast", end="")
    for loss, second in ((balanced_seeding_loss, S), (pixel_loss, S), (boundary_loss, Q), (expansion_loss, T)):
        print(f"\n{loss.__name__}: {1e3 * seconds(lambda loss=loss, second=second: loss(H, second)):.1f} ms", end="")


def test_bench_balanced_seeding(benchmark):
    """For pytest-benchmark's table."""
    H, _, S, _ = batch()
    benchmark.pedantic(balanced_seeding_loss, (H, S), rounds=20, warmup_rounds=2)
