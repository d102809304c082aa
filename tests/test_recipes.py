"""Lesson 50: every recipe through every stage, what differs between them, and a recipe from the folder one stands in."""
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from run_toy import WST, tiny

from wsss_nb import readings
from wsss_nb.config import load_config
from wsss_nb.core import IGNORE, Batch, DataError, Prediction
from wsss_nb.files import read_labels
from wsss_nb.graphcut import graph_cut
from wsss_nb.losses import balanced_seeding_loss, boundary_loss, expansion_loss, seeding_loss
from wsss_nb.opening import check_layers, classifiers_of, open_data, recipe_of, start_segmenter, stored_cues
from wsss_nb.presets import PAPERS, PRESETS, layered, learning
from wsss_nb.recipes import RECIPES, find_recipe
from wsss_nb.saliency import robust_background
from wsss_nb.seeds import TYPES, make_seeds, seed_names, shrink
from wsss_nb.stages import run_all
from wsss_nb.stored import read_seeds
from wsss_nb.tagged import TrainingSet, collate
from wsss_nb.training import cut, grown, keep, supervised, training_view
from wsss_nb.voc import voc_folder
from wsss_nb.wst import balanced_multi_seed_loss, multi_seed_loss

# classifiers after one epoch are unsure, so their maps' whole upper half is taken for a cue
OPTIONS = {"baseline": [], "sec": [], "balanced": [], "cues": ["cues.foreground=.5", "predict.variants=tags,nocrf,single"], "dgcn": ["retrain.rounds=0"]}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_recipe_runs_through_every_stage(name, toyvoc, tmp_path):
    """From tags to a page: a label map of known classes for each picture, a score for each way of predicting. DSRG and WST are the runs of the other tests."""
    config = tiny(toyvoc, f"{name}/toy", *OPTIONS[name])
    done = run_all(config, tmp_path)
    data = voc_folder(toyvoc, "val")
    for way in done["predict"]["counts"]["ways"]:
        for i, image in enumerate(data.ids):
            S = read_labels(tmp_path / f"predict/{way}/{image}.png")
            assert S.shape == data.image(i).shape[:2] and S.max() <= len(data.classes)
        assert 0 <= json.loads((tmp_path / f"evaluate/{way}.json").read_text())["mean_iou"] <= 1
    assert done["predict"]["counts"]["ways"][0] == "val" and (tmp_path / "report/index.html").stat().st_size > 10_000
    epochs = [json.loads(line) for line in (tmp_path / "train/log.jsonl").read_text().splitlines()]
    terms = {"baseline": {"seed", "boundary"}, "sec": {"seed", "boundary", "expand"}, "balanced": {"seed", "boundary"}, "cues": {"seed", "boundary"}, "dgcn": {"seed", "boundary"}}[name]
    assert all(terms <= set(row) for row in epochs) and ("expand" in epochs[0]) == (name == "sec")
    kinds = {"colour", "grey"} if name == "cues" else {"colour"}
    assert {path.name for path in (tmp_path / "classify").iterdir() if path.is_dir()} == kinds
    if name == "cues":
        assert set(done["predict"]["counts"]["ways"]) == {"val", "val.plain", "val.tags", "val.nocrf", "val.single"}
        for i, image in enumerate(data.ids):                  # who is told the tags predicts no other class
            assert set(np.unique(read_labels(tmp_path / f"predict/val.tags/{image}.png"))) <= {0, *(1 + np.flatnonzero(data.tags[i]))}


def batch_of(C=3, size=4):
    """A prediction, its CRF's answer, cues and tags, at random."""
    torch.manual_seed(0)
    H, Q = (torch.rand(2, 1 + C, size, size).softmax(1) for _ in range(2))
    T = torch.tensor([[True, False, True], [False, True, False]])
    S = torch.full((2, size, size), IGNORE, dtype=torch.uint8)
    S[0, 0, 0], S[0, 1, 1], S[1, 2, 2], S[:, 3, 3] = 1, 3, 2, 0
    return Prediction(H, Q=Q), S, Batch(torch.zeros(2, 3, size, size), T, S, ("a", "b"))


