"""Tiny runs for the tests of recipes, stages, manifests and commands: 24 small pictures, one epoch, every stage real. Their numbers mean nothing."""
from pathlib import Path

from wsss_nb.config import Config, load_config

TINY = ("train.batch_size=8", "train.epochs=1", "train.warm_up=0", "train.looked_at=3", "train.size=64", "train.checkpoint_minutes=0")


WST = ("classify.weights=random", "cues.size=[24, 24]", "device=cpu")   # two networks that nobody pretrained: their seeds differ


def tiny(data: Path, recipe: str = "dsrg/toy", *changed: str) -> Config:
    """The config of a tiny run on a folder in VOC layout."""
    return load_config(recipe, data, overrides=[*TINY, *changed])


def light_up(run: Path) -> None:
    """Make the classifiers' last weights positive: after a training of seconds their maps would be dark, and no pixel would get a class."""
    from wsss_nb.pretraining import load_classifier, save_classifier
    for path in run.glob("classify/*/classifier.pt"):
        network = load_classifier(path)
        network.linear.weight.data.abs_()
        save_classifier(path, network, "small")


def words(*changed: str) -> list[str]:
    """The same settings for the command line."""
    return [f"--set={text}" for text in (*TINY, *changed)]
