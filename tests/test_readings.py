"""Cues that two levels of background agree on, and the recipe that grows them."""
import json

import numpy as np
import pytest
import torch
from run_toy import light_up, tiny

from wsss_nb.config import load_config
from wsss_nb.core import BACKGROUND, IGNORE, Batch, DataError, Prediction
from wsss_nb.crf import mean_field
from wsss_nb.cues import cue_probabilities
from wsss_nb.files import read_labels
from wsss_nb.readings import LEVELS, READINGS, by_agreement, by_level, raw_cam, score_cams, seed_cues
from wsss_nb.recipes import RECIPES
from wsss_nb.seeds import by_crf, crf_scale
from wsss_nb.stages import classify, prepare, run_all
from wsss_nb.stored import read_seeds
from wsss_nb.voc import voc_folder


@pytest.fixture
def scene():
    """Maps of two tagged classes out of three, a saliency, and a picture of noise with an edge."""
    torch.manual_seed(0)
    maps, T = torch.rand(1, 3, 10, 12), torch.tensor([[True, False, True]])
    maps = maps / maps.amax((2, 3), keepdim=True) * T[:, :, None, None]
    picture = torch.randint(0, 60, (1, 3, 10, 12), dtype=torch.uint8)
    picture[..., 6:] += 150
    return maps, torch.rand(1, 10, 12), picture, T


def test_the_probabilities_of_a_level_by_hand(scene, monkeypatch):
    """P(background) : P(class) = level·(1 − saliency) : map, before any CRF."""
    maps, saliency, picture, T = scene
    seen = {}
    monkeypatch.setattr("wsss_nb.cues.mean_field", lambda H, image, **settings: seen.update(H=H, **settings) or H)
    S = by_level(maps, saliency, picture, T, .3)
    for y, x in ((0, 0), (4, 7), (9, 11)):
        scores = [.3 * (1 - saliency[0, y, x].item()), maps[0, 0, y, x].item(), 0., maps[0, 2, y, x].item()]
        assert seen["H"][0, :, y, x].tolist() == pytest.approx([score / sum(scores) for score in scores], abs=1e-5)
        assert S[0, y, x] == int(np.argmax(scores))
    assert seen["scale"] == crf_scale(10, 12) == 500 / 12


def test_a_level_against_another_crf(scene):
    """The whole reading from the definition: shares, then the CRF that adds up all pairs of pixels."""
    maps, saliency, picture, T = scene
    H = cue_probabilities(maps, 1 - .2 * (1 - saliency), T)
    Q = mean_field(H, picture, scale=crf_scale(10, 12), engine="exact")
    wanted = Q.masked_fill(~torch.tensor([True, True, False, True])[None, :, None, None], -1).argmax(1)
    assert (by_level(maps, saliency, picture, T, .2).long() == wanted).float().mean() > .9 and len(wanted.unique()) > 1


def test_level_one_is_wst_and_lower_levels_give_larger_objects(scene):
    """WST 4.2's reading is the special case."""
    maps, saliency, picture, T = scene
    assert torch.equal(by_level(maps, saliency, picture, T, 1.), by_crf(maps, saliency, picture, T))
    sizes = [int((by_level(maps, saliency * 0, picture, T, level) != BACKGROUND).sum()) for level in (.02, .3, .9)]
    assert sizes[0] >= sizes[1] >= sizes[2] and sizes[0] > sizes[2]


@pytest.mark.parametrize("level", [0., -1., 1.5, float("nan")])
def test_an_impossible_level(scene, level):
    """Refused, with what is usual."""
    with pytest.raises(DataError, match="above 0, at most 1"):
        by_level(*scene, level)


def test_agreement_pixel_by_pixel(scene):
    """A label where both levels give it, else none; more is left open the further the levels are apart."""
    low, high = (by_level(*scene, level)[0] for level in LEVELS)
    agreed = by_agreement(*scene)[0]
    for y in range(10):
        for x in range(12):
            assert agreed[y, x] == (low[y, x] if low[y, x] == high[y, x] else IGNORE)
    assert (by_agreement(*scene, levels=(.3, .3)) != IGNORE).all() and (by_agreement(*scene, levels=(.01, 1.)) == IGNORE).any()


