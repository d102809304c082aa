"""The report: one page that needs nothing but itself, whose numbers are those on disk and whose pictures nobody picked."""
import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import chromium_page, wait_for
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_nb import findings, report
from wsss_nb import page as web
from wsss_nb.core import BACKGROUND, IGNORE, PALETTE, DataError
from wsss_nb.files import write_labels
from wsss_nb.stored import write_seeds
from wsss_nb.tagged import TaggedImages
from wsss_nb.voc import voc_folder

PAPER = "https://example.org/paper?a=1&b=2"
ABOUT = {"recipe": "dsrg", "title": "Deep Seeded Region Growing", "venue": "CVPR 2018", "url": PAPER, "paper": {"val.train": 57.6, "val": 59.0},
         "rows": {"val.train": "DSRG", "val": "+ retrain"}, "disclosed": []}
SETTINGS = {"seed": 3, "train": {"learning_rate": .002, "view": {"crop": 104}}}
NEVER_CLOSED = {"meta", "img", "br"}     # of HTML, not of the code under test


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text by element, and faults of its structure."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.faults, self.elements, self.words = [], [], [], []
        self.feed(text)
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if len(attributes) != len(dict(attributes)):
            self.faults.append(f"{tag} has an attribute twice")
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, inside: str = "body") -> str:
        """What stands inside elements of a kind."""
        return " ".join(data for opened, data in self.words if inside in opened)


def rows_of(text: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, read with regular expressions."""
    found = next(t for t in re.findall(r"<table.*?</table>", text, re.S) if caption in t)
    return [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in re.findall(r"<tr>.*?</tr>", found, re.S)]


def write_json(path, value):
    """Any value, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, rows):
    """A log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def random_maps(shape, key, n_classes=7, ignore=False):
    """A label map of blocks, with 255 or without."""
    draw = np.random.default_rng(key)
    values = [*range(n_classes), *[IGNORE] * ignore]
    return draw.choice(values, (4, 5)).astype(np.uint8).repeat(60, 0).repeat(60, 1)[:shape[0], :shape[1]]


def write_evaluation(path, classes, N, images=8):
    """An evaluation file, written without the library; only classes, pictures and the matrix matter."""
    write_json(path, {"images": images, "classes": {name: {} for name in ("background", *classes)}, "confusion": np.asarray(N).tolist()})


def diagonal(hits, misses):
    """A confusion matrix whose foreground pixels are hit or called background: IoU of class c is hits[c] / (hits[c] + misses[c])."""
    N = np.diag(hits)
    N[1:, 0] = misses[1:]
    return N


@pytest.fixture(scope="module")
def sets(toyvoc):
    """Six training pictures and eight of the validation set, opened with masks."""
    return (voc_folder(toyvoc, "train", masks=True).subset(range(6)), voc_folder(toyvoc, "val", masks=True).subset(range(8)))


@pytest.fixture(scope="module")
def made(sets, tmp_path_factory):
    """A run folder in which nothing is missing and everything is invented."""
    (train, val), run = sets, tmp_path_factory.mktemp("runs") / "x"
    for i, name in enumerate(train.ids):
        shape = train.mask(i).shape
        coarse = (-(-shape[0] // 8), -(-shape[1] // 8))
        write_seeds(run / "cues", name, np.stack([random_maps(coarse, (i, k), ignore=True) for k in range(2)]), train.classes, ["cam", "crf"])
        for epoch in range(0, 6):
            write_labels(run / f"train/supervision/{epoch}/{name}.png", random_maps(coarse, (i, epoch), ignore=True))
        write_labels(run / f"retrain/1/labels/{name}.png", random_maps(shape, (i, 9)))
    for i, name in enumerate(val.ids):
        for k, variant in enumerate(("val.train", "val")):
            write_labels(run / f"predict/{variant}/{name}.png", random_maps(val.mask(i).shape, (i, k)))
    write_evaluation(run / "evaluate/val.train.json", val.classes, diagonal([100] * 7, [0, 100, 100, 100, 100, 100, 100]))
    write_evaluation(run / "evaluate/val.json", val.classes, diagonal([100, 30, 20, 10, 5, 60, 0], [0, 10, 20, 30, 15, 20, 7]))
    write_evaluation(run / "evaluate/cues.json", val.classes, np.concatenate([np.diag([10] * 7), np.full((7, 1), 30)], 1))
    write_lines(run / "train/log.jsonl", [{"event": "epoch", "epoch": k, "iteration": 10 * k, "loss": 8. / k, "seeding": 6. / k, "boundary": 2. / k, "learning_rate": .1, "seconds": 1.} for k in range(1, 6)])
    write_lines(run / "classify/colour/log.jsonl", [{"event": "line", "epoch": 1, "iteration": k, "loss": .5, "tags": .5, "learning_rate": .1, "seconds": 1.} for k in range(1, 4)])
    write_lines(run / "train/quality.jsonl", [{"epoch": k, "precision": .8, "recall": .1 * k, "iou": .09 * k} for k in range(6)])
    for stage in ("classify/colour", "cues", "train", "retrain/1", "predict/val", "predict/val.train", "evaluate"):
        write_json(run / stage / "manifest.json", {"stage": stage.split("/")[0], "seconds": 61.25, "counts": {"images": 6, "colour": {"loss": .5}}})
    write_json(run / "environment.json", {"torch": "2.6.0", "packages": {"numpy": "2.1"}})
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made, tmp_path / "x")


def written(run, sets, about=ABOUT, settings=SETTINGS, **more) -> str:
    """The page's text."""
    return report.write_report(run, *sets, settings, about, **more).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(made, sets):
    """The page of the whole run."""
    return written(made, sets)


