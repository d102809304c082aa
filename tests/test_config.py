"""Settings: what is accepted, who wins, what is refused and how it is said."""
import json
import math
import sys
from dataclasses import fields, replace
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsss_nb import config as module
from wsss_nb.config import as_toml, known_settings, load_config, read_config, read_value, write_config
from wsss_nb.core import DataError
from wsss_nb.presets import PRESETS
from wsss_nb.recipes import RECIPES
from wsss_nb.schedule import Training
from wsss_nb.settings import Config, Cues, Data, Predict, Retrain, Train, as_dict, convert, difference, fingerprint


def recipe(theta: float = .85, ratio: tuple[float, float] | None = None, deep: bool = False, anything=None):
    """A recipe's function: only its arguments count here."""


TABLE = {"dsrg/toy": {"train": {"batch_size": 12}, "retrain": {"batch_size": 12}, "options": {"theta": .5}},
         "dsrg/voc": {"train": {"epochs": 3, "learning_rate": .01}, "retrain": {"epochs": 5}},
         "sec/voc": {"train": {"batch_size": 15}}}
TOY = {"find": lambda name: recipe, "presets": TABLE}


def refused(*says, **call):
    """The one-line message of a call that must fail, once it holds what it should say."""
    with pytest.raises(DataError) as error:
        load_config(**call, **TOY)
    message = str(error.value)
    assert "\n" not in message and "To mend it" in message and all(part in message for part in says), message
    return message


@pytest.fixture
def toml(tmp_path):
    """Write text into a file and hand over its path."""
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write


@pytest.mark.parametrize(("value", "hint", "expected"), [
    (3, int, 3), (3, float, 3.), (.5, float, .5), (True, bool, True), ("a", str, "a"), ([1, 2], tuple[int, int], (1, 2)), ((1,), tuple[float, ...], (1.,)),
    ([], tuple[str, ...], ()), (2, tuple[float, ...], (2.,)), ("a", tuple[str, ...], ("a",)), (None, str | None, None), ("none", str | None, None),
    ("none", float | None, None), ("none", tuple[int, int] | None, None), (3, float | None, 3.), ("crop", Literal["crop", "warp"], "crop"), ({"a": 1}, dict, {"a": 1})])
def test_convert(value, hint, expected):
    """What nobody could mean otherwise is brought to its type."""
    got = convert(value, hint, "x")
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(("value", "hint", "says"), [
    (True, int, "a whole number"), (1, bool, "true or false"), (1., int, "a whole number"), ("1", int, "a whole number"), ("1", float, "a number"), (True, float, "a number"),
    (math.inf, float, "a number"), (math.nan, float | None, "a number or none"), (1, str, "a text"), ("None", float | None, "a number or none"), (None, int, "a whole number"),
    ([1], tuple[int, int], "a list of 2 (each a whole number)"), ([1, "2"], tuple[int, ...], "a list (each a whole number)"), ("Crop", Literal["crop", "warp"], "crop or warp"),
    (["crop"], Literal["crop", "warp"], "crop or warp"), ({}, int, "a whole number"), ([], dict, "a table")])
def test_convert_refuses(value, hint, says):
    """Everything else is refused, and the message says what was expected."""
    with pytest.raises(DataError, match="the name is") as error:
        convert(value, hint, "the name")
    assert f"expected {says}. To mend it" in str(error.value)


@given(st.lists(st.sampled_from(["preset", "file", "set"]), unique=True))
def test_upper_layer_wins(layers):
    """Of any layers that name a setting, the uppermost decides."""
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.toml"
        file.write_text("[train]\nmomentum = 0.2\n" if "file" in layers else "# nothing\n")
        presets = {"dsrg/toy": {"train": {"momentum": .1}} if "preset" in layers else {}}
        config = load_config(file=file, overrides=["train.momentum=0.3"] * ("set" in layers), find=lambda name: recipe, presets=presets)
    expected = {"set": .3, "file": .2, "preset": .1}
    assert config.train.momentum == next((value for name, value in expected.items() if name in layers), Training().momentum)


def test_call_and_overrides(toml, tmp_path):
    """Recipe and data may be named in a file, in the call or by --set; the later one counts."""
    file = toml(f"recipe = 'sec'\n[data]\nname = '{tmp_path}'")
    assert (load_config(file=file, **TOY).recipe, load_config(file=file, **TOY).preset) == ("sec", "sec/voc")
    config = load_config("dsrg", "toyvoc", file, **TOY)
    assert (config.recipe, config.preset, config.data.name) == ("dsrg", "dsrg/toy", "toyvoc")
    assert load_config(data="toyvoc", overrides=[f"data.name={tmp_path}"], **TOY).preset == "dsrg/voc"
    assert load_config(overrides=["seed=1", "seed=2"], **TOY).seed == 2


