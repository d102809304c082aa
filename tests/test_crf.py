"""The fully connected CRF: each engine against another program, a brute force, or numbers worked by hand."""
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.core import DataError
from wsss_nb.crf import ENGINES, active_classes, choose_engine, mean_field
from wsss_nb.lattice import _softmax, build_lattice, lattice_filter
from wsss_nb.lattice_torch import build_tensor_lattice, filter_tensor
from wsss_nb.meanfield import BILATERAL, SMOOTH, Gaussian, lattice_features, unary
from wsss_nb.simplices import _chains, _grown, _number, _place, _simplices, compiled, geometry

OURS = ("numba", "lattice", "exact")
LATTICES = ("numba", "lattice")


def probabilities(C, h, w, seed=0, B=1, coarse=6):
    """Smooth blobs of probability, as a network gives them: a softmax of noise that was drawn small and enlarged."""
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(B, C, h // coarse + 2, w // coarse + 2, generator=g)
    return torch.nn.functional.interpolate(z, (h, w), mode="bilinear", align_corners=True).softmax(1)


def noise(h, w, seed=0, B=1):
    """A picture in which every pixel is drawn for itself."""
    return torch.randint(0, 256, (B, 3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def crops(folder, n, h, w):
    """Windows of real photographs, brought to h×w."""
    files = sorted((folder / "coco_sample" / "images").iterdir())[:n]
    if len(files) < n:
        pytest.skip(f"coco_sample/images holds {len(files)} pictures, {n} are needed")
    pictures = [np.array(Image.open(f).convert("RGB").resize((w, h), Image.Resampling.BILINEAR)) for f in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def reference(H, image, iterations=10, scale=1., epsilon=1e-5):
    """What pydensecrf says, called as its users call it."""
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is an extra: pip install 'wsss_nb[crf]'")
    Q = np.empty(H.shape, np.float32)
    for b, (p, picture) in enumerate(zip(H.numpy(), image.permute(0, 2, 3, 1).numpy())):
        C, h, w = p.shape
        crf = dcrf.DenseCRF2D(w, h, C)
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(p.clip(epsilon, 1)).reshape(C, -1)))
        crf.addPairwiseGaussian(sxy=3 / scale, compat=3)
        crf.addPairwiseBilateral(sxy=80 / scale, srgb=13, rgbim=np.array(picture, order="C"), compat=10)
        Q[b] = np.array(crf.inference(iterations)).reshape(C, h, w)
    return Q


def brute_force(H, image, iterations=10, scale=1., epsilon=1e-5):
    """The same equations in float64, pixel by pixel in plain numpy: no filter, no trick."""
    Q = np.empty(H.shape)
    for b, (p, picture) in enumerate(zip(H.double().numpy(), image.numpy().astype(float))):
        C, h, w = p.shape
        places = [(y, x) for y in range(h) for x in range(w)]
        K = np.zeros((h * w, h * w))
        for weight, sxy, srgb in ((3, 3 / scale, None), (10, 80 / scale, 13)):
            k = np.empty_like(K)
            for i, (y, x) in enumerate(places):
                for j, (v, u) in enumerate(places):
                    distance = ((y - v)**2 + (x - u)**2) / sxy**2
                    if srgb:
                        distance += ((picture[:, y, x] - picture[:, v, u])**2).sum() / srgb**2
                    k[i, j] = math.exp(-distance / 2)
            K += weight * k / np.sqrt(np.outer(k.sum(1), k.sum(1)))
        energy = np.log(p.clip(epsilon)).reshape(C, -1)
        softmax = lambda x: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0)
        q = softmax(energy)
        for _ in range(iterations):
            q = softmax(energy + q @ K)
        Q[b] = q.reshape(C, h, w)
    return Q


def naive_filter(f, x):
    """Adams' permutohedral filter in plain Python: a dictionary of vertices, loops, float64 sums."""
    n, d = f.shape
    scale = [np.float32(float(np.float32(math.sqrt(2 / 3) * (d + 1))) / math.sqrt((i + 1) * (i + 2))) for i in range(d)]
    values, corners = {}, []
    for point, row in zip(f.astype(np.float32), x.astype(float)):
        scaled = [float(v * s) for v, s in zip(point, scale)]
        elevated = [sum(scaled[j:]) - (j * scaled[j - 1] if j else 0) for j in range(d + 1)]
        nearest = [(d + 1) * round(float(e) / (d + 1)) for e in elevated]
        total = sum(nearest) // (d + 1)
        rest = [e - r for e, r in zip(elevated, nearest)]
        rank = [sum(rest[k] > rest[j] or (rest[k] == rest[j] and k < j) for k in range(d + 1)) + total for j in range(d + 1)]
        for j in range(d + 1):
            shift = (d + 1) * ((rank[j] < 0) - (rank[j] > d))
            rank[j], nearest[j] = rank[j] + shift, nearest[j] + shift
        part = [0.] * (d + 2)
        for j in range(d + 1):
            part[d - rank[j]] += (elevated[j] - nearest[j]) / (d + 1)
            part[d + 1 - rank[j]] -= (elevated[j] - nearest[j]) / (d + 1)
        part[0] += 1 + part[d + 1]
        keys = [tuple(nearest[j] + r - (d + 1) * (rank[j] > d - r) for j in range(d + 1)) for r in range(d + 1)]
        corners.append(list(zip(keys, part)))
        for key, w in corners[-1]:
            values[key] = values.get(key, 0) + w * row
    for j in range(d + 1):
        step = [1 - (d + 1) * (k == j) for k in range(d + 1)]
        at = lambda key, sign: values.get(tuple(a + sign * s for a, s in zip(key, step)), 0)
        values = {key: value + .5 * (at(key, 1) + at(key, -1)) for key, value in values.items()}
    return np.array([sum(w * values[key] for key, w in corner) for corner in corners]) / (1 + 2.**-d), len(values)


# ---- the filter -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("d", [2, 5])
def test_filter_equals_a_naive_one(d):
    """Splat, blur and slice of both lattices give the sums of a dictionary with loops, and the same number of vertices."""
    rng = np.random.default_rng(d)
    f, x = rng.uniform(0, 6, (60, d)).astype(np.float32), rng.normal(size=(60, 8)).astype(np.float32)
    one = np.ones((60, 1))
    expected, m = naive_filter(f, x)
    expected /= np.sqrt(naive_filter(f, one)[0])
    norm = 1 / np.sqrt(naive_filter(f, one)[0])
    expected = naive_filter(f, x * norm)[0] * norm * 2.5
    lattice = build_lattice(f, 60, 2.5)
    assert lattice.m == m
    np.testing.assert_allclose(lattice_filter(lattice, x), expected, atol=2e-6)
    tensors = build_tensor_lattice(torch.from_numpy(f)[None], 60, 2.5, [6.] * d)
    assert len(tensors.start) == m + 2
    np.testing.assert_allclose(filter_tensor(tensors, torch.from_numpy(x)), expected, atol=2e-6)


def test_shares_sum_to_one_and_are_positive():
    """A pixel's shares are barycentric coordinates."""
    f = np.random.default_rng(0).uniform(0, 30, (2000, 5)).astype(np.float32)
    g = geometry(f.max(0))
    keys, shares = np.empty((2000, 6), np.int64), np.empty((2000, 6), np.float32)
    _simplices(f, g.scale, g.canonical, g.low, g.stride, keys, shares)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert shares.min() > -1e-5 and 0 <= keys.min() and keys.max() < g.places
    assert all(len(set(row)) == 6 for row in keys.tolist())


def test_hash_table_grows():
    """More vertices than the table began with: each keeps its own number."""
    keys = np.arange(1, 601, dtype=np.int64).reshape(100, 6) * 12345678901
    corner = np.empty((100, 6), np.int32)
    table, vertices = _number(keys, corner)
    assert table.size >= 600 and vertices.tolist() == keys.ravel().tolist() and (corner.ravel() == np.arange(600)).all()
    bigger, room = _grown(table, vertices)
    assert all(bigger[_place(k, bigger, vertices)] == v for v, k in enumerate(vertices.tolist())) and room.size == 1200


def test_chains_by_hand():
    """Keys 10 11 12, and 20 alone: one chain of three along a step of 1, nothing along a step of 100."""
    keys = np.array([[12], [20], [10], [11]], np.int64)
    table, vertices = _number(keys, np.empty((4, 1), np.int32))
    assert vertices.tolist() == [12, 20, 10, 11]
    assert _chains(table, vertices, np.array([1, 100])).tolist() == [2, 3, -1]


def test_softmax_of_the_engine():
    """The polynomial's softmax is numpy's to 1e-6, and holds large and equal numbers."""
    x = np.random.default_rng(0).normal(size=(500, 24)).astype(np.float32) * 10
    x[0], x[1], x[2, 3] = 7, np.linspace(-1e30, 0, 24), 1e4
    e = np.exp(x.astype(float) - x.max(1, keepdims=True))
    _softmax(x)
    np.testing.assert_allclose(x, e / e.sum(1, keepdims=True), atol=1e-6)


# ---- against other programs -------------------------------------------------------------------------------------------

def agreement(Q, expected):
    """Mean absolute difference, and the share of pixels whose strongest class is the same."""
    return np.abs(Q - expected).mean(), (Q.argmax(1) == expected.argmax(1)).mean()


def test_lattices_agree_with_pydensecrf_on_crops(data_folder):
    """20 real crops at 41×41×21, scale 12."""
    image, H = crops(data_folder, 20, 41, 41), probabilities(21, 41, 41, B=20)
    expected = reference(H, image, scale=12)
    for engine in LATTICES:
        difference, same = agreement(mean_field(H, image, scale=12, engine=engine).numpy(), expected)
        assert difference < 1e-6 and same >= .9999, engine


@pytest.mark.parametrize("engine", LATTICES)
def test_lattices_agree_with_pydensecrf_at_full_size(engine, data_folder):
    """Real pictures at 500×375×21: five for numba, one for torch, which takes longer on a CPU."""
    image = crops(data_folder, 5, 375, 500)
    H = probabilities(21, 375, 500, B=5, coarse=40)
    for b in range(5 if engine == "numba" else 1):
        difference, same = agreement(mean_field(H[b:b + 1], image[b:b + 1], engine=engine).numpy(), reference(H[b:b + 1], image[b:b + 1]))
        assert difference < 1e-6 and same >= .9999


PICTURES = {"constant": lambda h, w: torch.full((2, 3, h, w), 200, dtype=torch.uint8), "black": lambda h, w: torch.zeros(2, 3, h, w, dtype=torch.uint8),
            "noise": lambda h, w: noise(h, w, B=2), "two colours": lambda h, w: noise(h, w, B=2) // 128 * 255}


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 500), (7, 9), (13, 13)], ids=str)
@pytest.mark.parametrize("picture", PICTURES)
def test_lattices_agree_with_pydensecrf_on_strange_pictures(picture, size):
    """Any size, constant or few colours; pydensecrf's zero points beside black corners are there too."""
    image, H = PICTURES[picture](*size), probabilities(5, *size, B=2, coarse=3)
    for scale in (1, 12):
        expected = reference(H, image, scale=scale)
        for engine in LATTICES:
            difference, same = agreement(mean_field(H, image, scale=scale, engine=engine).numpy(), expected)
            assert difference < 1e-6 and same >= .9999, (engine, scale)