# ---- the page as a page -------------------------------------------------------------------------------------------------

def test_page_is_self_contained(text):
    """Nothing is loaded from anywhere, and the only address that leads out is the paper's."""
    page = Page(text)
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("base") + page.all("object")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img")) and page.all("img")
    outside = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert outside == [PAPER]
    assert not re.search(r"url\(|@import", text)
    assert {name for _, given in page.elements for name in given if name.startswith("on")} == set()
    assert any(m.get("http-equiv") == "Content-Security-Policy" and "default-src 'none'" in m["content"] for m in page.all("meta"))


def test_page_is_well_formed(text):
    """Elements are closed in order, headings skip no level, ids are unique and every inner link has its target."""
    page = Page(text)
    assert page.faults == [] and text.startswith("<!doctype html>")
    assert page.elements[0] == ("html", {"lang": "en"}) and len(page.all("title")) >= 1 and len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(set(ids)) == len(ids) and {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} == set(ids)


def test_page_can_be_read_without_seeing(text):
    """Pictures have words, charts a role and a name, tables a caption and heads."""
    page = Page(text)
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg")) and len(page.all("svg")) == 4
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))


def test_same_run_gives_same_page(made, sets, text):
    """No date, no random choice: written twice, the page is the same byte for byte, and nothing else is left behind."""
    assert written(made, sets) == text
    assert [p.name for p in (made / "report").iterdir()] == ["index.html"]


def test_large_pictures_keep_the_page_small(run, sets, tmp_path):
    """VOC-sized pictures and six variants of the prediction stay under 3 MB."""
    train, val = sets
    for data in sets:
        for i, name in enumerate(data.ids):
            Image.fromarray(data.image(i)).resize((500, 375), Image.Resampling.LANCZOS).save(tmp_path / f"{name}.jpg", quality=95)
    grown = [TaggedImages(d.classes, d.ids, d.tags, lambda name: tmp_path / f"{name}.jpg", lambda name: random_maps((375, 500), 5)) for d in sets]
    for variant in ("val", "val.train", "val.a", "val.b", "val.c", "val.d"):
        for name in val.ids:
            write_labels(run / f"predict/{variant}/{name}.png", random_maps((375, 500), len(variant)))
    page = written(run, grown)
    assert len(Page(page).all("img")) == 3 * (1 + 6 + 1) + 3 * (1 + 1 + 3 + 1 + 1)
    assert len(page) < 3e6
    sizes = {Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).size for image in Page(page).all("img")}
    assert sizes == {(256, 192)}


# ---- its numbers ----------------------------------------------------------------------------------------------------------

def test_result_table(text):
    """Means of hand-made confusion matrices stand beside the paper's numbers.

    val.train: six classes with 100 of 200 pixels found and the rest called background: IoU 1/2 each; background 100 / 700.
    val: IoU 3/4, 1/2, 1/4, 1/4, 3/4, 0; background 100 hits and 10+20+30+15+20+7 = 102 false alarms: 100/202.
    """
    head, first, second, nothing = rows_of(text, "Measured on this run")
    mean = lambda *values: f"{100 * sum(values) / len(values):.1f}"
    assert head == ["", "paper", "mean IoU", "foreground IoU", "pixel accuracy", "mean accuracy", "pictures"]
    assert first == ["DSRG", "57.6", mean(1/7, *[1/2] * 6), mean(*[1/2] * 6), mean(700/1300), mean(1, *[1/2] * 6), "8"]
    ious = (3/4, 1/2, 1/4, 1/4, 3/4, 0)
    assert second == ["+ retrain", "59.0", mean(100/202, *ious), mean(*ious), mean(225/327), mean(1, *ious), "8"]
    assert nothing == ["all background", "–", mean(1/13, *[0] * 6), "0.0", mean(1/13), mean(1, *[0] * 6), "8"]      # 100 of 1,300 pixels
    assert "PASCAL VOC" in text and f"mean IoU {mean(100/202, *ious)} % on 8 pictures" in text


