"""Lesson 12b: robust background detection, stored maps, and the classifier's own features."""
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.core import DataError, generator
from wsss_nb.saliency import (
    ColourGraph,
    background_contrast,
    background_weight,
    boundary_connectivity,
    colour_graph,
    feature_background,
    least_squares,
    robust_background,
    saliency_folder,
    smoothness,
    stretch,
)
from wsss_nb.voc import voc_folder


def random_graph(n: int = 9, seed: int = 0) -> ColourGraph:
    """Points in a line of colours, linked in a ring with two chords."""
    rng = np.random.default_rng(seed)
    colours, links = rng.random((n, 3)) * 30, np.zeros((n, n), bool)
    for a, b in [(k, (k + 1) % n) for k in range(n)] + [(0, n // 2), (1, n - 2)]:
        links[a, b] = links[b, a] = True
    border = np.isin(np.arange(n), (0, 2, 5))      # no two of them linked
    return ColourGraph(np.linalg.norm(colours[:, None] - colours, axis=2), links, rng.random((n, 2)), border)


def usual_difference(graph: ColourGraph) -> float:
    """What a superpixel differs from the most similar one within two steps, on average."""
    n, least = len(graph.links), []
    for p in range(n):
        near = {q for q in range(n) if graph.links[p, q] or any(graph.links[p, r] and graph.links[r, q] for r in range(n))} - {p}
        least.append(min(graph.distance[p, q] for q in near))
    return float(np.mean(least))


@pytest.mark.parametrize("seed", range(3))
def test_connectivity_equals_all_paths(seed):
    """Geodesic distances by trying every path without a loop, then the two sums and the root."""
    graph, sigma = random_graph(7, seed), 7.
    n, usual = 7, usual_difference(graph)
    step = lambda p, q: max(graph.distance[p, q] - usual, 0) if graph.links[p, q] or graph.border[p] and graph.border[q] else np.inf
    geodesic = np.zeros((n, n))
    for p, q in itertools.permutations(range(n), 2):
        rest = [r for r in range(n) if r not in (p, q)]
        paths = ((p, *middle, q) for k in range(n - 1) for middle in itertools.permutations(rest, k))
        geodesic[p, q] = min(sum(step(a, b) for a, b in zip(path, path[1:])) for path in paths)
    weight = np.where(geodesic > 3 * sigma, 0, np.exp(-geodesic**2 / (2 * sigma**2)))
    expected = [weight[p][graph.border].sum() / weight[p].sum() ** .5 for p in range(n)]
    np.testing.assert_allclose(boundary_connectivity(graph, sigma), expected, atol=1e-12)


def test_graph_by_hand():
    """Black beside white: 100 apart in Lab. Place is the mean row and column over height and width."""
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 2:] = 255
    graph = colour_graph(image, np.array([[0, 0, 1, 1]] * 2))
    np.testing.assert_allclose(graph.distance, [[0, 100], [100, 0]], atol=1e-3)
    np.testing.assert_allclose(graph.place, [[.25, .125], [.25, .625]])
    assert graph.links.tolist() == [[False, True], [True, False]] and graph.border.all()


def test_a_step_of_no_difference_is_free():
    """Superpixels of one colour reach each other: the distance 0 is a link, not a missing one."""
    links = np.zeros((3, 3), bool)
    links[0, 1] = links[1, 0] = links[1, 2] = links[2, 1] = True
    graph = ColourGraph(np.zeros((3, 3)), links, np.zeros((3, 2)), np.array([True, False, False]))
    np.testing.assert_allclose(boundary_connectivity(graph), [1 / 3**.5] * 3)


def test_contrast_equals_a_loop():
    """Colour × nearness × background weight, summed; stretched; below Otsu's threshold zero."""
    graph = random_graph(9, 5)
    weight = background_weight(boundary_connectivity(graph))
    raw = np.zeros(9)
    for p in range(9):
        for q in range(9):
            d = np.hypot(*(graph.place[p] - graph.place[q]))
            raw[p] += graph.distance[p, q] * np.exp(-d**2 / (2 * .4**2)) * (d <= 1.2) * weight[q]
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    found = background_contrast(graph, weight)
    assert ((found == 0) | np.isclose(found, scaled)).all() and found.max() == 1
    assert found[scaled.argsort()[-1]] == 1 and (found == 0).sum() > 1
    assert scaled[found == 0].max() < found[found > 0].min()      # one threshold separates them


def test_least_squares_is_the_minimum():
    """The gradient of eq. 9, by finite differences of the written-out sums, is zero."""
    graph = random_graph(8, 3)
    rng = np.random.default_rng(0)
    background, foreground, W = rng.random(8), rng.random(8), smoothness(graph)
    assert (W == W.T).all() and (W.diagonal() == 0).all()

    def cost(s):
        pairs = sum(W[p, q] * (s[p] - s[q]) ** 2 for p in range(8) for q in range(p))
        return sum(background[p] * s[p] ** 2 + foreground[p] * (s[p] - 1) ** 2 for p in range(8)) + pairs
    s = least_squares(background, foreground, W)
    for p in range(8):
        step = np.eye(8)[p] * 1e-4
        assert abs(cost(s + step) - cost(s - step)) < 1e-9
    np.testing.assert_allclose(least_squares(np.array([3., 1]), np.array([1., 1]), np.zeros((2, 2))), [1 / 4, 1 / 2])


def test_smoothness_links_two_steps_and_the_border():
    """A chain of four, ends at the border: ends are a pair, neighbours have μ more, three steps are none."""
    links = np.eye(5, k=1, dtype=bool) | np.eye(5, k=-1, dtype=bool)
    W = smoothness(ColourGraph(np.zeros((5, 5)), links, np.zeros((5, 2)), np.array([True, False, False, False, True])))
    np.testing.assert_allclose(W[0], [0, 1.1, 1, 0, 1])


def test_an_object_in_the_middle_stands_out():
    """A red square on a noisy grey meadow; and the same square cut by the border still does, its meadow does not."""
    for left in (40, 0):
        image = (90 + generator(0, "meadow").normal(0, 4, (100, 120, 3))).astype(np.uint8)
        image[30:70, left:left + 40] = [200, 40, 40]
        s = robust_background(image)
        assert s[35:65, left + 5:left + 35].min() > .5
        assert (s[:25] < .06).all() and (s[75:] < .06).all() and (s[:, 90:] < .06).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 2), (2000, 3000)])