def test_the_map_alone(toyvoc, monkeypatch):
    """Read at a fifth of the maximum, pixel by pixel; counted against the masks one by one."""
    data, total, asked = voc_folder(toyvoc, "val", masks=True).subset(range(3)), np.zeros((7, 7), int), []
    drawn = [torch.rand(1, 6, *data.mask(i).shape) ** 4 * torch.from_numpy(data.tags[i])[:, None, None] for i in range(3)]
    monkeypatch.setattr("wsss_nb.readings.maps_of", lambda network, data, i, **how: asked.append(how) or drawn[i])
    for i, M in enumerate(drawn):
        S, mask = raw_cam(None, data, i), data.mask(i)
        assert S.dtype == torch.uint8 and S.shape == mask.shape and 0 < (S > 0).float().mean() < 1
        for y, x in np.ndindex(*S.shape):
            assert S[y, x] == (1 + M[0, :, y, x].argmax() if M[0, :, y, x].max() > .2 else 0)
            if mask[y, x] != IGNORE:
                total[mask[y, x], S[y, x]] += 1
    assert score_cams(None, data).tolist() == total.tolist() and asked[0] == {"scales": (1.,)}
    assert (raw_cam(None, data, 0, foreground=1.) == 0).all()
    assert score_cams(None, data.subset([])).tolist() == np.zeros((7, 7), int).tolist()


def test_an_unknown_reading_is_named(toyvoc):
    """By the recipe, before anything is trained; and by the cues."""
    with pytest.raises(DataError, match="agreed"):
        RECIPES["ours"](reading="agred")
    with pytest.raises(DataError, match="above 0"):
        RECIPES["ours"](scales=())
    with pytest.raises(DataError, match="level"):
        seed_cues(voc_folder(toyvoc, "train"), 0, {}, None, types=("lvel",))


def test_what_ours_learns_from():
    """Cues that grow, background and foreground counted alike, no CRF in training."""
    recipe = RECIPES["ours"]()
    H = torch.tensor([[.3, .7], [.2, .8], [.95, .05], [.6, .4]]).T[None, :, None]      # (1,2,1,4)
    S = torch.tensor([[[IGNORE, 1, 0, IGNORE]]], dtype=torch.uint8)
    batch = Batch(torch.zeros(1, 3, 1, 4), torch.tensor([[True]]), S)
    grown = recipe.method.supervise(batch, Prediction(H))
    assert grown.tolist() == [[[1, 1, 0, IGNORE]]]                                      # .7 > .5 beside a cue; .6 < .9
    loss = recipe.method.loss(Prediction(H), grown, batch)
    assert set(loss) == {"pixel"} and loss["pixel"].item() == pytest.approx(-(np.log(.7) + np.log(.8)) / 2 - np.log(.95), abs=1e-5)
    assert recipe.method.refine is None and RECIPES["ours"](theta_foreground=2., theta_background=2.).method.supervise(batch, Prediction(H)).tolist() == S.tolist()


def test_ours_runs_through_every_stage(few, tmp_path):
    """From pictures to the report; one map a picture, of the tags' classes, background and unlabelled."""
    config = tiny(few, "ours/toy")
    prepare(config, tmp_path)
    classify(config, tmp_path)
    light_up(tmp_path)
    run_all(config, tmp_path)
    data = voc_folder(few, "train")
    for i, name in enumerate(data.ids):
        found = read_seeds(tmp_path / f"cues/{name}.npz", data.classes)
        assert found.names == ("ours 0",) and set(np.unique(found.S)) <= {BACKGROUND, IGNORE, *(1 + np.flatnonzero(data.tags[i]))}
    assert not list(tmp_path.glob("retrain/*/segmenter.pt")) and 0 <= json.loads((tmp_path / "evaluate/val.json").read_text())["mean_iou"] <= 1
    assert "lesson 44" in (tmp_path / "report/index.html").read_text() and read_labels(next((tmp_path / "predict/val").glob("*.png"))).ndim == 2


def test_the_preset_for_photographs(few):
    """What a folder of one's own gets: a light network, trained once; the same recipe as ToyVOC's."""
    photo, toy = load_config("ours", few), load_config("ours", "toyvoc")
    assert (photo.preset, toy.preset, photo.options, toy.options) == ("ours/photo", "ours/toy", {}, {})
    assert photo.retrain.rounds == toy.retrain.rounds == 0 and photo.classify.network == photo.train.network == "timm:tf_efficientnet_lite0"
    assert set(READINGS) == {"threshold", "crf", "level", "agreed"}