def test_class_bars_and_table(text, sets):
    """Each class has its bar, as long as its IoU, in its colour, with its number; the same stands in a table."""
    chart = re.search(r'<svg[^>]*aria-label="IoU of each class.*?</svg>', text, re.S)[0]
    ious = [100/202, 3/4, 1/2, 1/4, 1/4, 3/4, 0]
    rects = [dict(re.findall(r'([\w-]+)="([^"]*)"', r)) for r in re.findall("<rect [^>]*>", chart)]
    widths = np.array([float(r["width"]) for r in rects])
    np.testing.assert_allclose(widths / widths[1] * .75, ious, atol=1e-3)
    assert [r["fill"] for r in rects] == ["rgb({},{},{})".format(*PALETTE[c]) for c in range(7)]
    words = re.findall(r"<text[^>]*>(.*?)</text>", chart)
    assert words == [w for name, value in zip(("background", *sets[0].classes), ious) for w in (name, f"{100 * value:.1f}")]
    rows = rows_of(text, "a dash: the class was neither there nor predicted")
    assert rows[2] == [sets[0].classes[0], "75.0", "100.0", "75.0"] and rows[1][1:] == [f"{10000/202:.1f}", f"{10000/202:.1f}", "100.0"]
    assert rows[7][1:] == ["0.0", "–", "0.0"]


def test_largest_mistakes_are_named(text, sets):
    """All of the last class was called background (7 of 7), then 30 of 40 of the third and 15 of 20 of the fourth."""
    names = sets[0].classes
    assert f"Largest mistakes: 100.0 % of {names[5]} was called background; 75.0 % of {names[2]} was called background; 75.0 % of {names[3]} was called background." in text


def test_curves(text):
    """Points lie where the log says: equally spaced in x, proportional in y; parts are drawn beside their sum."""
    chart = re.search(r'<svg[^>]*aria-label="Losses of train".*?</svg>', text, re.S)[0]
    lines = [np.array([point.split(",") for point in line.split()], float) for line in re.findall(r'points="([^"]*)"', chart)]
    assert len(lines) == 3 and all(len(line) == 5 for line in lines)
    zero = 2 * lines[0][1, 1] - lines[0][0, 1]                   # 8 and 4: as far apart as 4 and 0
    for line, total in zip(lines, (8, 6, 2)):
        np.testing.assert_allclose((zero - line[:, 1]) / (zero - lines[0][0, 1]), total / 8 / np.arange(1, 6), atol=2e-3)
        np.testing.assert_allclose(np.diff(line[:, 0]), np.diff(line[:, 0])[0], rtol=1e-3)
    alone = re.search(r'<svg[^>]*aria-label="Losses of classify/colour".*?</svg>', text, re.S)[0]
    assert len(re.findall("<polyline", alone)) == 1              # one part is its own sum
    assert rows_of(text, "Supervision of training pictures, percent")[3] == ["2", "80.0", "20.0", "18.0"]


def test_cue_row(text):
    """Ten of forty pixels of each class are labelled, and right."""
    rows = rows_of(text, "The cues, percent")[1:]
    assert rows[0][:5] == ["cues: what most of 2 seeds say", "25.0", "100.0", "25.0", "25.0"]
    assert rows[1] == ["all background", "100.0", "–", "0.0", "0.0", f"{100 / 7 / 7:.1f}"] and len(rows) == 2    # background is 40 of 280 pixels


def test_the_map_alone_has_its_rows(run, sets):
    """Beside the cues, told the tags; beside the result, with claimed ones. Counted by hand: 6 of 10 pixels of each class found, the rest called background."""
    N = np.diag([10] + [6] * 6)
    N[1:, 0] = 4
    for name in ("cues.cam", "val.cam"):
        write_evaluation(run / f"evaluate/{name}.json", sets[0].classes, N)
    page = written(run, sets, ABOUT | {"rows": {**ABOUT["rows"], "val.cam": "raw CAM, claimed"}})
    assert rows_of(page, "The cues, percent")[2] == ["raw CAM, without cues", "100.0", "100.0", "60.0", "60.0", f"{100 * (10 / 34 + 3.6) / 7:.1f}"]
    results = {row[0]: row for row in rows_of(page, "Measured on this run")}
    assert results["raw CAM, claimed"][1:4] == ["–", f"{100 * (10 / 34 + 3.6) / 7:.1f}", "60.0"] and "cues.cam" not in results