def test_engine_pydensecrf_is_pydensecrf():
    """Features handed over by us, or made by pydensecrf itself: the same but for the rounding of 32 bits, which differs from machine to machine."""
    image, H = noise(20, 30), probabilities(4, 20, 30)
    np.testing.assert_allclose(mean_field(H, image, scale=2, engine="pydensecrf"), reference(H, image, scale=2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 12])
def test_exact_equals_brute_force(scale):
    """12×12 pixels in float64, to 1e-5, for smooth pictures and noise."""
    smooth = (torch.linspace(0, 120, 12)[:, None] + torch.linspace(0, 60, 12)).to(torch.uint8).expand(1, 3, 12, 12)
    for image in (smooth, noise(12, 12)):
        H = probabilities(6, 12, 12, coarse=3)
        expected = brute_force(H, image, scale=scale)
        np.testing.assert_allclose(mean_field(H, image, scale=scale, engine="exact"), expected, atol=1e-5)
        np.testing.assert_allclose(mean_field(H.double(), image, scale=scale, engine="exact"), expected, atol=1e-10)


def test_exact_turns_with_the_picture():
    """Mirror or transpose everything, and the result is mirrored or transposed."""
    image, H = noise(41, 41, B=2) // 16 * 16, probabilities(7, 41, 41, B=2)
    Q = mean_field(H, image, scale=12, engine="exact")
    for turn in (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.mT):
        torch.testing.assert_close(mean_field(turn(H).contiguous(), turn(image).contiguous(), scale=12, engine="exact"), turn(Q), atol=1e-5, rtol=0)


