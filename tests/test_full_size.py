"""Two true updates of presets: every trainable parameter is reached, every loss finite. At full input size only where WSSS_NB_FULL is set; a small twin always."""
import math
import os

import pytest
import torch
from full_size import Updates, told, two_updates

from wsss_nb.preset_table import names

TWINS = {"sec/voc-vgg16": ["classify/colour", "train"], "dsrg/coco-vgg16": ["classify/colour", "train", "retrain"], "cues/voc-res50": ["classify/colour", "classify/grey", "train"], "salient/features-imagenet": ["features"]}
ROOM = 24   # GiB


def judge(found: Updates) -> None:
    """Finite losses, twice, and nothing that training forgets."""
    assert len(found.losses) == 2 and all(math.isfinite(value) for update in found.losses for value in update.values()) and found.losses[0]
    assert found.unreached == [] and found.trainable > 2 * 10**6 and found.gib < ROOM, told("", found)


@pytest.mark.parametrize("preset", TWINS)
def test_a_small_twin(preset, tmp_path):
    """The same networks, supervision and losses on views of 65 pixels."""
    found = list(two_updates(preset, tmp_path, batch=1, size=65))
    for each in found:
        judge(each)
    assert [each.name for each in found] == TWINS[preset]
    terms = {"sec": {"seed", "boundary", "expand"}, "dsrg": {"seed", "boundary"}, "cues": {"seed", "boundary"}}.get(preset.split("/")[0])
    assert terms is None or set(next(each for each in found if each.name == "train").losses[0]) == terms


def test_what_is_not_reached_is_named(tmp_path):
    """A layer nobody asks for has no gradient, and is listed by name."""
    from full_size import updates_of

    from wsss_nb.schedule import Training
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "idle": torch.nn.Linear(2, 1)})
    found = updates_of("x", network, lambda part: {"loss": network["used"](part).sum()}, [[torch.ones(1, 2)]] * 2, Training(iterations=2, batch_size=1), None, 5)
    assert found.unreached == ["idle.bias", "idle.weight"] and "NOT reached: idle.bias, idle.weight" in told("p", found) and found.trainable == 6


@pytest.mark.skipif(not os.environ.get("WSSS_NB_FULL"), reason="WSSS_NB_FULL is not set: two updates at full input size take minutes (or: python tests/full_size.py PRESET)")
@pytest.mark.parametrize("preset", names())
def test_two_updates_at_full_size(preset, tmp_path):
    """321 pixels, or what the paper has, of every training of every preset."""
    if "efficientnet" in preset:
        pytest.importorskip("timm")
    for found in two_updates(preset, tmp_path):
        judge(found)