def test_eighty_classes_are_folded(text, run, sets):
    """Six names stand in the open; of many, the page opens a list."""
    assert "Their names" not in text and f"of 6 classes: {', '.join(sets[0].classes)}." in text
    many = tuple(f"thing{k}" for k in range(80))
    told = str(report.headline(run, replace(sets[0], classes=many, tags=np.zeros((len(sets[0]), 80), bool)), None, {}))
    assert re.search(r"of 80 classes\.", told) and re.search(r"<details><summary>Their names</summary><p>thing0, .*thing79</p></details>", told)
    N = np.diag([5, 0, 3] + [0] * 78)
    N[2, 0] = 3
    write_evaluation(run / "evaluate/val.json", many, N)
    write_evaluation(run / "evaluate/val.train.json", many, N)
    chart = str(report.class_section(run, ABOUT))
    assert re.findall(r'text-anchor="end"[^>]*>(\w+)<', chart) == ["background", "thing1"] and chart.count("<rect") == 2 and "79 classes that were neither there nor predicted" in chart
    assert 'fill="rgb({},{},{})"'.format(*PALETTE[2]) in chart
    assert str(report.legend_of(many)).startswith("<details>") and not str(report.legend_of(sets[0].classes)).startswith("<details>")


def test_stages_and_times(text):
    """Finished stages with their counts; their times add up: seven times 61.25 s."""
    rows = rows_of(text, "Stages that finished, 7 min 09 s in all")
    assert [row[0] for row in rows[1:]] == ["prepare", "classify/colour", "cues", "train", "retrain/1", "predict/val", "predict/val.train", "evaluate"]
    assert rows[1] == ["prepare", "not run", "–"] and rows[2][1:] == ["6 images; colour: loss 0.5", "1\u00a0min\u00a001\u00a0s"]


def test_settings_against_defaults(run, sets):
    """What differs from the defaults is marked and said, nested ones under their full name; without defaults nothing is marked."""
    page = written(run, sets, defaults={"seed": 0, "train": {"learning_rate": .002, "view": {"crop": 321}}})
    assert rows_of(page, "What was changed")[1:] == [["seed", "3", "0"], ["train.view.crop", "104", "321"]]
    assert [words for opened, words in Page(page).words if opened[-1:] == ("summary",)][-3:-1] == ["2 settings that are not the default", "3 settings"]
    assert [words for opened, words in Page(page).words if opened[-1:] == ("mark",)] == ["3", "104"] * 2
    assert rows_of(page, "The resolved configuration")[1:] == [["seed", "3", "0"], ["train.learning_rate", "0.002", "0.002"], ["train.view.crop", "104", "321"]]
    plain = written(run, sets)
    assert "not the default" not in plain and not Page(plain).all("mark")
    assert rows_of(plain, "environment.json")[1:] == [["torch", "2.6.0"], ["packages.numpy", "2.1"]]


# ---- its pictures -----------------------------------------------------------------------------------------------------------

def iou_by_sets(S, mask) -> float:
    """Mean IoU of a picture from sets of pixels; unlabelled pixels of S belong to no class."""
    S, mask = np.asarray(S), np.asarray(mask)
    judged = set(np.flatnonzero(mask.ravel() != IGNORE).tolist())
    of = lambda values, c: set(np.flatnonzero(values.ravel() == c).tolist()) & judged
    pairs = [(of(S, c), of(mask, c)) for c in range(7)]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs if a | b]))


def enlarged(S, shape):
    """Nearest neighbour, pixel by pixel."""
    at = lambda n, m: [int((k + .5) * m / n) for k in range(n)]
    return S[at(shape[0], S.shape[0])][:, at(shape[1], S.shape[1])]