# ---- by hand ------------------------------------------------------------------------------------------------------------

def test_two_pixels_by_hand():
    """1×2 pixels of one colour, only the smoothness kernel: K = [[1, a], [a, 1]], rows sum to 1+a, so K/(1+a) with weight 3."""
    a = math.exp(-.5 / 9)                        # distance 1, sxy 3
    H = torch.tensor([[.8, .4], [.2, .6]]).view(1, 2, 1, 2)
    logit = lambda i, s: math.log(H[0, 1, 0, i] / H[0, 0, 0, i]) + 3 / (1 + a) * s
    message = lambda q, i: (2 * q[i] - 1) + a * (2 * q[1 - i] - 1)          # class 1 minus class 0
    q = [.2, .6]
    for _ in range(2):
        q = [1 / (1 + math.exp(-logit(i, message(q, i)))) for i in range(2)]
    Q = mean_field(H, torch.zeros(1, 3, 1, 2, dtype=torch.uint8), 2, engine="exact", bilateral=Gaussian(80, 0, 13))
    np.testing.assert_allclose(Q[0, 1, 0], q, atol=1e-6)


@pytest.mark.parametrize("engine", OURS)
def test_what_must_not_change(engine):
    """Uniform stays uniform, no iteration returns H, weights of 0 return H, a class order is only an order."""
    image, H, uniform = noise(9, 11), probabilities(5, 9, 11), torch.full((1, 5, 9, 11), .2)
    run = lambda H, *rest, **options: mean_field(H, image, *rest, engine=engine, **options)
    torch.testing.assert_close(run(uniform), uniform)
    torch.testing.assert_close(run(H, 0), H, atol=1e-6, rtol=0)
    torch.testing.assert_close(run(H, smooth=Gaussian(3, 0), bilateral=Gaussian(80, 0, 13)), H, atol=1e-6, rtol=0)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(run(H[:, order]), run(H)[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", OURS)
def test_batch_is_image_by_image(engine):
    """What comes out for an image does not depend on the others, nor on the number of threads."""
    image, H = noise(12, 17, B=3), probabilities(4, 12, 17, B=3)
    Q = mean_field(H, image, scale=4, engine=engine, threads=2)
    for b in range(3):
        torch.testing.assert_close(mean_field(H[b:b + 1], image[b:b + 1], scale=4, engine=engine, threads=1), Q[b:b + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("engine", [*OURS, "pydensecrf"])
def test_active_classes(engine):
    """Classes that stay below the threshold get 0; the others are what mean field makes of them alone."""
    if engine == "pydensecrf":
        pytest.importorskip("pydensecrf", reason="pydensecrf is an extra")
    image, H = noise(10, 10, B=2), probabilities(6, 10, 10, B=2, coarse=3)
    H[0, 4:], H[1, 1] = 1e-4, 1e-3
    H /= H.sum(1, keepdim=True)
    assert active_classes(H, .01).tolist() == [[True] * 4 + [False] * 2, [True, False] + [True] * 4]
    Q = mean_field(H, image, engine=engine, classes_above=.01)
    assert not Q[0, 4:].any() and not Q[1, 1].any()
    for b, part in enumerate(([0, 1, 2, 3], [0, 2, 3, 4, 5])):
        alone = H[b:b + 1, part] / H[b:b + 1, part].sum(1, keepdim=True)
        torch.testing.assert_close(mean_field(alone, image[b:b + 1], engine=engine)[0], Q[b, part], atol=1e-4, rtol=0)
    assert active_classes(torch.full((1, 200, 2, 2), .005), .01).any()      # the strongest one in any case


def test_p_instead_of_log_p_changes_classes():
    """The slip in DSRG's code: probabilities handed over as if they were −energies."""
    image, H = noise(20, 20) // 64 * 64, probabilities(5, 20, 20, coarse=5)
    right = mean_field(H, image, scale=12, engine="exact")
    slip = mean_field(H.softmax(1), image, scale=12, engine="exact")          # log softmax(p) = p − constant
    assert (right.argmax(1) != slip.argmax(1)).float().mean() > .02


@pytest.mark.parametrize("engine", OURS)
def test_arguments_stay_and_carry_no_gradient(engine):
    """Inputs are not written to; requires_grad is accepted and ends here; autocast does not shorten numbers; dtype and strides are free."""
    image, H = noise(8, 6), probabilities(3, 8, 6).requires_grad_()
    before = H.detach().clone(), image.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Q = mean_field(H, image, engine=engine)
    assert torch.equal(H, before[0]) and torch.equal(image, before[1]) and not Q.requires_grad and Q.dtype == torch.float32
    torch.testing.assert_close(mean_field(H.detach(), image, engine=engine), Q)
    strided = H.detach().mT.contiguous().mT, image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(mean_field(*strided, engine=engine), Q)
    assert mean_field(H.detach().double(), image, engine=engine).dtype == torch.float64


# ---- refusals -----------------------------------------------------------------------------------------------------------

def bad_inputs():
    """(what is wrong, arguments, words of the message)."""
    H, image = probabilities(3, 4, 5), noise(4, 5)
    negative = H.clone()
    negative[0, :2, 0, 0] += torch.tensor([1, -1.])
    return [("negative", dict(H=negative), "minimum"), ("sum", dict(H=2 * H), "sum to 1"), ("nan", dict(H=H * torch.nan), "probabilities"),
            ("logits", dict(H=H.log()), "softmax"), ("half", dict(H=H.half()), "float32"), ("size", dict(H=probabilities(3, 5, 4)), "other's size"),
            ("batch", dict(image=noise(4, 5, B=2)), "image (2, 3, 4, 5)"), ("float image", dict(image=image / 255), "uint8"),
            ("channels last", dict(image=image.permute(0, 2, 3, 1)), "permute(2, 0, 1)"), ("grey", dict(image=image[:, :1]), "(B,3,h,w)"),
            ("one picture", dict(image=image[0]), "(B,3,h,w)"), ("empty", dict(H=H[:0], image=image[:0]), "empty"),
            ("engine", dict(engine="latice"), "did you mean 'lattice'"), ("engine name", dict(engine="densecrf"), "did you mean 'pydensecrf'"),
            ("engine None", dict(engine=None), "one of auto"), ("iterations", dict(iterations=-1), "iterations"),
            ("iterations float", dict(iterations=2.5), "whole number"), ("scale", dict(scale=0), "scale is 0"), ("scale nan", dict(scale=math.nan), "scale is nan"),
            ("epsilon", dict(epsilon=0), "epsilon"), ("threshold", dict(classes_above=1.5), "classes_above")]


@pytest.mark.parametrize("change, words", [case[1:] for case in bad_inputs()], ids=[case[0] for case in bad_inputs()])
def test_bad_input_is_refused(change, words):
    """One line that names what was found and the mend."""
    with pytest.raises(DataError) as error:
        mean_field(**dict(H=probabilities(3, 4, 5), image=noise(4, 5)) | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_exact_refuses_what_does_not_fit():
    """A kernel of 2000×3000 pixels would take terabytes; the message names size and engine, before memory is touched."""
    H = torch.full((1, 2, 1, 1), .5).expand(1, 2, 2000, 3000)
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, 2000, 3000)
    with pytest.raises(DataError, match="2000×3000.*lattice"):
        mean_field(H, image, engine="exact")


def test_kernels_refuse_nonsense():
    """A Gaussian has positive widths; a lattice too fine for an int64 is refused."""
    for wrong in (dict(sxy=0, weight=1), dict(sxy=-1, weight=1), dict(sxy=3, weight=-1), dict(sxy=3, weight=1, srgb=0), dict(sxy=math.nan, weight=1)):
        with pytest.raises(DataError, match="of a Gaussian"):
            Gaussian(**wrong)
    with pytest.raises(DataError, match="too fine"):
        mean_field(probabilities(2, 3, 3), noise(3, 3), bilateral=Gaussian(1e-4, 1, 1e-3), engine="numba")


def test_missing_pydensecrf_is_explained(monkeypatch):
    """Without the extra the message names it."""
    monkeypatch.setattr("wsss_nb.crf.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"wsss_nb\[crf\]"):
        mean_field(probabilities(2, 3, 3), noise(3, 3), engine="pydensecrf")


def test_auto():
    """numba on a CPU; on a GPU exact for small maps and lattice for large ones."""
    assert choose_engine("auto", 41, 41, torch.device("cpu")) == "numba"
    assert choose_engine("auto", 41, 41, torch.device("cuda")) == "exact"
    assert choose_engine("auto", 375, 500, torch.device("cuda")) == "lattice"
    assert all(choose_engine(name, 9, 9, torch.device("cpu")) == name for name in ENGINES)


def test_defaults_are_the_papers():
    """Krähenbühl and Koltun's, as SEC and DeepLab use them."""
    assert (SMOOTH, BILATERAL) == (Gaussian(3, 3), Gaussian(80, 10, 13)) and BILATERAL.scaled(12).sxy == 80 / 12
    torch.testing.assert_close(unary(torch.tensor([1., .5, 0.])), torch.tensor([0, math.log(2), 5 * math.log(10)]))


def test_zero_points_fill_blocks_of_four():
    """pydensecrf works on four pixels at a time and fills the last four with zeros; so do the features."""
    f = lattice_features(torch.full((2, 3, 1, 5), 26, dtype=torch.uint8), Gaussian(2, 1, 13))
    assert f.shape == (2, 8, 5) and f[1, 4].tolist() == [2, 0, 2, 2, 2] and not f[:, 5:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("engine", ["lattice", "exact"])
def test_gpu_equals_cpu(engine):
    """The same numbers on the other device."""
    image, H = noise(41, 41, B=3) // 32 * 32, probabilities(21, 41, 41, B=3)
    Q = mean_field(H.cuda(), image.cuda(), scale=12, engine=engine)
    assert Q.is_cuda
    torch.testing.assert_close(Q.cpu(), mean_field(H, image, scale=12, engine=engine), atol=1e-4, rtol=0)


@pytest.mark.parametrize("threads", [1, None, 4])
def test_callers_in_several_threads(threads):
    """Eight threads that each call the numba engine get what one gets alone."""
    jobs = [(probabilities(5, 20 + k, 31, seed=k), noise(20 + k, 31, seed=k)) for k in range(12)]
    alone = [mean_field(*job, scale=4, engine="numba", threads=1) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: mean_field(*job, scale=4, engine="numba", threads=threads), jobs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_no_folder_for_machine_code(monkeypatch):
    """Where nothing can be written numba refuses to cache, and the function is compiled all the same."""
    refuse = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("cannot cache function: no locator available"))
    monkeypatch.setattr("numba.core.caching.FunctionCache.__init__", refuse)
    assert compiled()(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(threads):
    """No silent default."""
    with pytest.raises(DataError, match="threads is"):
        mean_field(probabilities(3, 4, 5), noise(4, 5), threads=threads)