def test_preset(tmp_path):
    """The data decides which of a recipe's presets; a name after the recipe's does, too; none takes none."""
    chosen = {("dsrg", "toyvoc"): "dsrg/toy", ("dsrg", tmp_path): "dsrg/voc", ("dsrg/voc", "toyvoc"): "dsrg/voc", ("sec", "toyvoc"): "sec/voc", ("a.b:c", "toyvoc"): "dsrg/toy"}
    for (name, data), preset in chosen.items():
        assert load_config(name, data, **TOY).preset == preset
    bare = load_config(overrides=["preset=none"], **TOY)
    assert bare == Config() and bare.preset is None
    assert load_config(find=lambda name: recipe, presets={}) == Config()


def test_options_are_not_borrowed():
    """A recipe that borrows DSRG's preset keeps its own arguments."""
    assert load_config("dsrg", **TOY).options == {"theta": .5}
    borrowed = load_config("a.b:c", **TOY)
    assert borrowed.options == {} and borrowed.train.batch_size == 12


def test_alike_stays_alike(tmp_path):
    """What train and retrain have alike follows train; what the preset or the user made different does not; seed goes to both."""
    config = load_config(overrides=["train.batch_size=4", "train.network=vgg16", "seed=7"], **TOY)
    assert (config.retrain.batch_size, config.retrain.network) == (4, "vgg16")
    assert (config.train.seed, config.retrain.seed, config.data.seed) == (7, 7, 0)
    voc = load_config("dsrg", tmp_path, overrides=["train.epochs=9", "train.learning_rate=.5", "train.momentum=.5"], **TOY)
    assert (voc.train.epochs, voc.retrain.epochs) == (9, 5) and (voc.train.learning_rate, voc.retrain.learning_rate) == (.5, .001) and voc.retrain.momentum == .5
    own = load_config(overrides=["train.epochs=2", "retrain.epochs=3", "seed=7", "train.seed=8"], **TOY)
    assert (own.train.epochs, own.retrain.epochs, own.train.seed, own.retrain.seed) == (2, 3, 8, 8)
    assert load_config(overrides=["retrain.epochs=3"], **TOY).train.epochs == 10


@pytest.mark.parametrize(("word", "value"), [
    ("8", 8), ("-1", -1), (".5", .5), ("1e-3", .001), ("5.", 5.), ("true", True), ("False", False), ("none", "none"), ("None", "none"), ("crop", "crop"), ("1,2", [1, 2]),
    ("a, b", ["a", "b"]), ("a,", ["a"]), ("[1, 2]", [1, 2]), ("'8'", "8"), ("\"a,b\"", "a,b"), ("/a b/c=d", "/a b/c=d"), ("nan", "nan"), ("inf", "inf"),
    ("1979-05-27", "1979-05-27"), ("{a = 1}", "{a = 1}"), (r"C:\data", r"C:\data")])
def test_read_value(word, value):
    """Words of a command line."""
    assert read_value(word) == value and type(read_value(word)) is type(value)


def test_unknown_keys(toml):
    """A typo is refused with the layer it stands in and its neighbours, wherever it is."""
    refused("mine.toml", "'train.batchsize'", "train.batch_size", file=toml("[train]\nbatchsize = 8"))
    refused("mine.toml", "'trian.epochs'", "train.epochs", file=toml("[trian]\nepochs = 8"))
    refused("'trian'", file=toml("[trian]"))
    refused("--set", "'batch_size'", "train.batch_size", overrides=["batch_size=8"])
    refused("--set", "'options.tetha'", "options.theta", overrides=["options.tetha=1"])
    refused("'train.optimiser.name'", "train.optimiser", file=toml("[train.optimiser]\nname = 'sgd'"))
    refused("dsrg/vco", "dsrg/voc", recipe="dsrg/vco")
    refused("dsrg/vco", "dsrg/voc", overrides=["preset=dsrg/vco"])
    refused("train", "a table", "[train]", file=toml("train = 5"))
    refused("options", "a table", overrides=["options=5"])
    with pytest.raises(DataError, match="preset dsrg/toy called 'train.epoch'"):
        load_config(find=lambda name: recipe, presets={"dsrg/toy": {"train": {"epoch": 1}}})


def test_unknown_recipe():
    """The recipes that exist are offered."""
    with pytest.raises(DataError, match="no recipe 'dsgr'.*dsrg"):
        load_config("dsgr")
    with pytest.raises(DataError, match="no_such_module:mine cannot be loaded"):
        load_config("no_such_module:mine")


