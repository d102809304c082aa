"The referee against independent programs: a double loop, np.add.at, and COCO's own masks."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from wsss_nb import evaluation
from wsss_nb.core import DataError
from wsss_nb.evaluation import (
    Evaluation,
    checked_counts,
    confusion,
    count_bytes,
    count_tensors,
    evaluate_folder,
    evaluate_folders,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    plot_confusion,
    precision,
    recall,
    supervision_quality,
    unlabelled_as_background,
)


def double_loop(prediction, target, n, partial=False):
    "The definition, pixel by pixel."
    table = [[0] * (n + partial) for _ in range(n)]
    for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist()):
        if t != 255:
            table[t][n if p == 255 else p] += 1
    return np.array(table)


def add_at(prediction, target, n):
    "The definition in numpy, without a histogram."
    table, judged = np.zeros((n, n), np.int64), target != 255
    np.add.at(table, (target[judged].astype(int), prediction[judged].astype(int)), 1)
    return table


@st.composite
def map_pairs(draw, partial=False):
    "Two label maps of one shape; runs of equal values so that words of eight equal bytes are common."
    n = draw(st.integers(1, 255))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=9))
    few = draw(st.booleans())
    values = [0, min(1, n - 1), 255] if few else [*range(n), 255]
    target = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(values)))
    prediction = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(values)))
    if not partial:   # 255 is allowed where nobody looks
        prediction = np.where((prediction == 255) & (target != 255), n - 1, prediction).astype(np.uint8)
    repeat = draw(st.sampled_from([1, 8, 13]))
    return np.repeat(prediction, repeat, -1), np.repeat(target, repeat, -1), n


@settings(max_examples=150, deadline=None)
@given(map_pairs())
def test_confusion_equals_double_loop(pair):
    "Both roads, any shape and type, against the definition."
    p, t, n = pair
    expected = double_loop(p, t, n)
    np.testing.assert_array_equal(confusion(p, t, n), expected)
    np.testing.assert_array_equal(confusion(torch.from_numpy(p), torch.from_numpy(t), n), expected)
    np.testing.assert_array_equal(confusion(p.astype(np.int64), t, n), expected)
    np.testing.assert_array_equal(confusion(torch.from_numpy(p).long(), torch.from_numpy(t).long(), n), expected)
    assert confusion(p, t, n).dtype == np.int64


@settings(max_examples=80, deadline=None)
@given(map_pairs(partial=True))
def test_partial_equals_double_loop(pair):
    "Unlabelled pixels have a column of their own, on both roads."
    p, t, n = pair
    expected = double_loop(p, t, n, partial=True)
    np.testing.assert_array_equal(confusion(p, t, n, partial=True), expected)
    np.testing.assert_array_equal(confusion(torch.from_numpy(p).int(), torch.from_numpy(t), n, partial=True), expected)
    filled = np.where(p == 255, 0, p).astype(np.uint8)
    np.testing.assert_array_equal(unlabelled_as_background(expected), add_at(filled, t, n))


def test_memory_layouts():
    "Slices, transposed, read-only and misaligned arrays count the same, and stay what they were."
    rng = np.random.default_rng(0)
    base_p, base_t = (rng.integers(0, 5, 4001, dtype=np.uint8) for _ in range(2))
    base_p.setflags(write=False)
    layouts = {"misaligned": lambda x: x[1:], "strided": lambda x: x[::3], "backwards": lambda x: x[::-1],
               "transposed": lambda x: x[:4000].reshape(40, 100).T, "stack": lambda x: x[:4000].reshape(2, 20, 100)}
    for name, view in layouts.items():
        p, t = view(base_p), view(base_t)
        before = t.copy()
        np.testing.assert_array_equal(confusion(p, t, 5), add_at(p, t, 5), err_msg=name)
        np.testing.assert_array_equal(t, before)
    p, t = torch.arange(24, dtype=torch.uint8).view(4, 6).T % 5, torch.arange(24, dtype=torch.uint8).view(6, 4) % 3
    np.testing.assert_array_equal(confusion(p, t, 5), add_at(p.numpy(), t.numpy(), 5))


