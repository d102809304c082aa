"""Lesson 12a: superpixels, their means and their neighbours, against loops and hand calculation."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsss_nb.core import DataError, generator
from wsss_nb.superpixels import border_superpixels, enlarge, felzenszwalb, neighbours, shrink, slic, spread, superpixel_means


def noise(h: int, w: int) -> np.ndarray:
    """A picture without any region."""
    return generator(0, "noise", h, w).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("cut", [felzenszwalb, slic])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (60, 90)])
def test_numbers_have_no_gaps(cut, size):
    """0…n-1, each used, at the size of the picture, the same every time."""
    found = cut(noise(*size))
    assert found.shape == size and np.array_equal(np.unique(found), np.arange(found.max() + 1))
    assert np.array_equal(found, cut(noise(*size)))


@pytest.mark.parametrize("cut", [felzenszwalb, slic])
def test_large_pictures_are_cut_small(cut):
    """2000×3000 pixels: the regions are those of the smaller picture, enlarged."""
    image = np.kron(noise(8, 12), np.ones((250, 250, 1), np.uint8))
    found = cut(image, longest=300)
    assert found.shape == (2000, 3000)
    assert np.array_equal(found, enlarge(cut(shrink(image, 300)), (2000, 3000)))


def test_two_halves_are_two_regions():
    """A picture of two flat halves is cut along the middle."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    assert np.array_equal(felzenszwalb(image, sigma=0.), np.repeat([[0] * 30 + [1] * 30], 40, 0))


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_wrong_pictures_are_refused(bad):
    """Floats, grey, four channels and nothing at all."""
    for cut in (felzenszwalb, slic):
        with pytest.raises(DataError, match="uint8"):
            cut(bad)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 12))
def test_means_equal_a_loop(seed, h, w, D, n):
    """numpy, one tensor and a batch: each region's mean; 0 for numbers without a pixel."""
    rng = np.random.default_rng(seed)
    maps, segments = rng.normal(size=(2, D, h, w)), rng.integers(0, n, (2, h, w))
    expected = np.array([[[plane[s == k].mean() if (s == k).any() else 0 for k in range(n)] for plane in m] for m, s in zip(maps, segments)])
    for b in range(2):
        np.testing.assert_allclose(superpixel_means(maps[b], segments[b], n), expected[b], atol=1e-12)
        np.testing.assert_allclose(superpixel_means(torch.tensor(maps[b]), torch.tensor(segments[b]), n), expected[b], atol=1e-12)
    means = superpixel_means(torch.tensor(maps), torch.tensor(segments), n)
    np.testing.assert_allclose(means, expected, atol=1e-12)
    painted = spread(means, torch.tensor(segments)).numpy()
    for b, y, x in np.ndindex(2, h, w):
        np.testing.assert_allclose(painted[b, :, y, x], expected[b, :, segments[b, y, x]], atol=1e-12)
    assert np.allclose(spread(superpixel_means(maps[0], segments[0]), segments[0]), painted[0])


def test_means_keep_float32_exact_enough():
    """A mean over a million float32 values near 1 is right to the last digits."""
    maps = torch.full((1, 1, 1000, 1000), 1.1)
    assert abs(float(superpixel_means(maps, torch.zeros(1, 1000, 1000, dtype=torch.int64), 1)[0, 0, 0]) - 1.1) < 1e-6


def test_means_refuse_other_sizes():
    """Segments of another picture."""
    with pytest.raises(DataError, match=r"\(1, 4, 4\).*\(4, 5\)"):
        superpixel_means(np.zeros((1, 4, 4)), np.zeros((4, 5), int))


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.booleans())
def test_neighbours_equal_a_loop(seed, h, w, corners):
    """Every pair of touching pixels, looked at one by one."""
    s = np.random.default_rng(seed).integers(0, 5, (h, w))
    steps = [(0, 1), (1, 0)] + [(1, 1), (1, -1)] * corners
    pairs = {tuple(sorted((int(s[y, x]), int(s[y + dy, x + dx])))) for y in range(h) for x in range(w) for dy, dx in steps
             if y + dy < h and 0 <= x + dx < w and s[y, x] != s[y + dy, x + dx]}
    assert [tuple(p) for p in neighbours(s, corners).tolist()] == sorted(pairs)
    at_border = {int(s[y, x]) for y in range(h) for x in range(w) if y in (0, h - 1) or x in (0, w - 1)}
    assert border_superpixels(s).tolist() == sorted(at_border)


def test_shrink_averages_and_enlarge_repeats():
    """By hand."""
    assert shrink(np.array([[[0] * 3, [10] * 3, [4] * 3, [6] * 3]], np.uint8), 2)[..., 0].tolist() == [[5, 5]]
    assert enlarge(np.array([[1, 2], [3, 4]]), (3, 4)).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]   # the middle row's centre is on the edge, which belongs below
    assert enlarge(np.arange(12).reshape(3, 4), (1, 2)).shape == (1, 2)


@pytest.mark.parametrize("call", [lambda x: slic(x, 0), lambda x: slic(x, compactness=0), lambda x: slic(x, longest=0), lambda x: felzenszwalb(x, scale=float("nan")),
                                  lambda x: felzenszwalb(x, sigma=-1), lambda x: felzenszwalb(x.tolist())])
def test_nonsense_settings_are_refused(call):
    """No region, no size, no picture."""
    with pytest.raises(DataError, match="To mend it"):
        call(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize("wrong", [lambda s: s - 1, lambda s: s.astype(float), lambda s: s[:0]])
def test_superpixels_are_numbered_from_zero(wrong):
    """Negative numbers and fractions name no superpixel."""
    segments = wrong(np.zeros((4, 5), int))
    with pytest.raises(DataError, match="To mend it"):
        superpixel_means(np.ones((1, *segments.shape)), segments)