@pytest.mark.parametrize("name, seed, expands, supervise", [("baseline", seeding_loss, False, keep), ("sec", seeding_loss, True, keep),
                                                            ("balanced", balanced_seeding_loss, False, keep), ("dsrg", balanced_seeding_loss, False, grown), ("cues", seeding_loss, False, keep),
                                                            ("dgcn", balanced_seeding_loss, False, cut)])
def test_what_each_recipe_minimises(name, seed, expands, supervise):
    """DSRG table 2 from top to bottom: a loss more, a loss less, a loss balanced; and who grows."""
    recipe, (prediction, S, batch) = RECIPES[name](), batch_of()
    expected = {"seed": seed(prediction.H, S), "boundary": boundary_loss(prediction.H, prediction.Q)} | ({"expand": expansion_loss(prediction.H, batch.T)} if expands else {})
    found = recipe.method.loss(prediction, S, batch)
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    made = recipe.method.supervise
    assert (made.func if isinstance(made, partial) else made) is supervise


def test_ours_may_expand():
    """Cross-entropy alone, or with SEC's term beside it."""
    prediction, S, batch = batch_of()
    plain, more = (RECIPES["ours"](expansion=e).method.loss(prediction, S, batch) for e in (False, True))
    assert set(plain) == {"pixel"} and set(more) == {"pixel", "expand"} and torch.equal(plain["pixel"], more["pixel"])
    assert torch.equal(plain["pixel"], balanced_seeding_loss(prediction.H, S)) and torch.equal(more["expand"], expansion_loss(prediction.H, batch.T))


@pytest.mark.parametrize("expands", [False, True])
def test_ours_with_the_boundary_loss(expands):
    """SEC's losses on the same grown supervision, and a CRF only where a loss asks for one."""
    prediction, S, batch = batch_of()
    plain, method = RECIPES["ours"]().method, RECIPES["ours"](boundary=True, expansion=expands, crf_scale=6.).method
    found = method.loss(prediction, S, batch)
    assert set(found) == {"seed", "boundary", *(["expand"] if expands else [])}
    assert torch.equal(found["seed"], balanced_seeding_loss(prediction.H, S)) and torch.equal(found["boundary"], boundary_loss(prediction.H, prediction.Q))
    assert method.refine.keywords["scale"] == 6 and plain.refine is None
    assert method.supervise.func is plain.supervise.func is grown and method.supervise.keywords == plain.supervise.keywords


def test_options_reach_the_method():
    """Each argument of a recipe does what it says."""
    prediction, S, batch = batch_of()
    sure = Prediction(torch.tensor([.05, .05, .05, .85])[None, :, None, None].expand(2, 4, 4, 4), Q=prediction.Q)
    cells = lambda **options: int((RECIPES["dsrg"](**options).method.supervise(batch, sure) == 3).sum())
    assert cells(theta_foreground=.8) == 14 and cells(theta_foreground=.9) == 1 and cells(theta_foreground=2.) == 1    # 16 less two other cues; picture 2 has no such tag
    assert "expand" in RECIPES["dsrg"](expansion=True).method.loss(prediction, S, batch)
    assert RECIPES["cues"](grey=False).classifiers == ("colour",) and RECIPES["cues"]().classifiers == ("colour", "grey")
    assert RECIPES["cues"](snap=False).cues.keywords == {"snap": False}
    assert RECIPES["dgcn"](neighbours=5, theta=.3, theta_background=.9, link=1.).method.supervise.keywords == {"neighbours": 5, "theta": .3, "theta_background": .9, "link": 1.}
    H = torch.full((1, 2, 6, 6), .5)
    H[:, 0, :, :3], H[:, 1, :, :3] = .9, .1
    picture = torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8)
    assert not torch.equal(RECIPES["sec"](crf_scale=12.).method.refine(H, picture), RECIPES["sec"](crf_scale=2.).method.refine(H, picture))