def test_wrong_types(toml):
    """File, key, value and what was expected."""
    refused("train.epochs in", "mine.toml", "'10'", "a whole number", file=toml("[train]\nepochs = '10'"))
    refused("predict.crf in", "mine.toml", "'false'", "true or false", file=toml("[predict]\ncrf = 'false'"))
    refused("cues.size in --set is 41", "a list of 2 (each a whole number) or none", overrides=["cues.size=41"])
    refused("train.view in --set is 'zoom'", "crop or warp", overrides=["train.view=zoom"])
    refused("train.schedule in --set is 'linear'", "poly or poly_epoch or step", overrides=["train.schedule=linear"])
    refused("options.theta in --set is 'high'", "a number", overrides=["options.theta=high"])
    refused("seed in --set is 1.5", "a whole number", overrides=["seed=1.5"])
    refused("data.name in --set is 2012", "a text", overrides=["data.name=2012"])
    refused("seed", "mine.toml", "2020", file=toml("seed = 2020-01-01"))
    refused("train.learning_rate in", "inf", "a number", file=toml("[train]\nlearning_rate = inf"))


def test_sections_refuse_values():
    """Checks of the dataclasses name their section."""
    refused("[train] epochs is 0", overrides=["train.epochs=0"])
    refused("[train] size is 0", overrides=["train.size=0"])
    refused("[train] size is 321, low 2.0", overrides=["train.low=2"])
    refused("[retrain] rounds is -1", overrides=["retrain.rounds=-1"])
    refused("[predict] scales is (0.0, 1.0)", overrides=["predict.scales=0,1"])
    refused("[cues] scales is ()", overrides=["cues.scales=[]"])
    refused("[data] n_train is 0", overrides=["data.n_train=0"])
    for wrong in (lambda: Train(epochs="10"), lambda: Train(schedule=lambda *_: 1.), lambda: Data(seed=True), lambda: Cues(size=(41,)), lambda: Config(train=Training()),
                  lambda: Predict(scales="large"), lambda: Retrain(start="maybe")):
        with pytest.raises(DataError):
            wrong()


def test_files_that_are_none(toml, tmp_path):
    """A file that is missing, a folder, empty, no TOML or no text; data that is not there."""
    refused("gone.toml does not exist", file=tmp_path / "gone.toml")
    refused("is not a file", file=tmp_path)
    refused("is empty", file=toml(""))
    refused("mine.toml is no TOML", "line 2", file=toml("[train]\nepochs = 0,1"))
    refused("mine.toml is no TOML", file=toml("[train]\nepochs = 1\nepochs = 2"))
    refused("mine.toml is no TOML", file=toml("name = 'größe'".encode("latin-1")))
    refused("VOC2021", "no folder", data=tmp_path / "VOC2021")
    refused("--set 'train.epochs'", "section.key=value", overrides=["train.epochs"])
    refused("--set 'train.epochs='", "none stands for no value", overrides=["train.epochs="])
    assert load_config(file=toml("\ufeffseed = 3"), **TOY).seed == 3                # the mark some editors put first


def test_student_recipe(tmp_path, monkeypatch):
    """Arguments of a function in a student's file are settings, with their types; a default shows their type to nobody."""
    (tmp_path / "methods_of_mine.py").write_text("def mine(sure: float = .9, names: tuple[str, ...] = ('a',), free=1):\n    pass\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = "methods_of_mine:mine"
    config = load_config(name, overrides=["options.sure=1", "options.names=a,b", "options.free=x"])
    assert config.recipe == name and config.options == {"sure": 1., "names": ("a", "b"), "free": "x"} and config.preset == "dsrg/toy"
    assert read_config(write_config(config, tmp_path / "run").parent) == config
    with pytest.raises(DataError, match="options.sure"):
        load_config(name, overrides=["options.shure=1"])


def test_recipe_without_readable_types():
    """Types that only a type checker imports, or a partial function: names are still checked."""
    from functools import partial
    def vague(theta: "NotImported" = 1, other=2):  # noqa: F821
        """Nothing."""
    for function in (vague, partial(recipe, deep=True)):
        config = load_config(overrides=["options.theta=0.25"], find=lambda name, function=function: function, presets={})
        assert config.options == {"theta": .25}
        with pytest.raises(DataError, match="options.theta"):
            load_config(overrides=["options.thete=1"], find=lambda name, function=function: function, presets={})


@example(.1, [1.], "\x7f\"\\\n\u2028 größe = 'x'", 0)
@settings(max_examples=40)
@given(st.floats(0, 1e30, exclude_min=True), st.lists(st.floats(1e-3, 9), min_size=1, max_size=3), st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, 2**31))
def test_written_is_read(rate, scales, model, seed):
    """config.json and TOML give back every bit, and writing again gives every byte."""
    import tempfile
    from pathlib import Path
    model = "m" + model
    config = Config(preset="dsrg/toy", train=Train(learning_rate=rate), predict=Predict(scales=scales), cues=Cues(model=model, size=(41, 41)), seed=seed, options={"ratio": (.05, 20.)})
    with tempfile.TemporaryDirectory() as folder:
        path = write_config(config, folder)
        before = path.read_bytes()
        back = read_config(folder, TOY["find"])
        assert back == config and write_config(back, folder).read_bytes() == before
        file = Path(folder) / "all.toml"
        file.write_text(as_toml(config), encoding="utf-8", newline="")
        assert load_config(file=file, **TOY) == replace(config, options={"theta": .5, **config.options})      # the preset lies below the file