@pytest.mark.parametrize("part", ["val", "train"])
def test_pictures_are_best_median_and_worst(made, sets, text, part):
    """The three headings name what brute force finds, with its IoU; failures are called worst."""
    data = sets[part == "val"]
    folder = made / ("predict/val" if part == "val" else "train/supervision/5")
    maps = {name: np.array(Image.open(folder / f"{name}.png")) for name in data.ids}
    scores = {name: iou_by_sets(enlarged(maps[name], data.mask(i).shape), data.mask(i)) for i, name in enumerate(data.ids)}
    order = sorted(scores, key=lambda name: -scores[name])
    n = len(order)
    expected = [f"{why}: {name}, IoU {100 * scores[name]:.1f} %" for why, name in (("best", order[0]), ("median", order[(n - 1) // 2]), ("worst", order[-1]))]
    section = text[text.index(f'id="{"validation" if part == "val" else "training"}-pictures"'):].partition("</section>")[0]
    assert re.findall("<h3>(.*?)</h3>", section) == expected


def test_columns_of_the_panels(text, sets):
    """Validation: picture, every prediction, truth. Training: picture, cues, first, middle and last epoch, the retraining labels, truth."""
    names = [re.sub("<.*", "", words) for words in re.findall(r"<figcaption><strong>(.*?)</strong>", text)]
    assert names[:12] == ["picture", "DSRG", "+ retrain", "truth"] * 3
    assert names[12:] == ["picture", "cues: what most of 2 seeds say", "supervision, epoch 1", "supervision, epoch 3", "supervision, epoch 5", "predicted, to retrain on", "truth"] * 3


def test_pictures_show_what_they_say(made, sets, text):
    """A data URI is the picture, at most 256 pixels wide, and the overlay of the truth has the class's colour where its caption says."""
    images = [(image["alt"], Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))) for image in Page(text).all("img")]
    assert all(max(picture.size) <= 256 for _, picture in images)
    worst = re.search(r"<h3>worst: (val_\d+)", text)[1]
    i, data = sets[1].ids.index(worst), sets[1]
    shown = {alt: np.asarray(picture, float) for alt, picture in images if f" {worst}:" in alt or alt.startswith(worst)}
    plain = next(p for alt, p in shown.items() if alt.startswith(worst))
    assert np.abs(plain - data.image(i)).mean() < 6            # JPEG
    truth, mask = next(p for alt, p in shown.items() if alt.startswith("truth")), data.mask(i)
    c = int(np.bincount(mask[(mask != BACKGROUND) & (mask != IGNORE)]).argmax())
    inside = mask == c
    expected = .4 * data.image(i)[inside].mean(0) + .6 * PALETTE[c]
    assert np.abs(truth[inside].mean(0) - expected).max() < 25      # pale borders and JPEG
    share = 100 * np.mean(mask == c)
    assert any(f"{data.classes[c - 1]} {share:.0f} %" in alt for alt in shown if alt.startswith("truth"))


def test_what_most_seeds_say(tmp_path):
    """Three seeds of five pixels, by hand: a majority, a tie won by the lower class, one voice, silence, and background against a class."""
    S = np.array([[[1, 2, 3, IGNORE, 0]], [[1, 1, IGNORE, IGNORE, 0]], [[2, IGNORE, IGNORE, IGNORE, 3]]], np.uint8)
    write_seeds(tmp_path / "cues", "x", S, ("bird", "cat", "cow"), ["a", "b", "c"])
    assert findings.stored_cue(tmp_path, "x", ("bird", "cat", "cow")).tolist() == [[1, 1, 3, IGNORE, 0]]
    assert findings.seeds_kept(tmp_path, ["nobody", "x"]) == 3 and findings.seeds_kept(tmp_path, ["nobody"]) == 0


def test_equal_scores_are_ordered_by_name():
    """Ties have one answer, whatever the order of the dictionary; a picture without a judged pixel is never chosen."""
    scores = {"d": .5, "b": .5, "a": .5, "c": float("nan")}
    assert findings.ranked(scores) == findings.ranked(dict(reversed(scores.items()))) == {"best": "a", "median": "b", "worst": "d"}
    assert findings.ranked({"a": .5}) == {"best": "a"} and findings.ranked({}) == {}


def test_seed_of_the_cues_can_be_named(run, sets):
    """The map of the named seed is shown, and which one it is; a name that does not exist is refused. Without a name it is what most of them say."""
    first, second, most = (Page(written(run, sets, {**ABOUT} | ({"seed": seed} if seed else {}))) for seed in ("cam", "crf", None))
    assert first.text() != second.text() != most.text() and "cues: crf" in second.text() and "cues: what most of 2 seeds say" in most.text()
    assert "2 seeds of each picture are learned from at once" in most.text() and "what most of 2 seeds say" in rows_of(written(run, sets), "The cues, percent")[1][0]
    with pytest.raises(DataError, match="no seed 'wst'.*cam, crf"):
        written(run, sets, {**ABOUT, "seed": "wst"})


# ---- fairness ---------------------------------------------------------------------------------------------------------------

def test_upper_bound_is_marked_and_never_the_result(run, sets):
    """Predictions that were told the true tags are named so, in table, caption and text, and do not become the headline."""
    write_evaluation(run / "evaluate/val.tags.json", sets[0].classes, np.diag([50] * 7))
    for name in sets[1].ids:
        write_labels(run / f"predict/val.tags/{name}.png", random_maps((128, 128), 3))
    before = written(run, sets)
    assert "upper bound" not in before and rows_of(before, "Measured on this run")[3][:3] == ["val.tags", "–", "100.0"]
    write_json(run / "predict/val.tags/predictions.json", {"amended": "by the true tags: an upper bound unless these are training pictures (0123)"})
    assert "upper bound" not in written(run, sets, {**ABOUT, "upper_bound": []})       # the recipe's word counts: a perfect classifier gives the same tags
    for page in (written(run, sets), written(run, sets, {**ABOUT, "upper_bound": ["val.tags"]})):
        assert rows_of(page, "Measured on this run")[3][0] == "val.tagsupper bound"
        assert "val.tags (upper bound)" in page and "is an upper bound, not a result" in page
        assert "mean IoU 100" not in page
    for name in ("val", "val.train"):
        (run / f"evaluate/{name}.json").unlink()
    assert "nothing was measured" in written(run, sets)


def test_every_evaluation_is_a_row(run, sets):
    """Files nobody named are shown under their own name; named ones that are missing say so."""
    write_evaluation(run / "evaluate/val.second.json", sets[0].classes, np.diag([1] * 7), images=2)
    (run / "evaluate/val.json").unlink()
    rows = rows_of(written(run, sets), "Measured on this run")
    assert rows[2] == ["+ retrain", "59.0", "not measured", "–", "–", "–", "–"]
    assert rows[3] == ["val.second", "–", "100.0", "100.0", "100.0", "100.0", "2"]


def test_extra_supervision_is_disclosed(run, sets):
    """What the recipe declares and what the cues' folder confesses are listed; without any, the page says tags only."""
    plain = Page(written(run, sets)).text()
    assert "Image-level tags only" in plain and "Masks of training pictures were opened for this page only" in plain
    for place, note in (("cues/seeds.json", {}), ("cues/manifest.json", {"counts": {"saliency": "extra supervision: stored saliency of DSS"}, "seconds": 1}), ("cues/seeds.json", {"saliency": "extra supervision: stored saliency of DSS"})):
        write_json(run / place, note)
        page = Page(written(run, sets, {**ABOUT, "disclosed": ["weights learned on boxes"]}))
        assert page.text("li").count("stored saliency of DSS") == (place != "cues/seeds.json" or bool(note)) and "weights learned on boxes" in page.text("li")
        assert "Image-level tags only" not in page.text()


# ---- what comes from outside --------------------------------------------------------------------------------------------------

def test_names_cannot_break_the_page(sets, tmp_path):
    """A class called <b>&, an id with quotes, a recipe that is a script, settings that close the style: all are text."""
    bad_class, bad_id, evil = "<b>&", 'a"><img src=x onerror=1>&\'', "</style><script>alert(1)</script>"
    classes, (train, _), run = (bad_class, "cow"), sets, tmp_path / "x"
    image = train.image_file(train.ids[0])
    mask = np.array(Image.open(image).convert("L")) // 128
    data = TaggedImages(classes, (bad_id, "b"), np.array([[True, False], [True, True]]), lambda name: image, lambda name: mask)
    for name in data.ids:
        for folder in ("predict/val", "train/supervision/1"):
            write_labels(run / folder / f"{name}.png", mask)
    write_evaluation(run / "evaluate/val.json", classes, np.diag([5, 5, 5]))
    write_evaluation(run / f"evaluate/{evil.replace('/', '')}.json", classes, np.diag([5, 5, 5]))
    write_lines(run / "train/log.jsonl", [{"event": "line", "iteration": k, "loss": 1., evil: 1., "b": 1.} for k in range(3)])
    write_json(run / "environment.json", {evil: {"x": evil}})
    write_json(run / "train/manifest.json", {"stage": evil, "seconds": 1, "counts": {evil: evil}})
    about = {"recipe": evil, "title": evil, "venue": evil, "url": "javascript:alert(1)", "rows": {"val": evil}, "disclosed": [evil]}
    text = written(run, (data, data), about, {evil: evil})
    page = Page(text)
    assert page.faults == []
    assert not page.all("script") and not page.all("b") and len(page.all("style")) == 1
    assert all(not image["src"].startswith("x") for image in page.all("img"))
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert bad_class in page.text("svg") and bad_class in page.text("li") and evil in page.text("h1") and f"best: {bad_id}" in page.text("h3")
    assert escape(evil) in text and evil not in text


@given(st.text(), st.text(), st.floats() | st.none())
def test_any_text_comes_back(words, value, number):
    """What is put into an element is what a parser reads out of it, and nothing more."""
    page = Page(web.element("p", words, element := web.element("i", number), title=value))
    clean = lambda text: text.replace("\r\n", "\n").replace("\r", "\n")
    assert [tag for tag, _ in page.elements] == ["p", "i"] and isinstance(element, web.Html)
    assert page.elements[0][1]["title"] == value and "".join(data for _, data in page.words) == words + str(number)
    assert clean(words) == clean("".join(data for opened, data in page.words if opened == ("p",)))


def test_letters_that_are_none_are_replaced(tmp_path):
    """A file name may hold a lone surrogate; the page is UTF-8 all the same."""
    path = web.write_page(tmp_path / "index.html", web.page("a\udcff", web.element("p", "b")))
    assert "a?" in path.read_bytes().decode("utf-8")
    with pytest.raises(DataError, match="a plain string may hold"):
        web.write_page(path, "<p>")


# ---- what is missing, what is damaged -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("gone, says", [
    ("evaluate", "Nothing was evaluated, so no class has a number."), ("evaluate/cues.json", "The cues were not evaluated."),
    ("train/quality.jsonl", "The supervision was not measured"), ("train/supervision", "Judged: the cues, for no supervision was kept."),
    ("predict", "None of the 8 validation pictures has a prediction."), ("environment.json", "Nobody recorded where this ran"),
    ("cues", "not kept"), ("retrain", "not run"), ("train/log.jsonl", "Losses of classify/colour")])