def test_every_recipe_has_a_paper_and_presets():
    """One for ToyVOC and one for VOC; every preset is a config."""
    assert set(RECIPES) == set(PAPERS)
    for name in RECIPES:
        own = [preset for preset in PRESETS if preset.startswith(f"{name}/")]
        assert f"{name}/toy" in own and any("/voc-" in preset for preset in own)
        assert (PAPERS[name].reported or name == "ours") and PAPERS[name].venue
    for preset in PRESETS:
        config = load_config(preset, "toyvoc")
        assert config.preset == preset and (recipe_of(config).method.refine is None) == preset.startswith(("wst", "salient", "ours"))    # these have no CRF in training
        check_layers(config)
    pair = load_config("wst/voc-resnet38-vgg16", "toyvoc").classify
    assert (pair.network, pair.second, pair.preset) == ("resnet38", "vgg16", "wst")
    dsrg = load_config("dsrg/voc-vgg16", "toyvoc")
    assert (dsrg.train.iterations, dsrg.train.batch_size, dsrg.train.step_factor, dsrg.retrain.schedule, dsrg.retrain.iterations) == (8000, 20, .33, "poly", 20_000)
    assert (dsrg.cues.size, dsrg.train.view, dsrg.train.head, dsrg.options) == ((41, 41), "warp", "aspp", {})