def test_empty_maps_count_nothing():
    "No pixel, no count; and every number that follows is NaN, without a warning."
    empty = np.zeros((0, 5), np.uint8)
    assert confusion(empty, empty, 3).sum() == 0
    with np.errstate(all="raise"):
        for number in (mean_iou, mean_accuracy, pixel_accuracy):
            assert np.isnan(number(np.zeros((3, 3), int)))


def test_without_numba(monkeypatch):
    "Where numba is missing torch counts, and counts the same."
    monkeypatch.setattr(evaluation, "_compiled", lambda: None)
    rng = np.random.default_rng(1)
    p, t = (rng.integers(0, 21, (37, 53), dtype=np.uint8) for _ in range(2))
    t[:5] = 255
    np.testing.assert_array_equal(confusion(p, t, 21), add_at(p, t, 21))


def test_numba_really_missing():
    "An import error of numba is survived in a fresh process."
    code = ("import sys; sys.modules['numba'] = None\n"
            "import numpy as np; from wsss_nb.evaluation import confusion\n"
            "print(confusion(np.array([0, 1], np.uint8), np.array([0, 0], np.uint8), 2).tolist())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[[1, 1], [0, 0]]", done.stderr


def test_import_loads_neither_torch_nor_numba():
    "The module is light until it counts."
    code = "import sys, wsss_nb.evaluation; print({'torch', 'numba', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_counts_add_up_on_the_device():
    "Tables of several batches add as tensors and are looked at once."
    rng = np.random.default_rng(2)
    maps = [(rng.integers(0, 4, (9, 9)), rng.choice([0, 1, 2, 3, 255], (9, 9))) for _ in range(3)]
    total = sum(count_tensors(torch.from_numpy(p), torch.from_numpy(t), 4) for p, t in maps)
    np.testing.assert_array_equal(checked_counts(total), sum(add_at(p, t, 4) for p, t in maps))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_equals_cpu_without_waiting():
    "The table on the GPU is that of the CPU, and making it never waits for the device."
    rng = np.random.default_rng(3)
    p, t = rng.integers(0, 21, (4, 65, 65)), rng.choice([*range(21), 255], (4, 65, 65))
    on_gpu = [torch.from_numpy(x).cuda() for x in (p, t)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        table = count_tensors(*on_gpu, 21)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(checked_counts(table), add_at(p, t, 21))
    np.testing.assert_array_equal(confusion(*on_gpu, 21), add_at(p, t, 21))


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_bad_maps(kind):
    "Sizes, targets and predictions that cannot be are refused on both roads; what lies under 255 is not looked at."
    t = np.array([[0, 1, 255]], kind)
    with pytest.raises(DataError, match=r"shape \(1, 2\).*\(1, 3\)"):
        confusion(t[:, :2], t, 2)
    with pytest.raises(DataError, match="shape"):
        confusion(t.ravel(), t, 2)
    with pytest.raises(DataError, match="another value that is no class at 1"):
        confusion(np.array([[0, 2, 0]], kind), t, 2)
    with pytest.raises(DataError, match="holds 255 at 1 labelled pixels"):
        confusion(np.array([[0, 255, 0]], kind), t, 2)
    with pytest.raises(DataError, match="no class at 1"):
        confusion(np.array([[0, 2, 0]], kind), t, 2, partial=True)
    with pytest.raises(DataError, match="target of the prediction has 1 pixels"):
        confusion(t, np.array([[0, 2, 255]], kind), 2)
    for floats in (np.float32, np.float64):      # probabilities handed in by mistake would be cut to 0 and 1
        with pytest.raises(DataError, match="holds torch.float"):
            confusion(np.full((2, 2), .7, floats), np.zeros((2, 2), np.uint8), 3)
    flipped = np.array([[0, 1], [1, 1]], kind)
    for odd in (flipped[::-1][::-1], flipped.astype(">u2"), np.asfortranarray(flipped)):      # any strides and byte order
        np.testing.assert_array_equal(confusion(odd[::-1], flipped[::-1], 2), [[1, 0], [0, 3]])
    with pytest.raises(DataError, match="n_classes is 0"):
        confusion(t, t, 0)
    np.testing.assert_array_equal(confusion(np.array([[0, 1, 77]], kind), t, 2), [[1, 0], [0, 1]])
    if kind is np.int64:
        for wrong in (-1, 256, 2**40):
            with pytest.raises(DataError, match="no class at 1"):
                confusion(np.array([[wrong, 1, 0]], kind), t, 2)
            with pytest.raises(DataError, match="target"):
                confusion(np.array([[0, 1, 0]], kind), np.array([[wrong, 1, 255]], kind), 2)


def test_metrics_by_hand():
    "Rows are the truth: 10 background (8 found), 4 of class 1 (1 found, 3 called 2), class 2 only claimed, class 3 nowhere."
    N = np.array([[8, 0, 2, 0], [0, 1, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(iou(N), [8 / 10, 1 / 4, 0, np.nan])
    np.testing.assert_allclose(precision(N), [1, 1, 0, np.nan])
    np.testing.assert_allclose(recall(N), [8 / 10, 1 / 4, np.nan, np.nan])
    assert mean_iou(N) == pytest.approx((8 / 10 + 1 / 4 + 0) / 3)         # VOC: a class with prediction alone counts
    assert mean_accuracy(N) == pytest.approx((8 / 10 + 1 / 4) / 2)
    assert pixel_accuracy(N) == pytest.approx(9 / 14)
    assert iou(N).dtype == np.float64


def test_supervision_by_hand():
    "Class 1: 6 true, 2 found, 1 false claim, 4 unlabelled; class 2: never claimed; class 3: claimed, never there."
    N = np.array([[10, 1, 0, 1, 8], [0, 2, 0, 0, 4], [1, 0, 0, 0, 4], [0, 0, 0, 0, 0]])
    quality = supervision_quality(N)
    assert quality["labelled"] == pytest.approx(15 / 31)
    assert quality["precision"] == pytest.approx((2 / 3 + 0) / 2)                  # class 2 has none and is left out
    assert quality["recall"] == pytest.approx((2 / 6 + 0) / 2)                     # class 3 has none and is left out
    assert quality["iou"] == pytest.approx((2 / 7 + 0 + 0) / 3)
    assert quality["background_precision"] == pytest.approx(10 / 11)
    background = 18 / (18 + 2 + 9)                                                 # 18 found, 2 claimed by others, 4 + 5 taken
    assert quality["filled_mean_iou"] == pytest.approx((background + 2 / 7) / 4)
    assert quality["filled_foreground_iou"] == pytest.approx(2 / 7 / 3)
    nothing = supervision_quality(np.array([[0, 0, 5], [0, 0, 3]]))                # cues that say nothing at all
    assert np.isnan(nothing["precision"]) and nothing["recall"] == 0 and nothing["labelled"] == 0
    with pytest.raises(DataError, match="partial=True"):
        supervision_quality(N[:, :4])


def coco_masks(folder: Path):
    "The 53 images' masks, decoded by COCO's own program: smaller instance on top, crowd 255, classes in id order."
    mask = pytest.importorskip("pycocotools.mask")
    found = json.loads((folder / "coco_sample" / "instances_sample.json").read_text())
    order = {c["id"]: k + 1 for k, c in enumerate(sorted(found["categories"], key=lambda c: c["id"]))}
    for image in found["images"]:
        h, w = image["height"], image["width"]
        S = np.zeros((h, w), np.uint8)
        for a in sorted((a for a in found["annotations"] if a["image_id"] == image["id"]), key=lambda a: -a["area"]):
            code = a["segmentation"]
            if isinstance(code, list):
                code = mask.merge(mask.frPyObjects(code, h, w))
            elif isinstance(code["counts"], list):
                code = mask.frPyObjects(code, h, w)
            S[mask.decode(code) > 0] = 255 if a["iscrowd"] else order[a["category_id"]]
        yield f"{image['id']:012d}", S


def corrupted(S, rng):
    "A prediction with real outlines and honest mistakes: moved, with wrong classes and holes; never 255."
    P = np.roll(S, (3, -5), (0, 1))
    P[P == 255] = 0
    for c in np.unique(P):
        if rng.random() < .3:
            P[P == c] = rng.integers(0, 81)
    P[rng.random(P.shape) < .02] = rng.integers(0, 81)
    return P


def test_real_coco_masks(data_folder, tmp_path):
    "53 real images: each map, the folder, and partial supervision, against np.add.at."
    rng, total, partial, ids = np.random.default_rng(0), 0, 0, []
    for name, S in coco_masks(data_folder):
        P = corrupted(S, rng)
        expected = add_at(P, S, 81)
        np.testing.assert_array_equal(confusion(P, S, 81), expected)
        total, ids = total + expected, [*ids, name]
        Q = np.where(rng.random(P.shape) < .6, 255, P).astype(np.uint8)
        partial = partial + double_loop_by_class(Q, S, 81)
        for kind, picture in {"masks": S, "predictions": P, "cues": Q}.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / kind / f"{name}.png")
    assert len(ids) == 53 and (total.sum(1) > 0).sum() > 30
    classes = tuple(f"class {c}" for c in range(1, 81))
    result = evaluate_folders(tmp_path / "predictions", tmp_path / "masks", ids, classes)
    np.testing.assert_array_equal(result.confusion, total)
    assert result.images == 53 and 0.2 < mean_iou(result.confusion) < .95
    cues = evaluate_folders(tmp_path / "cues", tmp_path / "masks", ids, classes, partial=True)
    np.testing.assert_array_equal(cues.confusion, partial)


def double_loop_by_class(prediction, target, n):
    "Partial confusion by asking every pair of values."
    columns = [*range(n), 255]
    table = np.zeros((n, n + 1), np.int64)
    for i in set(np.unique(target).tolist()) - {255}:
        inside = prediction[target == i]
        for j, value in enumerate(columns):
            table[i, j] = (inside == value).sum()
    return table


@pytest.fixture
def two_folders(tmp_path):
    "Five small masks and predictions."
    rng, ids = np.random.default_rng(5), [f"image_{k}" for k in range(5)]
    for kind in ("masks", "predictions"):
        (tmp_path / kind).mkdir()
        for name in ids:
            Image.fromarray(rng.integers(0, 3, (7, 9), dtype=np.uint8)).save(tmp_path / kind / f"{name}.png")
    return tmp_path, ids


def test_missing_prediction_is_an_error(two_folders):
    "It names the first missing file and how many are missing; it skips nothing."
    folder, ids = two_folders
    for name in (ids[2], ids[4]):
        (folder / "predictions" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"image_2\.png does not exist, the first of 2 missing of 5"):
        evaluate_folders(folder / "predictions", folder / "masks", ids, ("a", "b"))
    with pytest.raises(DataError, match="empty"):
        evaluate_folders(folder / "predictions", folder / "masks", [], ("a", "b"))
    (folder / "masks" / f"{ids[0]}.png").unlink()
    with pytest.raises(DataError, match=r"masks.image_0\.png does not exist"):
        evaluate_folders(folder / "predictions", folder / "masks", ids[:1], ("a", "b"))


def test_bad_prediction_files(two_folders):
    "A wrong size, an alien class, an RGB picture and a truncated file are named."
    folder, ids = two_folders
    path = folder / "predictions" / f"{ids[3]}.png"
    good = path.read_bytes()
    run = lambda **options: evaluate_folders(folder / "predictions", folder / "masks", ids, ("a", "b"), **options)
    for picture, message in {(8, 9): r"image_3\.png has size \(8, 9\).*\(7, 9\)", (7, 9, 3): r"image_3\.png is a RGB"}.items():
        Image.fromarray(np.zeros(picture, np.uint8)).save(path)
        with pytest.raises(DataError, match=f"(?s){message}"):
            run()
    Image.fromarray(np.full((7, 9), 3, np.uint8)).save(path)
    with pytest.raises(DataError, match="image_3.*no class at 63"):
        run()
    Image.fromarray(np.full((7, 9), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="image_3.*255 at 63"):
        run()
    assert run(partial=True).confusion[:, -1].sum() == 63
    path.write_bytes(good[:40])
    with pytest.raises(DataError, match="image_3"):
        run()


def test_result_is_written_whole(two_folders, monkeypatch):
    "JSON without NaN, equal to the numbers; an interrupted write leaves the old file."
    folder, ids = two_folders
    result = evaluate_folders(folder / "predictions", folder / "masks", ids, ("a", "b", "never"), threads=1)
    path = folder / "deep" / "val.json"
    result.save(path)
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read["classes"]["never"] == {"iou": None, "precision": None, "recall": None}
    assert read["images"] == 5 and np.array(read["confusion"]).shape == (4, 4)
    assert read["mean_iou"] == pytest.approx(mean_iou(add_at(*(np.stack([np.array(Image.open(folder / kind / f"{i}.png")) for i in ids])
                                                             for kind in ("predictions", "masks")), 3)))
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Evaluation(result.confusion * 2, result.classes, 7).save(path)
    monkeypatch.undo()
    assert json.loads(path.read_text())["images"] == 5 and len(list(path.parent.iterdir())) == 1
    table = str(result)
    assert "never" in table and "–" in table and "5 images" in table and f"{100 * mean_iou(result.confusion):.1f}" in table


def test_data_set_with_masks(toyvoc, tmp_path):
    "evaluate_folder on ToyVOC: its own masks with 255 turned to background are perfect; without masks it asks for them."
    from wsss_nb.voc import voc_folder
    data = voc_folder(toyvoc, "val", masks=True)
    total = 0
    for name in data.ids:
        S = np.array(Image.open(toyvoc / "SegmentationClass" / f"{name}.png"))
        Image.fromarray(np.where(S == 255, 0, S)).save(tmp_path / f"{name}.png")
        total = total + np.bincount(S[S != 255], minlength=data.n_classes)
    result = evaluate_folder(tmp_path, data, threads=3)
    np.testing.assert_array_equal(result.confusion, np.diag(total))
    assert result.images == len(data) and result.classes == data.classes
    with pytest.raises(DataError, match="masks=True"):
        evaluate_folder(tmp_path, voc_folder(toyvoc, "val"))


def test_count_bytes_layout():
    "The public table: 255 first, classes, and what is no class last."
    p, t = np.array([255, 0, 1, 2, 7], np.uint8), np.array([0, 255, 1, 9, 1], np.uint8)
    expected = np.zeros((4, 4), int)
    for cell in ((1, 0), (0, 1), (2, 2), (3, 3), (2, 3)):
        expected[cell] += 1
    np.testing.assert_array_equal(count_bytes(p, t, 2), expected)
    np.testing.assert_array_equal(count_tensors(torch.from_numpy(p), torch.from_numpy(t), 2), expected)


def test_confusion_drawn():
    "One scale for heat; dark cells have white numbers, bright cells black ones; a class without ground truth is white and unwritten."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ax = plot_confusion(np.array([[9, 1, 0], [2, 2, 0], [0, 0, 0]]), ("cat", "cow"))
    picture = ax.images[0]
    colours = picture.to_rgba(picture.get_array())
    assert picture.get_cmap().name == "inferno" and picture.get_clim() == (0, 1)
    assert (colours[2, :, 3] == 0).all() and ax.get_facecolor() == (1, 1, 1, 1)
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 0), "0.90"), ((1, 0), "0.10"), ((0, 1), "0.50"), ((1, 1), "0.50")}
    for text in ax.texts:      # contrast of at least 4.5 to 1, as web pages ask of their text
        column, row = text.get_position()
        linear = lambda rgb: np.where((rgb := np.asarray(rgb)) <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
        light = [linear(rgb) @ (.2126, .7152, .0722) + .05 for rgb in (colours[row, column, :3], matplotlib.colors.to_rgb(text.get_color()))]
        assert max(light) / min(light) >= 4.5
    plt.close(ax.figure)