def test_missing_piece_is_one_sentence(run, sets, gone, says):
    """Each piece can be missing; the page says so and is otherwise whole."""
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(text := written(run, sets))
    assert says in text and page.faults == [] and len(page.all("h2")) == 10


def test_empty_run(sets, tmp_path):
    """A folder in which nothing ran gives a page of honest sentences."""
    page = Page(written(tmp_path, (sets[0], None), {}, {}))
    for says in ("A run: nothing was measured", "A recipe without a paper.", "Nothing was evaluated, so there is no number", "No validation pictures were given", "Neither cues nor supervision",
                 "The supervision was not measured", "No training left a log", "The settings were not recorded", "Nobody recorded where this ran"):
        assert says in page.text(), says
    assert page.text().count("not run") == 7 and not page.all("img") and page.faults == []


def test_without_masks_the_first_are_shown(run, sets, toyvoc):
    """Nobody can rank pictures without masks, and the page says so instead of pretending."""
    plain = tuple(voc_folder(toyvoc, split).subset(range(6)) for split in ("train", "val"))
    text = written(run, plain)
    assert text.count("There are no masks, so nobody can say which is best or worst.") == 2
    assert re.findall("<h3>(.*?)</h3>", text)[:3] == [f"{k}: {name}" for k, name in zip(("first", "second", "third"), plain[1].ids)]
    assert "<strong>truth" not in text and "Masks of training pictures" not in text


