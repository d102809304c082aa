"""From found objects to tags: what is known of each, who gets which, and how right that is."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.association import (
    TAGGERS,
    Looks,
    among,
    associate,
    at_random,
    attention_of,
    by_attention,
    keywords_of,
    look_at,
    read_looks,
    tag_scores,
    toy_simple,
    true_tags,
    with_simple,
    write_looks,
)
from wsss_nb.attention import attention_map
from wsss_nb.backbones import backbone
from wsss_nb.core import IGNORE, DataError
from wsss_nb.instances import read_instances, write_instances
from wsss_nb.pretraining import class_folders
from wsss_nb.tagged import Instances, mask_boxes
from wsss_nb.voc import voc_folder


def squares(size: tuple[int, int], *places: tuple[int, int, int, int], scores: tuple[float, ...] = ()) -> Instances:
    """Rectangles (left, top, right, bottom) as objects without a name."""
    masks = np.zeros((len(places), *size), bool)
    for mask, (left, top, right, bottom) in zip(masks, places):
        mask[top:bottom, left:right] = True
    return Instances(masks, mask_boxes(masks), np.ones(len(masks), np.int64), np.array(scores or [1.] * len(masks)))


@pytest.fixture
def three(toyvoc, tmp_path):
    """Three pictures with two objects, none and one, stored; one small network."""
    data = voc_folder(toyvoc, "train", masks=True).subset(range(3))
    sizes = [data.image(i).shape[:2] for i in range(3)]
    rows = [squares(sizes[0], (5, 6, 40, 50), (60, 10, 90, 70)), squares(sizes[1]), squares(sizes[2], (0, 0, 30, 30))]
    write_instances(tmp_path / "found.json", zip(data.ids, rows), ("object",), "a test", "nothing")
    torch.manual_seed(0)
    network = backbone("small", len(data.classes), "random").eval()
    return data, read_instances(tmp_path / "found.json", data=data), network


def test_each_row_belongs_to_its_instance(three):
    """Keywords, attention and features come in the order of the stored instances, also past a picture without any."""
    data, found, network = three
    looks = look_at(found, data, network, network, 32)
    assert np.array_equal(looks.keywords, data.tags[[0, 0, 2]]) and np.array_equal(looks.attention, attention_of(network, data, found))
    for row, (i, k) in enumerate([(0, 0), (0, 1), (2, 0)]):
        left, top, right, bottom = found(data.ids[i]).boxes[k].astype(int)
        A = attention_map(network, data.image(i), full=False)
        h, w = data.image(i).shape[:2]
        pixel = torch.nn.functional.interpolate(A[None], (h, w), mode="nearest-exact")[0]       # a coarse map is constant over its cell
        assert np.allclose(looks.attention[row], pixel[:, top:bottom, left:right].mean((1, 2)).numpy(), atol=.02)
    one = look_at(found.subset([data.ids[2]]), data.subset([2]), network, network, 32)
    assert np.allclose(one.features[0], looks.features[2], atol=1e-5) and not np.allclose(looks.features[0], looks.features[1], atol=1e-3)


def test_instances_of_other_pictures_are_refused(three):
    """An order that differs would give each object another picture's tags."""
    data, found, _ = three
    with pytest.raises(DataError, match="in another order"):
        keywords_of(found, data.subset([1, 0, 2]))


def test_looks_come_back_or_are_refused(three, tmp_path):
    """The same bytes; no half file, no pickle, no missing table, no other shape."""
    looks = Looks(np.eye(3, dtype=np.float32), np.zeros((3, 2), np.float32), np.ones((3, 2), bool))
    path = write_looks(tmp_path / "looks.npz", looks)
    again = read_looks(path)
    assert all(np.array_equal(getattr(again, name), getattr(looks, name)) for name in vars(looks))
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:200])
    np.savez(tmp_path / "pickled.npz", **vars(looks) | {"features": np.array([{"a": 1}] * 3, object)})
    np.savez(tmp_path / "lacking.npz", features=looks.features)
    np.savez(tmp_path / "other.npz", **vars(looks) | {"attention": np.zeros((2, 2))})
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("cut", "pickled", "lacking", "other", "text", "absent"):
        with pytest.raises(DataError) as error:
            read_looks(tmp_path / f"{name}.npz")
        assert "\n" not in str(error.value)


def test_simple_taggers_by_hand():
    """At random: only the picture's tags, each as often; by attention: the larger of those; no tag is noise."""
    keywords = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    attention = np.array([[.2, .3, .9], [.9, .9, .1], [.5, .5, .5]], np.float32)
    looks = Looks(np.eye(3, dtype=np.float32), attention, keywords)
    assert by_attention(looks).tolist() == [2, 3, 0]
    drawn = np.array([at_random(looks, seed) for seed in range(400)])
    assert set(drawn[:, 0]) == {1, 2} and abs((drawn[:, 0] == 1).mean() - .5) < .1 and set(drawn[:, 1]) == {3} and set(drawn[:, 2]) == {0}
    assert np.array_equal(at_random(looks, 5), at_random(looks, 5))


