"""Tags for instances: equal to enumeration and to an independent program, bounds that bound, the graph, and what is refused."""
import sys
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from wsss_nb import similarity
from wsss_nb.assignment import PRECISION, assign_greedily, assign_in_batches, assign_tags, noise_counts, price_range
from wsss_nb.core import DataError
from wsss_nb.similarity import similarity_graph
from wsss_nb.tagging import check_problem, choices_of, earnings, settle

# ---- problems, and two other ways to solve them -------------------------------------------------------------------------

def random_problem(seed, n, C, density=.5, integers=False, keywords=.6):
    """A graph, attention and keywords; with small integers many taggings earn the same."""
    rng = np.random.default_rng(seed)
    W = rng.integers(1, 3, (n, n)).astype(float) if integers else rng.random((n, n))
    W = np.triu(W * (rng.random((n, n)) < density), 1)
    attention = rng.integers(0, 3, (n, C)) / 2 if integers else rng.random((n, C))
    return W + W.T, attention, rng.random((n, C)) < keywords


def by_enumeration(W, attention, keywords, beta, keep=None):
    """The optimum over every tagging; an instance without keywords is noise, and with `keep` any may be."""
    n = len(keywords)
    allowed = [[0] * (keep is not None or not row.any()) + list(np.flatnonzero(row) + 1) for row in keywords]
    tags = np.array(list(product(*allowed))).reshape(-1, n)
    if keep is not None:
        tags = tags[(tags > 0).sum(1) == keep]
    padded = np.concatenate([np.zeros((n, 1)), attention], 1)
    earned = beta * padded[np.arange(n), tags].sum(1)
    for i in range(n):
        for j in range(n):
            earned += W[i, j] * ((tags[:, i] == tags[:, j]) & (tags[:, i] > 0))
    return earned.max()


def by_raw_program(W, attention, keywords, beta, keep=None):
    """The paper's program, linearised, without any reduction, by scipy: x first, then y of each link and class."""
    n, C = keywords.shape
    i, j = np.triu(W).nonzero()
    gain = np.concatenate([(beta * attention).ravel(), np.repeat(2 * W[i, j], C)])
    e, both = len(i) * C, np.arange(len(i) * C)
    pick = np.eye(n * C)
    link = np.repeat(np.arange(len(i)), C)
    c = both % C
    ends = [sparse.hstack([-pick[end[link] * C + c].reshape(e, n * C), sparse.eye_array(e)]) for end in (i, j)]
    one = sparse.hstack([np.repeat(np.eye(n), C, axis=1), sparse.csr_array((n, e))])
    some = keywords.any(1).astype(float)
    rules = [LinearConstraint(one, some if keep is None else 0, some)]
    rules += [LinearConstraint(end, -np.inf, 0) for end in ends] if e else []
    if keep is not None:
        rules.append(LinearConstraint(np.concatenate([np.ones(n * C), np.zeros(e)])[None], keep, keep))
    upper = np.concatenate([keywords.ravel().astype(float), np.ones(e)])
    result = milp(-gain, integrality=np.concatenate([np.ones(n * C), np.zeros(e)]), bounds=Bounds(0, upper), constraints=rules, options={"mip_rel_gap": 0})
    assert result.success, result.message
    return -result.fun


def assert_solved(problem, beta, keep, out, optimum):
    """The tagging is allowed, earns what it says, and is the optimum; so is its bound."""
    W, attention, keywords = problem
    n = len(keywords)
    tagged = np.flatnonzero(out.tag)
    assert keywords[tagged, out.tag[tagged] - 1].all()
    assert len(tagged) == (keywords.any(1).sum() if keep is None else keep)
    same = (out.tag[:, None] == out.tag) & (out.tag > 0)[:, None]
    assert out.objective == pytest.approx((W * same).sum() + beta * sum(attention[i, out.tag[i] - 1] for i in tagged))
    assert out.objective == pytest.approx(optimum, abs=1e-6)
    assert out.bound >= max(optimum - 1e-6, out.objective)
    assert out.gap == pytest.approx(0, abs=1e-6)
    assert out.tag.shape == (n,) and out.tag.dtype == np.int64


# ---- equal to enumeration and to the raw program ------------------------------------------------------------------------