def test_unreadable_run(tmp_path):
    """A folder without config, half a config, another table, a setting of another version."""
    def message():
        with pytest.raises(DataError) as error:
            read_config(tmp_path, TOY["find"])
        return str(error.value)
    assert "config.json does not exist" in message()
    path = write_config(Config(), tmp_path)
    whole = path.read_text()
    for text, says in ((whole[:50], "cannot be read"), ("[1]", "is no config"), ("{}", "is no config"), (whole.replace("batch_size", "batch"), "train.batch_size"),
                       (whole.replace(": 16", ': "16"'), "a whole number")):
        path.write_text(text)
        assert "config.json" in message() and says in message()
    path.write_bytes(b'{"recipe": "\xff"}')
    assert "cannot be read" in message()


def other_value(value):
    """A value of the same type that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, *(value or ["x"])]
    return {"poly": "step", "crop": "warp", "trained": "afresh", "sgd": "adamw", None: "x"}.get(value, f"{value}x")


def test_every_setting_counts(tmp_path):
    """Changing any one setting changes the fingerprint of its section, of all, and of no other; idle ones change none."""
    base, sections = Config(), ("data", "classify", "instances", "cues", "train", "retrain", "predict", "detect")
    idle = {"workers", "checkpoint_minutes", "checkpoint_epochs", "tensorboard", "find_unused", "device"}
    numbers = {"clip", "stride", "iterations", "dropout", "amend", "foreground", "background"}
    seen = 0
    for key in known_settings():
        section, _, name = key.rpartition(".")
        table = as_dict(base)
        place = table[section] if section else table
        place[name] = 1 if name in numbers else [3, 4] if key == "cues.size" else .25 if name == "low" else other_value(place[name])
        (tmp_path / "config.json").write_text(json.dumps(table))
        changed = read_config(tmp_path, TOY["find"])
        moved = {part for part in sections if fingerprint(base, part) != fingerprint(changed, part)}
        assert moved == ({section} if section and name not in idle else set()), key
        assert (fingerprint(base) != fingerprint(changed)) == (name not in idle)
        assert list(difference(base, changed)) == ([key] if name not in idle else []) and list(difference(base, changed, idle=True)) == [key]
        seen += 1
    assert seen == sum(len(fields(type(getattr(base, part)))) for part in sections) + 4                   # and recipe, preset, seed, device


def test_options_have_no_order():
    """The same options in another order are the same; a missing one is a difference."""
    a, b = Config(options={"theta": .5, "deep": True}), Config(options={"deep": True, "theta": .5})
    assert a == b and fingerprint(a) == fingerprint(b) and difference(a, b) == {}
    assert difference(a, Config(options={"theta": .5})) == {"options.deep": (True, None)} and difference(Config(), a)["options.theta"] == (None, .5)
    assert fingerprint(a, "options") != fingerprint(Config(), "options")
    with pytest.raises(DataError, match="options"):
        fingerprint(a, "option")


def test_one_home_for_defaults():
    """A section that is a Training keeps Training's defaults, and config hands on what settings define."""
    for section in (Train(), Retrain()):
        assert {f.name: getattr(section, f.name) for f in fields(Training)} == {f.name: getattr(Training(), f.name) for f in fields(Training)}
    assert {f.name for f in fields(Retrain)} - {f.name for f in fields(Train)} == {"rounds", "restrict", "balanced", "start", "scales", "flip"}
    assert set(module._all_) <= set(module.__all__) and load_config(find=lambda name: recipe, presets={}) == Config()


def test_every_recipe_and_preset(tmp_path):
    """Every preset of the library is accepted by its own recipe, on ToyVOC and on a folder, and survives the disk."""
    for name in PRESETS:
        config = load_config(name)
        assert config.preset == name and read_config(write_config(config, tmp_path / name).parent) == config
    for name in RECIPES:
        assert load_config(name).preset == f"{name}/toy" and not load_config(name, tmp_path).preset.endswith("/toy")