def test_all_sizes(size):
    """Finite, in [0,1], of the picture's size, the same every time."""
    image = np.resize(generator(0, "small").integers(0, 256, (40, 60, 3), dtype=np.uint8), (*size, 3))
    s = robust_background(image)
    assert s.shape == size and s.dtype == np.float32 and 0 <= s.min() and s.max() <= 1
    assert np.array_equal(s, robust_background(image))


@pytest.mark.parametrize("colour", [0, 99, 255])
def test_a_constant_picture_has_no_saliency(colour):
    """Nothing differs from anything."""
    assert not robust_background(np.full((50, 80, 3), colour, np.uint8)).any()


def test_background_of_toyvoc(toyvoc):
    """On pictures with known masks: what is claimed is background, and most of the background is claimed."""
    data = voc_folder(toyvoc, "train", masks=True)
    claimed = right = there = 0
    for i in range(len(data)):
        low, mask = robust_background(data.image(i)) < .06, data.mask(i)
        claimed, right, there = claimed + (low & (mask != 255)).sum(), right + (low & (mask == 0)).sum(), there + (mask == 0).sum()
    assert right / claimed > .9 and right / there > .8


# ---- stored maps ---------------------------------------------------------------------------------------------------

@pytest.fixture
def maps(tmp_path):
    """Two pictures of 20×30 and a good map for the first."""
    for name in ("a", "b"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.arange(600).reshape(20, 30).astype(np.uint8)).save(tmp_path / "maps/a.png")
    return tmp_path / "maps"