@pytest.mark.parametrize("equation", [6, 7, 8])
def test_equals_enumeration(equation):
    """300 small problems of each kind, half of them with integers, where many taggings tie."""
    for seed in range(300):
        rng = np.random.default_rng([equation, seed])
        n, C, beta = rng.integers(1, 7), rng.integers(1, 4), 0. if equation == 6 else rng.choice([.5, 1., 3.])
        problem = random_problem([equation, seed], n, C, density=rng.choice([.3, .7]), integers=seed % 2 == 0)
        keep = rng.integers(0, problem[2].any(1).sum() + 1) if equation == 8 else None
        out = assign_tags(*problem, beta=beta, retention=None if keep is None else keep / n)
        assert_solved(problem, beta, keep, out, by_enumeration(*problem, beta, keep))


@pytest.mark.parametrize("seed", range(100))
def test_equals_the_raw_program(seed):
    """100 middle-sized problems, with and without noise."""
    rng = np.random.default_rng([9, seed])
    n, C, beta = rng.integers(12, 26), rng.integers(2, 5), rng.choice([0., .5, 2.])
    problem = random_problem([9, seed], n, C, density=3 / n, integers=seed % 3 == 0, keywords=.5)
    assert_solved(problem, beta, None, assign_tags(*problem, beta=beta), by_raw_program(*problem, beta))
    keep = int(rng.integers(1, problem[2].any(1).sum() + 1))
    assert_solved(problem, beta, keep, assign_tags(*problem, beta=beta, retention=keep / n), by_raw_program(*problem, beta, keep))


def test_two_by_hand():
    """Boat at sea: one link of .5, kept or lost, against attention."""
    W, attention, keywords = np.array([[0, .5], [.5, 0]]), np.array([[.9, .1], [.2, .4]]), np.array([[True, False], [True, True]])
    agree, differ = assign_tags(W, attention, keywords, beta=1), assign_tags(W, attention, keywords, beta=10)
    assert agree.tag.tolist() == [1, 1] and agree.objective == pytest.approx(2 * .5 + .9 + .2)
    assert differ.tag.tolist() == [1, 2] and differ.objective == pytest.approx(10 * (.9 + .4))
    assert assign_tags(W, attention, keywords, beta=10, retention=.5).tag.tolist() == [1, 0]


def test_keeps_exactly_what_it_is_asked_for():
    """⌊r·n⌋ as a person computes it: .29 of 100 is 29, though floats say 28.999…96."""
    W, attention, _ = random_problem(3, 100, 4, density=.03)
    for retention, keep in ((0, 0), (.29, 29), (.295, 29), (.5, 50), (.57, 57), (1, 100)):
        assert (assign_tags(W, attention, np.ones((100, 4), bool), 9., retention).tag > 0).sum() == keep