def test_pictures_without_prediction_are_counted(run, sets):
    """A page about some of the pictures says of how many."""
    for name in sets[1].ids[:3]:
        (run / f"predict/val/{name}.png").unlink()
    text = written(run, sets)
    assert "Best, median and worst of 5 pictures" in text and "3 of 8 pictures have no prediction." in text
    for name in sets[1].ids[3:6]:
        (run / f"predict/val/{name}.png").unlink()
    assert "All 2 pictures, best first" in written(run, sets)


def test_numbers_that_are_none_are_left_out(run, sets):
    """NaN and null in logs, and a line that was cut in two, spoil nothing."""
    rows = [{"epoch": 1, "precision": None, "recall": .2, "iou": .1}, {"epoch": 2, "precision": .5, "recall": .3, "iou": float("nan")}, {"epoch": 3}, {"epoch": 4, "precision": .5, "recall": .4, "iou": .3}]
    write_lines(run / "train/quality.jsonl", rows)
    with (run / "train/log.jsonl").open("a") as file:
        file.write('{"event": "epoch", "iteration": 60, "loss": NaN, "seeding": Infinity, "boundary": 1.0}\n{"event": "ep')
    text = written(run, sets)
    assert [row[0] for row in rows_of(text, "Supervision of training pictures, percent")[1:]] == ["1", "4"]
    assert "nan" not in re.search(r'<svg[^>]*aria-label="Losses of train".*?</svg>', text, re.S)[0].lower()


