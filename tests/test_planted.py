"""Planted problems have the rates they promise, and their shapes fit the solver."""
import numpy as np
import pytest

from wsss_nb.assignment import assign_greedily, assign_tags
from wsss_nb.core import DataError
from wsss_nb.planted import VOC_SEVERAL, drawn_tags, judge, plant, plant_features, plant_graph, real_tags
from wsss_nb.similarity import similarity_graph
from wsss_nb.tagging import earnings


def attention_is_right(problem):
    """Of the instances with a class and a choice, how many have their true class on top?"""
    decide = (problem.truth > 0) & (problem.keywords.sum(1) > 1)
    best = np.where(problem.keywords, problem.attention, -1).argmax(1) + 1
    return (best == problem.truth)[decide].mean()


def links_are_right(W, truth):
    """Of the links of instances with a class, how many end at the same class?"""
    i, j = W.nonzero()
    return (truth[i] == truth[j])[truth[i] > 0].mean()


def nearest_of(rows, features):
    """The three nearest of some rows, from all of their cosines."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    S = unit[rows] @ unit.T
    S[np.arange(len(rows)), rows] = -2
    return np.argpartition(-S, 3, axis=1)[:, :3]


def test_rates_on_real_tags(data_folder):
    """VOC's own tags, at full size: the counts of images by tags, and every promised rate."""
    tags = real_tags(data_folder)
    assert tags.shape == (10582, 20) and tuple(np.bincount(tags.sum(1))[1:]) == VOC_SEVERAL
    problem = plant(tags)
    assert len(problem) == 18878 and len(np.unique(problem.image)) == 10582
    assert (problem.truth == 0).mean() == pytest.approx(.15, abs=.01)
    assert attention_is_right(problem) == pytest.approx(.77, abs=.005)
    assert (problem.keywords == tags[problem.image]).all()
    tagged = problem.truth > 0
    assert problem.keywords[tagged, problem.truth[tagged] - 1].all()
    rows = np.flatnonzero(problem.truth)[::10]
    chosen = nearest_of(rows, plant_features(problem.truth))
    assert (problem.truth[chosen] == problem.truth[rows][:, None]).mean() == pytest.approx(.8, abs=.02)


@pytest.mark.parametrize("wanted", [.6, .77, .95])
def test_attention_is_right_as_often_as_asked(wanted):
    """The step that raises the true class is found from the draw itself."""
    assert attention_is_right(plant(drawn_tags(2000), 4000, attention_right=wanted)) == pytest.approx(wanted, abs=.01)


def test_drawn_tags():
    """Shares of images with 1, 2, … tags as asked; common classes come first; the seed decides."""
    tags = drawn_tags(20000, 10, several=(3, 1))
    assert np.bincount(tags.sum(1))[1] / 20000 == pytest.approx(.75, abs=.02)
    assert tags[:, 0].mean() > tags[:, 4].mean() > tags[:, 9].mean() > 0
    assert (drawn_tags(50, seed=1) == drawn_tags(50, seed=1)).all() and (drawn_tags(50, seed=1) != drawn_tags(50, seed=2)).any()


def test_links_of_features_grow_worse_with_spread():
    """Almost all right at a small spread, chance at a huge one."""
    problem = plant(drawn_tags(500, 5, several=(1, 1)), 1000, noise=0)
    near, usual, far = (links_are_right(similarity_graph(plant_features(problem.truth, spread=s)), problem.truth) for s in (.3, 1.45, 50))
    chance = (np.bincount(problem.truth) ** 2).sum() / 1000 ** 2
    assert near > .97 > usual > chance + .1 and far == pytest.approx(chance, abs=.05)


def test_a_drawn_graph_is_a_graph():
    """Symmetric, nobody linked to itself, weights of cosines, about k choices each, four of five right."""
    truth = plant(drawn_tags(500), 1000, noise=0).truth
    W = plant_graph(truth, k=3)
    chance = (np.bincount(truth) ** 2).sum() / 1000 ** 2
    assert links_are_right(W, truth) == pytest.approx(.8 + .2 * chance, abs=.02)
    assert (W != W.T).nnz == 0 and not W.diagonal().any() and .5 <= W.data.min() <= W.data.max() <= .85
    assert 3 < W.nnz / 1000 <= 6


def test_the_optimum_finds_more_of_the_truth():
    """Solved whole, graph and attention together beat attention, and keeping .9 throws out noise rather than truth."""
    problem = plant(drawn_tags(1500), 3000, seed=1)
    W, args = plant_graph(problem.truth, seed=1), (problem.attention, problem.keywords)
    alone = judge(np.where(problem.keywords, problem.attention, -1).argmax(1) + 1, problem.truth)
    whole, kept = assign_tags(W, *args), assign_tags(W, *args, retention=.9)
    assert whole.gap == kept.gap == 0 and (kept.tag > 0).sum() == 2700
    assert judge(whole.tag, problem.truth)["accuracy"] > alone["accuracy"] + .02
    dropped = judge(kept.tag, problem.truth)
    assert dropped["noise dropped"] > 3 * dropped["true dropped"]
    assert earnings(W, problem.attention, assign_greedily(W, *args)) <= whole.objective


def test_judge_by_hand():
    """Six instances: two right, one wrong, one true one dropped, one noise kept, one noise dropped."""
    assert judge(np.array([1, 2, 1, 0, 1, 0]), np.array([1, 2, 2, 1, 0, 0])) == pytest.approx({"accuracy": 2 / 3, "noise dropped": .5, "true dropped": .25})


def test_refused():
    """More images than instances, untagged images, more tags than classes."""
    with pytest.raises(DataError, match="5 instances lie in 9 images"):
        plant(drawn_tags(9), 5)
    with pytest.raises(DataError, match="1 of which have no tag"):
        plant(np.array([[True], [False]]), 5)
    with pytest.raises(DataError, match="6 of 3 tags"):
        drawn_tags(9, 3)