def test_layers_lie_over_each_other():
    """The last word counts, tables are merged, and no table of the input is changed."""
    low = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert layered(low, {"a": {"c": {"f": 4}}, "e": {"g": 5}}, {"a": {"b": 6}}) == {"a": {"b": 6, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert low == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert learning("dsrg-files")["step_factor"] == .33 and "momentum" not in learning("dsrg-files")


MINE = '''
from functools import partial
from wsss_nb.recipes import Recipe, coarse_crf, sec_loss
from wsss_nb.training import Method

def shy(batch, prediction, sure):
    "Forget cues that the network contradicts."
    p, c = prediction.H.max(1)
    return batch.S.masked_fill((p > sure) & (c != batch.S), 255)

def mine(sure: float = .9, rounds: int = 2) -> Recipe:
    "Cues that the network may veto."
    return Recipe(Method(partial(sec_loss, balanced=True, expansion=False), partial(shy, sure=sure), coarse_crf()))

number = 5
'''


def test_a_recipe_from_the_folder_one_stands_in(toyvoc, tmp_path, monkeypatch):
    """package.module:function, its arguments as settings, through every stage; and what is wrong with it, in words."""
    (tmp_path / "study_of_mine").mkdir()
    (tmp_path / "study_of_mine/__init__.py").write_text("")
    (tmp_path / "study_of_mine/methods.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    name = "study_of_mine.methods:mine"
    config = tiny(toyvoc, name, "preset=dsrg/toy", "options.sure=.7", "retrain.rounds=0")
    assert recipe_of(config).method.supervise.keywords == {"sure": .7} and config.options == {"sure": .7}
    done = run_all(config, tmp_path / "run")
    assert done["predict"]["counts"]["ways"] == ["val"] and "Cues that the network may veto." in (tmp_path / "run/report/index.html").read_text()
    wrong = {"options.shure": lambda: tiny(toyvoc, name, "preset=dsrg/toy", "options.shure=.7"), "'sure'|options.sure": lambda: tiny(toyvoc, name, "preset=dsrg/toy", "options.sure=much"),
             "no function 'yours'": lambda: find_recipe("study_of_mine.methods:yours"), "no function 'number'": lambda: find_recipe("study_of_mine.methods:number"),
             "cannot be loaded": lambda: find_recipe("study_of_yours:mine"), "balanced|baseline": lambda: find_recipe("balancd")}
    for message, call in wrong.items():
        with pytest.raises(DataError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_cues_are_stored_as_the_recipe_makes_them(finished_run, toyvoc):
    """DSRG's cues: only tagged classes, background where saliency is low, disclosed."""
    data = voc_folder(toyvoc, "train")
    for i, image in enumerate(data.ids):
        seeds = read_seeds(finished_run / f"cues/{image}.npz", data.classes)
        assert seeds.names == ("dsrg 0",) and set(np.unique(seeds.S)) <= {0, IGNORE, *(1 + np.flatnonzero(data.tags[i]))}
        assert seeds.S.shape[1:] == data.image(i).shape[:2] and "robust background" in seeds.made["saliency"]


def test_retraining_may_balance_its_labels():
    """Three background pixels at .7 and one foreground pixel at .2, by hand: one mean over all, or one for each side."""
    import math

    import torch

    from wsss_nb.core import Batch, Prediction
    from wsss_nb.recipes import mask_loss
    H, S = torch.tensor([.7, .2, .1])[None, :, None, None].expand(1, 3, 1, 4), torch.tensor([[[0, 0, 0, 1]]], dtype=torch.uint8)
    batch = Batch(torch.zeros(1, 3, 1, 4), torch.tensor([[True, False]]), S)
    plain, balanced = (mask_loss(Prediction(H), S, batch, balanced=b)["pixel"].item() for b in (False, True))
    assert abs(plain + (3 * math.log(.7) + math.log(.2)) / 4) < 1e-5 and abs(balanced + math.log(.7) + math.log(.2)) < 1e-5


# ---- graph cut ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scaled", [True, False])
def test_likeness_is_measured_on_the_layers_named(scaled, few):
    """What reaches the cut is the outputs of these layers, brought to the prediction's size and joined in the order named; scaled, each layer's vectors have mean length 1."""
    config = tiny(few, "dgcn/toy", "options.layers=trunk.block5,trunk.block2", f"options.scaled={str(scaled).lower()}", "train.weights=random")
    data = open_data(config, "train")
    network, method, seen = start_segmenter(config, few, config.train, data).eval(), recipe_of(config).method, []
    view = training_view(network, "crop", 64, 1., 1.)
    batch = collate([TrainingSet(data, view, lambda name: np.zeros((4, 4), np.uint8), 0)[i] for i in range(2)])
    with torch.no_grad():
        supervised(network, replace(method, supervise=lambda batch, said: seen.append(said) or batch.S), batch)
        x, outputs = batch.image, {}
        for name, layer in network.trunk.named_children():
            x = outputs[name] = layer(x)
        parts = [torch.nn.functional.interpolate(outputs[name], seen[0].H.shape[2:], mode="bilinear", align_corners=False) for name in ("block5", "block2")]
    expected = torch.cat([part / part.norm(dim=1).mean((1, 2), keepdim=True)[:, None] if scaled else part for part in parts], 1)
    assert seen[0].features.shape == expected.shape and torch.allclose(seen[0].features, expected, atol=1e-5)


def test_the_cut_is_asked_with_the_recipes_numbers():
    """Every option arrives where it belongs: each of them changes what the cut says of this picture."""
    _, S, batch = batch_of(size=8)
    asked = Prediction((2 * torch.randn(2, 4, 8, 8)).softmax(1), torch.randn(2, 5, 8, 8))
    options = {"neighbours": 3, "theta": .25, "theta_background": .5, "link": .1}
    said = lambda **changed: RECIPES["dgcn"](**(options | changed)).method.supervise(replace(batch, S=S), asked)
    assert torch.equal(said(), graph_cut(H=asked.H, features=asked.features, S=S, T=batch.T, **options))
    for name, other in {"neighbours": 9, "theta": .6, "theta_background": .8, "link": 3.}.items():
        assert not torch.equal(said(), said(**{name: other})), name


# ---- many seeds --------------------------------------------------------------------------------------------------------------

def test_wst_runs_through_every_stage(wst_run, few):
    """Two classifiers, twelve seeds, one loss, a page; no retraining."""
    assert {path.name for path in (wst_run / "classify").iterdir() if path.is_dir()} == {"colour", "second"}
    rows = [json.loads(line) for line in (wst_run / "train/log.jsonl").read_text().splitlines()]
    assert all({"seeds"} == set(row) & {"seed", "seeds", "boundary", "expand"} for row in rows) and not list(wst_run.glob("retrain/*/segmenter.pt"))
    data = voc_folder(few, "val")
    for i, image in enumerate(data.ids):
        S = read_labels(wst_run / f"predict/val/{image}.png")
        assert S.shape == data.image(i).shape[:2] and S.max() <= len(data.classes)
    assert 0 <= json.loads((wst_run / "evaluate/val.json").read_text())["mean_iou"] <= 1 and (wst_run / "report/index.html").stat().st_size > 10_000


def test_wst_stores_the_seeds_of_lesson_14c(wst_run, few, tmp_path):
    """Names, their order, and every pixel: what `make_seeds` makes of the same two classifiers."""
    config, data = tiny(few, "wst/toy", *WST), voc_folder(few, "train").subset(range(2))
    assert len(recipe_of(config).seeds) == 12 and recipe_of(config).seeds == seed_names(("colour", "second"), TYPES)
    expected = make_seeds(data, classifiers_of(config, wst_run, data.classes), tmp_path, size=(24, 24))
    for name in data.ids:
        stored = read_seeds(wst_run / f"cues/{name}.npz", data.classes)
        assert stored.names == recipe_of(config).seeds and np.array_equal(stored.S, expected(name))
    kept = np.stack([read_seeds(path).S for path in wst_run.glob("cues/*.npz")])
    differ = np.array([[(kept[:, j] != kept[:, k]).any() for k in range(12)] for j in range(12)])
    assert differ[:6, 6:].diagonal().any() and differ[:3, 3:6].all() and differ[3, 5]      # two networks, two types, three scales: not one opinion


def test_wst_learns_from_all_seeds_at_once(wst_run, few):
    """A batch holds (B,12,h,w); one seed alone is (B,h,w), and the loss takes it as K = 1."""
    config = tiny(few, "wst/toy", *WST)
    data = open_data(config, "train")
    network = start_segmenter(config, wst_run, config.train, data)
    batch = collate([TrainingSet(data, training_view(network, "crop", 64), stored_cues(config, wst_run, data), 0)[i] for i in range(3)])
    assert batch.S.shape == (3, 12, 16, 16)
    said, S = supervised(network, recipe_of(config).method, batch)
    assert S.shape == (3, 12, 16, 16) and said.features is None and said.Q is None
    H = torch.full((1, 2, 1, 1), .5)
    H[0, :, 0, 0] = torch.tensor([.8, .2])
    loss = lambda S, **options: RECIPES["wst"](**options).method.loss(Prediction(H), torch.tensor(S, dtype=torch.uint8), batch)["seeds"].item()
    assert loss([[[1]]]) == pytest.approx(-math.log(.2), abs=1e-5)
    agree, other = math.e / (math.e + 1), 1 / (math.e + 1)                                 # WST eq. 5-7: the seed that agrees with argmax H = 0 has 1, the other 0
    assert loss([[[[0]], [[1]]]]) == pytest.approx(-agree * math.log(.8) - other * math.log(.2), abs=1e-5)
    assert loss([[[[0]], [[1]]]], sharpness=0.) == pytest.approx(-(math.log(.8) + math.log(.2)) / 2, abs=1e-5)


def test_wst_balanced_and_sharp_as_asked():
    """The paper's loss unless asked otherwise; ToyVOC's preset balances; one map (h,w) is one seed."""
    prediction, S, batch = batch_of()
    two = torch.stack([S, torch.where(S == IGNORE, 0, S)], 1)
    loss = lambda S=two, **options: RECIPES["wst"](**options).method.loss(prediction, S, batch)["seeds"]
    assert torch.equal(loss(), multi_seed_loss(prediction.H, two, 1.)) and torch.equal(loss(sharpness=0.), multi_seed_loss(prediction.H, two, 0.))
    assert torch.equal(loss(balanced=True, sharpness=2.), balanced_multi_seed_loss(prediction.H, two, 2.)) and not torch.equal(loss(balanced=True), loss())
    assert torch.equal(loss(S), multi_seed_loss(prediction.H, S[:, None], 1.))
    assert PRESETS["wst/toy"]["options"] == {"balanced": True} and "options" not in PRESETS["wst/voc-resnet38-vgg16"]


@pytest.mark.parametrize("options, count", [({"networks": 1}, 6), ({"types": ("crf",)}, 6), ({"scales": (1.,)}, 4), ({"merge": "average"}, 4), ({"merge": "maximum", "networks": 1, "types": ("threshold",)}, 1)])
def test_rows_of_the_tables_of_wst(options, count, wst_run, few):
    """Tables 2 to 5: each option leaves the seeds it names, under their names, and they are those of the twelve; merged maps are their own."""
    assert RECIPES["wst"](merge="average").seeds == ("colour threshold average", "colour crf average", "second threshold average", "second crf average")     # in the order of the maps
    config, data = tiny(few, "wst/toy", *WST), voc_folder(few, "train")
    recipe, networks = RECIPES["wst"](**options), classifiers_of(config, wst_run, data.classes)
    saliency = robust_background(data.image(1))
    S = recipe.cues(data, 1, {name: networks[name] for name in recipe.classifiers}, saliency).numpy()
    assert len(S) == len(recipe.seeds) == len(set(recipe.seeds)) == count and all(name.split()[0] in recipe.classifiers for name in recipe.seeds)
    full = read_seeds(wst_run / f"cues/{data.ids[1]}.npz")
    for name, seed in zip(recipe.seeds, shrink(S, (24, 24)), strict=True):
        if "merge" not in options:
            assert np.array_equal(seed, full.S[full.names.index(name)])


@pytest.mark.parametrize("merge, expected", [("maximum", [1, 1, IGNORE]), ("average", [1, IGNORE, IGNORE]), (None, None)])
def test_scales_merged_by_hand(merge, expected, few, monkeypatch):
    """Three scales that agree on the first column; the second one lights up, at .2, in one scale alone: the maximum is above a tenth, the mean, .067, is not."""
    data = voc_folder(few, "train").subset([0])
    c = int(np.flatnonzero(data.tags[0])[0])
    maps = torch.zeros(3, len(data.classes), *data.image(0).shape[:2])
    maps[:, c, :, 0], maps[0, c, :, 1] = 1., .2
    monkeypatch.setattr(readings, "maps_of", lambda *args, **options: maps)
    S = readings.seed_cues(data, 0, {"colour": None}, np.ones(data.image(0).shape[:2]), types=("threshold",), merge=merge)
    rows = [expected] if merge else [[1, 1, IGNORE], [1, IGNORE, IGNORE], [1, IGNORE, IGNORE]]
    assert S[:, 0, :3].tolist() == [[1 + c if label == 1 else label for label in row] for row in rows] and (S == S[:, :1]).all()


@pytest.mark.parametrize("options, said", [({"networks": 3}, "networks is 3"), ({"types": ()}, "types is ()"), ({"types": ("treshold",)}, "threshold"), ({"scales": ()}, "scales ()"), ({"scales": (1., 1.)}, "none twice"),
                                           ({"scales": (0.,)}, "above 0"), ({"merge": "mean"}, "way to merge scales 'mean'")])
def test_impossible_seeds_are_refused_when_the_recipe_is_made(options, said):
    """Before a classifier is trained for a night."""
    with pytest.raises(DataError) as error:
        RECIPES["wst"](**options)
    assert said in str(error.value) and "To mend it" in str(error.value)


@pytest.mark.parametrize("recipe, setting, said", [("wst", "networks=two", "a whole number"), ("wst", "scales=big", "a number"), ("wst", "sharpness=[1]", "a number"), ("dgcn", "layers=3", "a text"), ("dgcn", "neighbours=.5", "a whole number"),
                                                   ("dgcn", "theta_background=much", "a number or none"), ("dgcn", "tetha=.7", "options.theta"), ("wst", "merg=average", "options.merge")])
def test_options_of_the_wrong_type(recipe, setting, said, few):
    """Where they are written, not where they are used."""
    with pytest.raises(DataError) as error:
        tiny(few, f"{recipe}/toy", f"options.{setting}")
    assert said in str(error.value), str(error.value)