def test_damaged_files_are_named(run, sets):
    """Each is refused in one line that names the file, what was expected and the mend."""
    for name, content, says in [("evaluate/val.json", '{"images"', "damaged"), ("evaluate/val.json", "[1]", "holds a list"), ("evaluate/val.json", '{"classes": {"background": {}}, "confusion": [[1, 2, 3]]}', "shape"),
                                ("environment.json", "\x00", "damaged"), ("train/manifest.json", "{", "cannot be read"), ("predict/val/predictions.json", "no", "damaged")]:
        before = (run / name).read_text() if (run / name).exists() else "{}"
        (run / name).write_text(content)
        with pytest.raises(DataError, match=f"{name.rsplit('/')[-1]}.*{says}.*To mend it") as error:
            written(run, sets)
        assert "\n" not in str(error.value)
        (run / name).write_text(before)
    with pytest.raises(DataError, match="does not exist.*folder of a run"):
        written(run / "nowhere", sets)


def test_other_classes_are_refused(run, sets):
    """Numbers of one class list are never printed under the names of another."""
    write_evaluation(run / "evaluate/val.json", ("zebra", *sets[0].classes[1:]), np.diag([5] * 7))
    with pytest.raises(DataError, match="val.json has the classes zebra.*expected those of the training set"):
        written(run, sets)


# ---- charts -------------------------------------------------------------------------------------------------------------------

@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_few(low, span):
    """At most six, inside the axis, equally spaced by 1, 2 or 5 times a power of ten."""
    found = web.ticks(low, low + span)
    assert 1 <= len(found) <= 6 and all(low - span * 1e-3 <= t <= low + span * 1.001 for t in found)
    if len(found) > 1:
        step = f"{found[1] - found[0]:.0e}"
        assert step[0] in "125"


def test_charts_without_data_are_refused():
    """An empty chart is a mistake of the caller, who can say why there is nothing."""
    for lines in ({}, {"a": []}, {"a": [(0, None), (1, float("nan"))]}):
        with pytest.raises(DataError, match="nothing to draw"):
            web.line_chart("x", lines)
    with pytest.raises(DataError, match="no bars"):
        web.bar_chart("x", {}, [])


def test_charts_of_one_value():
    """A single point, a curve of zeros and a class that is nowhere are drawn without dividing by nothing."""
    full = re.search('<rect [^>]*>', web.bar_chart("x", {"a rather long name": 1.}, ["red"]))[0]
    assert float(re.search(' x="([^"]*)"', full)[1]) + float(re.search(' width="([^"]*)"', full)[1]) < 360 - 5 - 5 * 6.5       # room for the number
    for text in (web.line_chart("x", {"a": [(3, 0.)]}), web.line_chart("x", {"a": [(0, -1.), (1, -2.)]}), web.bar_chart("x", {"a": None}, ["red"], {"a": .5})):
        assert "nan" not in text and Page(text).faults == []


# ---- in a browser ---------------------------------------------------------------------------------------------------------------

def test_browser_shows_it_wide_and_on_a_phone(made, sets, text, tmp_path):
    """Chromium draws every picture and chart; on 390 pixels nothing sticks out sideways, and two pictures stand side by side."""
    frame = "".join(f'<iframe id="w{w}" width="{w}" height="800" srcdoc="{escape(text)}"></iframe>' for w in (1200, 390))
    (tmp_path / "both.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    with chromium_page((tmp_path / "both.html").as_uri(), tmp_path / "profile") as ask:
        inside = lambda w, what: ask(f"(d => {what})(document.getElementById('w{w}').contentDocument)")
        for w in (1200, 390):
            wait_for(lambda w=w: inside(w, "d.readyState === 'complete' && d.images.length && [...d.images].every(i => i.complete)"), "the page to load")
            assert inside(w, "[...d.images].every(i => i.naturalWidth > 20 && i.clientWidth > 100)")
            assert inside(w, "d.documentElement.scrollWidth") <= w
            assert inside(w, "[...d.querySelectorAll('svg')].every(s => s.getBoundingClientRect().width > 280 && s.getBoundingClientRect().right <= {w})".replace("{w}", str(w)))
            assert inside(w, "[...d.querySelectorAll('svg text')].every(t => t.getBoundingClientRect().height > 8)")
        columns = {w: inside(w, "getComputedStyle(d.querySelector('.pictures')).gridTemplateColumns.split(' ').length") for w in (1200, 390)}
        assert columns[390] == 2 and columns[1200] >= 5