def test_ties_at_the_price():
    """Ten equal instances, linked in pairs: pairs go together, and an odd number tears one pair."""
    W = sparse.block_diag([np.array([[0, 1.], [1, 0]])] * 5).toarray()
    attention, keywords = np.full((10, 2), .5), np.ones((10, 2), bool)
    for keep in range(11):
        out = assign_tags(W, attention, keywords, 2., keep / 10)
        assert out.objective == pytest.approx(2 * (keep // 2) + keep) and out.gap == 0
        assert (out.tag > 0).sum() == keep


def test_a_gap_of_the_price_is_closed():
    """Three in a ring earn much together and nothing apart; to keep two, no price is right, and the optimum is proven all the same."""
    W, attention, keywords = np.ones((3, 3)) - np.eye(3), np.zeros((3, 1)), np.ones((3, 1), bool)
    out = assign_tags(W, attention, keywords, 1., 2 / 3)
    assert (out.objective, out.bound) == (2, 2)   # all three earn 6: the line of prices says 4


def test_range_of_prices_holds_the_best_price():
    """Below it every best tagging has less noise than wanted, above it more: asked of enumeration."""
    for seed in range(40):
        W, attention, keywords = random_problem([4, seed], 6, 2, integers=seed % 2 == 0)
        keywords[:, 0] = True
        noise = 1 + seed % 5
        choices = choices_of(check_problem(W, attention, keywords, 2.), attention, keywords, 2., noise=True)
        low, high, alive = price_range(choices, noise)
        best = [by_enumeration(W, attention, keywords, 2., 6 - m) for m in range(7)]
        for price, sign in ((low, -1), (high, 1)):
            paid = np.array([value + price * m for m, value in enumerate(best)])
            assert (sign * (np.flatnonzero(paid > paid.max() - 1e-9) - noise) > 0).all()
        least, most = noise_counts(choices, alive)
        assert least <= noise <= most


def test_the_reduction_keeps_an_optimum():
    """What is struck out at no slack is in no way needed; with a slack, every tagging that close to the optimum stays."""
    for seed in range(60):
        W, attention, keywords = random_problem([5, seed], 6, 3, integers=seed % 2 == 0, keywords=.7)
        choices = choices_of(check_problem(W, attention, keywords, 1.), attention, keywords, 1.)
        left = np.zeros_like(keywords)
        alive = settle(choices)
        kept = alive & (choices.label > 0)
        left[choices.row[kept], choices.label[kept] - 1] = True
        best = by_enumeration(W, attention, keywords, 1.)
        assert by_enumeration(W, attention, left, 1.) == pytest.approx(best)
        near = settle(choices, slack=.4)
        for i, c in zip(*keywords.nonzero()):
            only = keywords.copy()
            only[i] = np.arange(3) == c
            if by_enumeration(W, attention, only, 1.) > best - .4 + 1e-9:
                assert near[(choices.row == i) & (choices.label == c + 1)].all()


def test_numbers_of_another_type():
    """Attention in float32, as networks make it, earns what it earns in float64, and the gap stays zero."""
    for seed in range(20):
        W, attention, keywords = random_problem([15, seed], 8, 3, keywords=.9)
        keywords[:, 0] = True
        short = attention.astype(np.float32)
        for retention in (None, .6):
            out, same = assign_tags(sparse.csr_array(W).astype(np.float32), short, keywords, 2., retention), assign_tags(W, attention, keywords, 2., retention)
            assert out.gap == 0 and out.objective == pytest.approx(same.objective, rel=1e-6)


def test_the_reduction_runs_to_the_end():
    """A chain numbered backwards, each link weaker than the one before: certainty travels from the one sure end to the other."""
    n = 12
    W = np.diag(np.linspace(.5, 1, n - 1), 1)
    keywords = np.ones((n, 2), bool)
    keywords[-1, 1] = False
    choices = choices_of(check_problem(W + W.T, np.zeros((n, 2)), keywords, 0.), np.zeros((n, 2)), keywords, 0.)
    assert choices.label[settle(choices)].tolist() == [1] * n


# ---- limits -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("retention", [None, .7])
def test_out_of_time(retention):
    """Without any time there is a tagging, its earnings are true, and its bound is above the optimum."""
    gaps = []
    for seed in range(10):
        problem = random_problem([6, seed], 10, 3, density=.3, keywords=.9)
        problem[2][:, 0] = True
        out, optimum = assign_tags(*problem, beta=.5, retention=retention, time_limit=0), assign_tags(*problem, beta=.5, retention=retention)
        assert optimum.gap == 0 and out.objective <= optimum.objective + 1e-9 and out.bound >= optimum.objective - 1e-9
        assert out.objective == pytest.approx(earnings(problem[0], problem[1], out.tag, .5))
        assert retention is None or (out.tag > 0).sum() == 7
        gaps.append(out.gap)
    assert max(gaps) > 0


def test_out_of_time_beside_what_is_settled():
    """The bound of what is left open stands on top of what the settled earn among themselves."""
    W, attention, keywords = random_problem(17, 10, 3, density=.5, keywords=1.)
    sure = 100 * (np.ones((6, 6)) - np.eye(6))
    W = sparse.block_diag([W, sure]).toarray()
    attention, keywords = np.concatenate([attention, np.ones((6, 3))]), np.concatenate([keywords, np.eye(3, dtype=bool)[np.zeros(6, int)]])
    out, optimum = assign_tags(W, attention, keywords, .1, time_limit=0), assign_tags(W, attention, keywords, .1)
    assert optimum.bound == optimum.objective <= out.bound and out.gap > 0


def test_a_gap_that_is_allowed():
    """With a gap the tagging misses at most that share, and the bound still holds."""
    for seed in range(10):
        problem = random_problem([7, seed], 10, 3, density=.3, keywords=.8)
        problem[2][:, 0] = True
        out, optimum = assign_tags(*problem, beta=.3, retention=.6, gap=.1), assign_tags(*problem, beta=.3, retention=.6)
        assert out.gap <= .1 and out.bound >= optimum.objective - 1e-6 and out.objective >= optimum.objective / 1.1 - 1e-9


def test_without_the_solver(monkeypatch):
    """What the reduction settles needs no solver; the rest names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "pulp", None)
    attention, keywords = np.array([[.9, .1], [.1, .9]]), np.ones((2, 2), bool)
    assert assign_tags(np.array([[0, .1], [.1, 0]]), attention, keywords).tag.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"pulp is not installed.*wsss_nb\[graphs\]"):
        assign_tags(np.array([[0, 1.], [1, 0]]), attention, keywords, beta=.1)


def test_out_of_memory(monkeypatch):
    """A solver that runs out of memory, or stops for no reason, is an error that says what to do."""
    import pulp
    W, attention, keywords = np.array([[0, 1.], [1, 0]]), np.array([[.9, .1], [.1, .9]]), np.ones((2, 2), bool)
    def burst(self, model):
        raise MemoryError
    monkeypatch.setattr(pulp.HiGHS, "callSolver", burst)
    with pytest.raises(DataError, match="out of memory on 2 open instances"):
        assign_tags(W, attention, keywords, beta=.1)
    monkeypatch.setattr(pulp.HiGHS, "callSolver", lambda self, model: None)
    with pytest.raises(DataError, match="HiGHS stopped on 2 open instances"):
        assign_tags(W, attention, keywords, beta=.1)


# ---- sizes and bad input ------------------------------------------------------------------------------------------------

def test_nobody_and_one():
    """n = 0 and n = 1, with and without keywords."""
    none = assign_tags(np.zeros((0, 0)), np.zeros((0, 3)), np.zeros((0, 3), bool), retention=.9)
    assert none.tag.shape == (0,) and (none.objective, none.bound, none.gap) == (0, 0, 0)
    one = np.array([[.2, .6, .9]])
    assert assign_tags(np.zeros((1, 1)), one, np.array([[True, True, False]])).tag.tolist() == [2]
    assert assign_tags(np.zeros((1, 1)), one, np.zeros((1, 3), bool)).tag.tolist() == [0]
    assert assign_tags(np.zeros((1, 1)), one, np.ones((1, 3), bool), retention=0).tag.tolist() == [0]
    assert assign_tags(np.zeros((1, 1)), one, np.ones((1, 3), bool), retention=1).tag.tolist() == [3]


def test_without_keywords_is_noise():
    """An instance of an untagged image is noise, whatever its attention; too many of them are named."""
    W, attention, keywords = random_problem(8, 6, 2)
    keywords[:] = True
    keywords[[1, 4]] = False
    out = assign_tags(W, attention, keywords)
    assert out.tag[[1, 4]].tolist() == [0, 0] and (out.tag > 0).sum() == 4 and out.reduced["without keywords"] == 2
    assert (assign_tags(W, attention, keywords, retention=4 / 6).tag > 0).sum() == 4
    with pytest.raises(DataError, match=r"keep 5 of 6 instances, and only 4 have keywords; expected at most 4/6 = 0.6667"):
        assign_tags(W, attention, keywords, retention=.9)


def with_change(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


BAD = {
    "retention above 1": (lambda W, a, k: assign_tags(W, a, k, retention=1.1), "retention is 1.1"),
    "retention below 0": (lambda W, a, k: assign_tags(W, a, k, retention=-.1), "retention is -0.1"),
    "retention NaN": (lambda W, a, k: assign_tags(W, a, k, retention=np.nan), "retention is nan"),
    "beta below 0": (lambda W, a, k: assign_tags(W, a, k, beta=-1), "beta is -1"),
    "keywords too wide": (lambda W, a, k: assign_tags(W, a, np.ones((5, 4), bool)), r"attention has shape \(5, 3\)"),
    "keywords as numbers": (lambda W, a, k: assign_tags(W, a, k.astype(int)), "keywords are int64"),
    "no classes": (lambda W, a, k: assign_tags(W, a[:, :0], k[:, :0]), r"shape \(5, 0\)"),
    "NaN attention": (lambda W, a, k: assign_tags(W, with_change(a, (0, 0), np.nan), k), "1 values that are not finite"),
    "graph of others": (lambda W, a, k: assign_tags(W[:4, :4], a, k), r"W has shape \(4, 4\)"),
    "graph with NaN": (lambda W, a, k: assign_tags(with_change(W, (0, 1), np.nan), a, k), "below 0 or not finite"),
    "negative link": (lambda W, a, k: assign_tags(with_change(W, (0, 1), -.5), a, k), "below 0"),
    "own neighbour": (lambda W, a, k: assign_tags(W + np.eye(5), a, k), "an instance to itself"),
    "one way": (lambda W, a, k: assign_tags(with_change(W, (0, 1), 9.), a, k), "not symmetric"),
    "gap below 0": (lambda W, a, k: assign_tags(W, a, k, gap=-1), "gap is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    """Each wrong argument is named in one line."""
    wrong, message = BAD[case]
    W, attention, keywords = random_problem(2, 5, 3, keywords=1.)
    with pytest.raises(DataError, match=message) as error:
        wrong(W, attention, keywords)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_arguments_are_left_alone():
    """Graph, attention and keywords are the same after solving, stored zeros included."""
    W, attention, keywords = random_problem(11, 8, 3)
    graph = sparse.csr_array(W)
    graph.data[graph.data < np.median(graph.data)] = 0
    before = [part.copy() for part in (graph.data, graph.indices, graph.indptr, attention, keywords)]
    assign_tags(graph, attention, keywords, 1., .5)
    for part, was in zip((graph.data, graph.indices, graph.indptr, attention, keywords), before):
        np.testing.assert_array_equal(part, was)


# ---- rivals -------------------------------------------------------------------------------------------------------------

def test_greedy_and_batches_never_earn_more():
    """Both are allowed taggings of the wanted number, below the optimum of the whole graph; one batch of all is the optimum."""
    rng = np.random.default_rng(12)
    features, lower = rng.normal(size=(60, 4)), 0
    attention, keywords = rng.random((60, 3)), rng.random((60, 3)) < .7
    keywords[:, 0] = True
    W = similarity_graph(features)
    for retention in (None, .8):
        best = assign_tags(W, attention, keywords, 2., retention)
        for tag in (assign_greedily(W, attention, keywords, 2., retention), assign_in_batches(features, attention, keywords, 2., retention, size=20)):
            assert keywords[tag > 0, tag[tag > 0] - 1].all() and (tag > 0).sum() == (60 if retention is None else 48)
            assert earnings(W, attention, tag, 2.) <= best.objective + 1e-9
            lower += earnings(W, attention, tag, 2.) < best.objective - 1e-6
        whole = assign_in_batches(features, attention, keywords, 2., retention, size=60)
        assert earnings(W, attention, whole, 2.) == pytest.approx(best.objective)
    assert lower >= 2


def test_greedy_stands_still():
    """No single instance can earn more by another of its tags."""
    W, attention, keywords = random_problem(13, 40, 4, density=.1)
    tag = assign_greedily(W, attention, keywords, 1.)
    value = earnings(W, attention, tag, 1.)
    for i, c in zip(*keywords.nonzero()):
        assert earnings(W, attention, with_change(tag, i, c + 1), 1.) <= value + 1e-9


# ---- the graph ----------------------------------------------------------------------------------------------------------

def graph_in_float64(features, k):
    """Cosines of all pairs, rows sorted, the union of both ends' choices."""
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    S = unit @ unit.T
    np.fill_diagonal(S, -np.inf)
    W = np.zeros_like(S)
    rows, near = np.arange(len(S))[:, None], np.argsort(-S, axis=1, kind="stable")[:, :k]
    W[rows, near] = S[rows, near]
    return np.maximum(W, W.T).clip(0)


@pytest.mark.parametrize("rows", [64, 100, 1000])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_graph_equals_brute_force(k, rows, monkeypatch):
    """Blocks that divide the set, that do not, and one that holds it all."""
    monkeypatch.setattr(similarity, "ROWS", rows)
    features = np.random.default_rng(k).normal(size=(256, 6)).astype(np.float32)
    graph = similarity_graph(features, k, engine="blocks")
    np.testing.assert_allclose(graph.toarray(), graph_in_float64(features, k), atol=1e-6)
    assert (graph != graph.T).nnz == 0 and not graph.diagonal().any() and (graph.data > 0).all()


def test_graph_of_two_thousand():
    """2,000 instances with ResNet's 2,048 features."""
    features = np.random.default_rng(0).normal(size=(2000, 2048)).clip(0).astype(np.float32)
    np.testing.assert_allclose(similarity_graph(features, engine="blocks").toarray(), graph_in_float64(features, 3), atol=1e-6)


def test_graph_of_few():
    """Nobody, one, fewer than k + 1; length does not count; a copy is a neighbour, oneself is not."""
    for n, links in ((0, 0), (1, 0), (2, 2), (3, 6)):
        graph = similarity_graph(np.arange(1., 1 + 2 * n).reshape(n, 2), k=3)
        assert graph.shape == (n, n) and graph.nnz == links
    twins = similarity_graph(np.array([[1., 2], [10, 20], [3, -1]]), k=1)
    assert twins[0, 1] == pytest.approx(1) and not twins.diagonal().any()


def test_graph_without_similarity():
    """Who has no neighbour with a positive cosine has no link, however few others there are."""
    graph = similarity_graph(np.array([[1., 0], [-1, 0], [0, 1], [.1, 1]]), k=3)
    assert set(zip(*graph.nonzero())) == {(2, 3), (3, 2), (0, 3), (3, 0)}


def test_graph_of_tensors_and_tiny_numbers():
    """Torch tensors with a gradient are taken; features of any length above zero have a direction."""
    import torch
    features = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    tensor = torch.from_numpy(features).requires_grad_()
    np.testing.assert_array_equal(similarity_graph(tensor).toarray(), similarity_graph(features).toarray())
    np.testing.assert_allclose(similarity_graph(features * np.float32(1e-30)).toarray(), similarity_graph(features).toarray(), atol=1e-5)


def test_graph_of_principal_components():
    """Features that fill three of eight dimensions lose nothing when three are kept."""
    rng = np.random.default_rng(2)
    flat = (rng.normal(size=(80, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    np.testing.assert_allclose(similarity_graph(flat, components=3).toarray(), similarity_graph(flat).toarray(), atol=1e-4)
    assert abs(similarity_graph(flat, components=1) - similarity_graph(flat)).max() > .01


def test_graph_by_faiss():
    """Where faiss is installed both engines agree."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    features = np.random.default_rng(3).normal(size=(500, 16)).astype(np.float32)
    features[100:105] = features[0]   # copies: oneself is not always the first that is found
    for k in (1, 3):
        np.testing.assert_allclose(np.sort(similarity_graph(features, k, engine="faiss").data)[-40:], np.sort(similarity_graph(features, k, engine="blocks").data)[-40:], atol=1e-5)
    np.testing.assert_allclose(similarity_graph(features[200:], engine="faiss").toarray(), similarity_graph(features[200:], engine="blocks").toarray(), atol=1e-5)


@pytest.mark.parametrize("wrong, message", [
    (lambda: similarity_graph(np.array([[1., np.nan], [1, 1]])), r"of 1 instances are not finite, the first is instance \[0\]"),
    (lambda: similarity_graph(np.array([[1., 1], [0, 0]])), r"of 1 instances are all zero, the first is instance \[1\]"),
    (lambda: similarity_graph(np.ones(4)), r"features are float64 of shape \(4,\)"),
    (lambda: similarity_graph(np.ones((3, 2), int)), "features are int64"),
    (lambda: similarity_graph(np.ones((3, 2)), k=0), "k is 0"),
    (lambda: similarity_graph(np.ones((3, 2)), engine="fast"), "the engine is 'fast'"),
    (lambda: similarity_graph(np.ones((3, 2)), components=0), "components is 0"),
])
def test_graph_refuses(wrong, message):
    """Features without a direction, and arguments out of range."""
    with pytest.raises(DataError, match=message):
        wrong()


def test_precision_is_relative():
    """A thousand times the earnings, the same tags and a gap of nothing."""
    W, attention, keywords = random_problem(14, 12, 3, keywords=.9)
    keywords[:, 0] = True
    small, large = (assign_tags(f * W, attention, keywords, f * 1., .5) for f in (1e-3, 1e6))
    assert large.objective == pytest.approx(1e9 * small.objective) and small.gap == large.gap == 0 < PRECISION