def test_alike_objects_share_a_tag():
    """Attention is sure of the first cow alone; the second looks like it and has two tags: the graph decides, and with noise the stranger goes."""
    features = np.array([[1, 0, 0], [.95, .05, 0], [.9, .1, 0], [0, 0, 1]], np.float32)
    keywords = np.array([[1, 0], [1, 0], [1, 1], [1, 1]], bool)
    attention = np.array([[.9, .1], [.9, .1], [.49, .5], [.01, .02]], np.float32)
    looks = Looks(features, attention, keywords)
    assert by_attention(looks).tolist() == [1, 1, 2, 2]
    assert associate(looks, beta=1.).tag.tolist()[:3] == [1, 1, 1]
    assert associate(looks, beta=1000.).tag.tolist()[:3] == [1, 1, 2]            # so much attention outweighs any likeness
    assert associate(looks, beta=1., retention=.75).tag.tolist() == [1, 1, 1, 0]
    assert list(TAGGERS) == ["random", "attention", "graph", "graph + attention", "+ noise"]
    assert (TAGGERS["+ noise"](looks) == 0).sum() == 1                           # 4 · .9 is 3, rounded down


def test_neighbours_are_as_many_as_asked():
    """The uncertain object is most like a cat, and a little less like two cows: one neighbour says cat, three say cow; three is the usual."""
    angles = np.array([0., .3, -.35, .36])                       # uncertain, cat, cow, cow
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    keywords = np.array([[1, 1], [0, 1], [1, 0], [1, 0]], bool)
    looks = Looks(features, np.zeros((4, 2), np.float32), keywords)
    assert (associate(looks, beta=0., neighbours=3).tag[0], associate(looks, beta=0.).tag[0]) == (1, 1)
    alone = Looks(np.array([[1, 0, 0], [.9, .1, 0], [.8, 0, .6], [.8, 0, .61]], np.float32), np.zeros((4, 2), np.float32), keywords)
    assert (associate(alone, beta=0., neighbours=1).tag[0], associate(alone, beta=0., neighbours=3).tag[0]) == (2, 1)


def test_scores_by_hand():
    """Eight instances: three objects right, one wrong, one lost; of three pieces of noise two are kept."""
    tag, truth = np.array([1, 2, 3, 1, 0, 2, 2, 0]), np.array([1, 2, 3, 2, 1, 0, 0, 0])
    assert tag_scores(tag, truth) == {"right": 3 / 5, "right of those kept": 3 / 6, "objects kept": 4 / 5, "noise dropped": 1 / 3}
    nothing = tag_scores(np.zeros(2, int), np.zeros(2, int))
    assert np.isnan(nothing["right"]) and nothing["noise dropped"] == 1.


def test_an_instance_is_what_most_of_it_is(three):
    """The most frequent known label under the mask; nobody knows: noise."""
    data, found, _ = three
    masks = {name: np.zeros(data.image(i).shape[:2], np.uint8) for i, name in enumerate(data.ids)}
    masks[data.ids[0]][6:50, 5:40] = 3
    masks[data.ids[0]][10:70, 60:90] = IGNORE
    masks[data.ids[0]][10:12, 60:62] = 2                                         # four pixels that are known
    masks[data.ids[2]][:14, :30] = 5                                             # less than half of 30 × 30
    assert true_tags(found, replace(data, read_mask=masks.__getitem__)).tolist() == [3, 2, 0]
    masks[data.ids[0]][10:12, 60:62] = IGNORE
    assert true_tags(found, replace(data, read_mask=masks.__getitem__)).tolist() == [3, 0, 0]


def folders(root: Path, *names: str, n: int = 2) -> Path:
    """Grey pictures of 8 × 6, sorted into folders."""
    for c in names:
        (root / c).mkdir(parents=True)
        for k in range(n):
            Image.fromarray(np.full((6, 8, 3), 40 * k, np.uint8)).save(root / c / f"{k}.png")
    return root


def test_simple_pictures_join_a_data_set(three, tmp_path):
    """They come last, with one tag each, an unknown mask, and their own files; a class or a name that cannot be joined is refused."""
    data, _, _ = three
    simple = class_folders(folders(tmp_path / "simple", "cow", "bird"), "")
    both = with_simple(data, simple)
    assert len(both) == 7 and both.ids[:3] == data.ids and both.classes == data.classes
    assert [tuple(np.array(data.classes)[row]) for row in both.tags[3:]] == [("bird",), ("bird",), ("cow",), ("cow",)]
    assert np.array_equal(both.image(0), data.image(0)) and both.image(4).shape == (6, 8, 3) and both.image(4)[0, 0, 0] == 40
    assert np.array_equal(both.mask(1), data.mask(1)) and both.mask(5).shape == (6, 8) and (both.mask(5) == IGNORE).all()
    assert with_simple(replace(data, read_mask=None), simple).read_mask is None
    assert among(simple, data.classes).tags.sum() == 4 and among(simple, data.classes).classes == data.classes
    with pytest.raises(DataError, match="the simple pictures are of lion"):
        with_simple(data, class_folders(folders(tmp_path / "lions", "lion"), ""))
    with pytest.raises(DataError, match="have the same name in both"):
        with_simple(both, simple)


def test_toy_simple_pictures_have_one_thing_each(tmp_path, monkeypatch):
    """Six classes in turn, none of another data set; drawn once; other seeds draw others."""
    monkeypatch.setenv("WSSS_NB_CACHE", str(tmp_path))
    simple = toy_simple(12)
    assert simple.classes == ("bird", "boat", "car", "cat", "cow", "sheep") and simple.tags.sum(0).tolist() == [2] * 6
    stamp = simple.image_file(simple.ids[0]).stat().st_mtime_ns
    assert toy_simple(12).image_file(simple.ids[0]).stat().st_mtime_ns == stamp
    assert not np.array_equal(toy_simple(12, seed=1).image(0), simple.image(0))