def folder_of(maps, **settings):
    """The folder, as a data set hands it over."""
    return saliency_folder(maps, "DSS", image_file=lambda i: maps.parent / f"{i}.jpg", **settings)


def test_stored_maps_are_read(maps):
    """Values over 255, and one line for the report; it can be sent to a worker."""
    stored = folder_of(maps, ids=("a",))
    assert stored("a").dtype == np.float32 and np.allclose(stored("a") * 255, np.arange(600).reshape(20, 30) % 256)
    assert stored.disclosure == "extra supervision: stored saliency of DSS"
    assert np.array_equal(pickle.loads(pickle.dumps(saliency_folder(maps, "DSS")))("a"), stored("a"))


@pytest.mark.parametrize("content, message", [
    (None, "no saliency map for b"), (np.zeros((20, 31), np.uint8), r"size \(20, 31\)"), (np.full((20, 30), 7, np.uint8), "everywhere"),
    (np.arange(600).reshape(20, 30).astype(np.uint16), "8-bit"), (np.zeros((20, 30, 3), np.uint8), "RGB"), (b"\x89PNG\r\n", "cannot be read")])
def test_bad_maps_are_refused(maps, content, message):
    """Missing, of another size, constant, 16-bit, coloured, truncated: each by the name of its file."""
    if isinstance(content, bytes):
        (maps / "b.png").write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(maps / "b.png")
    with pytest.raises(DataError, match=message) as error:
        folder_of(maps)("b")
    assert "To mend it" in str(error.value) and ("b.png" in str(error.value))


def test_allowed_when_asked_for(maps):
    """Another size is resized, a constant map accepted."""
    Image.fromarray(np.full((5, 7), 51, np.uint8)).save(maps / "b.png")
    s = folder_of(maps, resize=True, constant=True)("b")
    assert s.shape == (20, 30) and np.allclose(s, .2)


def test_missing_maps_are_found_at_once(maps):
    """Before any picture is read, with how many are missing."""
    with pytest.raises(DataError, match="1 of 2 images, the first is b"):
        folder_of(maps, ids=("a", "b"))
    with pytest.raises(DataError, match="does not exist"):
        saliency_folder(maps / "nowhere", "DSS")


# ---- features ------------------------------------------------------------------------------------------------------

def test_feature_background_by_hand():
    """Two layers of 1×3 cells; a batch stretches each image for itself."""
    layers = [torch.tensor([[[0., 1, 3]], [[0, 0, 1]]]), torch.tensor([[[1., 2, 0]], [[1, 0, 2]]])]
    torch.testing.assert_close(feature_background(layers, (1, 3)), torch.tensor([[0, 1 / 4, 1]]))
    torch.testing.assert_close(feature_background([layers[0], torch.tensor([[[0., 2, 0]]])], (1, 3)), torch.tensor([[0, 3 / 4, 1]]))    # a sum, no mean
    batch = feature_background([torch.stack([layer, 7 * layer]) for layer in layers], (1, 3))
    torch.testing.assert_close(batch, torch.tensor([[[0, 1 / 4, 1]], [[0, 1 / 4, 1]]]))


def test_feature_background_of_nothing():
    """A network that reacts nowhere, or everywhere the same, says 0 everywhere; NaN is refused."""
    assert not feature_background([torch.zeros(4, 3, 3), torch.ones(2, 6, 6)], (8, 8)).any()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(DataError, match="NaN or infinity"):
            feature_background([torch.full((4, 3, 3), bad)], (8, 8))
    with pytest.raises(DataError, match="feature maps have shapes"):
        feature_background([torch.zeros(3, 3)], (8, 8))


def test_stretch():
    """To [0,1], or all 0."""
    assert stretch(np.array([2., 4, 3])).tolist() == [0, 1, .5] and stretch(np.array([5., 5])).tolist() == [0, 0]
