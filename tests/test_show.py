"Pictures of labels, heat and many images: colours by hand, sizes by counting, and files that are whole."
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from wsss_nb.core import DataError
from wsss_nb.show import (
    as_picture,
    borders,
    class_name,
    contact_sheet,
    hatching,
    heat_overlay,
    legend,
    overlay,
    panels,
    plot_quality,
    region_centres,
    save_picture,
    tag_names,
    write_names,
)

matplotlib.use("Agg")
CLASSES = ("bird", "boat", "car")


@pytest.fixture(autouse=True)
def no_open_figures():
    "Each test closes what it drew."
    yield
    import matplotlib.pyplot as plt
    plt.close("all")


def test_import_loads_neither_torch_nor_matplotlib():
    "The arrays need no drawing library."
    code = "import sys, wsss_nb.show; print({'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_names():
    "Class c of 1…C is entry c-1; 0 and 255 have names of their own; others have none."
    assert [class_name(c, CLASSES) for c in (0, 1, 3, np.uint8(255))] == ["background", "bird", "car", "unlabelled"]
    for wrong in (4, -1, 254):
        with pytest.raises(DataError, match=f"class {wrong} has no name"):
            class_name(wrong, CLASSES)
    assert tag_names(np.array([True, False, True]), CLASSES) == "bird, car"
    with pytest.raises(ValueError):
        tag_names(np.array([True]), CLASSES)


def test_overlay_colours_by_hand():
    "VOC's class 1 is (128,0,0): on grey 100, alpha 0.25 gives 107, 75, 75; background gets half of alpha."
    grey = np.full((4, 4, 3), 100, np.uint8)
    shown = overlay(grey, np.full((4, 4), 1), alpha=.25)
    assert (shown == (107, 75, 75)).all()
    assert (overlay(grey, np.zeros((4, 4), int), alpha=.5) == 75).all()
    assert (overlay(grey, np.full((4, 4), 2), alpha=1) == (0, 128, 0)).all()
    assert (grey == 100).all()                                    # the argument is not painted on


def test_unlabelled_keeps_the_image():
    "At least three quarters of the unlabelled pixels are the image's own, and none is hidden."
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    shown = overlay(image, np.full((40, 60), 255))
    same = (shown == image).all(2)
    assert same.mean() > .75 and not same.all()
    assert (shown[~hatching(40, 60)] == image[~hatching(40, 60)]).all()
    assert np.corrcoef(shown[~same].ravel(), image[~same].ravel())[0, 1] > .9


def test_border_lies_between_labels():
    "A square's right and lower inner edge and the pixels left and above it; switched off it leaves flat colour."
    S = np.zeros((5, 5), int)
    S[1:4, 1:4] = 1
    expected = np.zeros((5, 5), bool)
    expected[1:4, [0, 3]] = expected[[0, 3], 1:4] = True
    np.testing.assert_array_equal(borders(S), expected)
    black = np.zeros((5, 5, 3), np.uint8)
    with_border, without = overlay(black, S), overlay(black, S, border=False)
    assert (with_border[expected] > 150).all() and (with_border[~expected] == without[~expected]).all()
    assert len(np.unique(without.reshape(-1, 3), axis=0)) == 2


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 255])))
def test_centres_lie_inside(S):
    "Every class has one centre, on a pixel of that class, and no pixel lies deeper (by brute force)."
    centres = region_centres(S)
    assert set(centres) == set(np.unique(S).tolist()) - {0, 255}
    for c, place in centres.items():
        assert S[place] == c
        other = [(y, x) for y in range(-1, S.shape[0] + 1) for x in range(-1, S.shape[1] + 1)
                 if not (0 <= y < S.shape[0] and 0 <= x < S.shape[1]) or S[y, x] != c]
        depth = lambda u: min((u[0] - y)**2 + (u[1] - x)**2 for y, x in other)
        assert depth(place) == max(depth((y, x)) for y, x in zip(*np.nonzero(S == c)))


def test_heat():
    "alpha 0 is the grey image; inferno grows lighter with the value; numbers outside [0,1] and NaN are refused."
    image = np.random.default_rng(1).integers(0, 256, (3, 50, 3), dtype=np.uint8)
    ramp = np.linspace(0, 1, 50)[None].repeat(3, 0)
    assert abs(heat_overlay(image, ramp, 0).astype(float) - image.mean(2, keepdims=True)).max() <= .5
    light = as_picture(ramp)[0] @ (.2126, .7152, .0722)
    assert (np.diff(light) > -.5).all() and light[-1] - light[0] > 200
    for wrong in (2., -.1, np.nan):
        with pytest.raises(DataError, match=r"\[0,1\]"):
            heat_overlay(image, np.full((3, 50), wrong))
    with pytest.raises(DataError, match="interpolation"):
        heat_overlay(image, ramp[:2])


def test_overlay_refuses_another_size():
    "A label map of another size than the image; a grey image; an image of fractions, which would come out black."
    S = np.zeros((4, 4), int)
    with pytest.raises(DataError, match="label map has shape"):
        overlay(np.zeros((4, 4, 3), np.uint8), S[:, :3])
    for image in (np.zeros((4, 4), np.uint8), np.full((4, 4, 3), .5)):
        for draw in (lambda: overlay(image, S), lambda: contact_sheet([image])):
            with pytest.raises(DataError, match="the image holds"):
                draw()
    for wrong in (S - 1, S + 256, S + .5):
        with pytest.raises(DataError, match="a label map holds"):
            overlay(np.zeros((4, 4, 3), np.uint8), wrong)


def test_panels():
    "One axis a picture, titled; spare axes are empty."
    image, S = np.zeros((6, 8, 3), np.uint8), np.eye(6, 8).astype(int)
    fig = panels({"image": image, "labels": S, "heat": S * .5, "mask": S > 0, "result": overlay(image, S)}, columns=3)
    assert [ax.get_title() for ax in fig.axes] == ["image", "labels", "heat", "mask", "result", ""]
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 1, 1, 0]
    assert tuple(fig.axes[1].images[0].get_array()[0, 0]) == (128, 0, 0)
    ax = write_names(fig.axes[1], S * 3, CLASSES)
    assert [t.get_text() for t in ax.texts] == ["car"]
    with pytest.raises(DataError, match="nothing to draw"):
        panels({})


def test_contact_sheet_layout():
    "Three images in two columns, masks below, names below those; another number of masks or names is refused."
    images = [np.full((10, 20, 3), k * 60, np.uint8) for k in range(3)]
    masks = [np.full((10, 20), k) for k in range(3)]
    assert contact_sheet(images, columns=2).shape == (10 + 4 + 10, 20 + 4 + 20, 3)
    sheet = contact_sheet(images, masks, columns=2)
    assert sheet.shape == (20 + 4 + 20, 44, 3) and sheet.dtype == np.uint8
    assert (sheet[:10, 24:] == 60).all() and (sheet[10:20, 24:] == overlay(images[1], masks[1])).all()
    named = contact_sheet(images, masks, columns=2, names=["a", "b", "c"])
    assert named.shape[1] == 44 and named.shape[0] > sheet.shape[0]
    assert (named[:20, :20] == sheet[:20, :20]).all() and (named[20:42, :20].min((1, 2)) < 150).sum() >= 8   # a letter to read, also at half size
    with pytest.raises(DataError, match="2 masks for 3"):
        contact_sheet(images, masks[:2])
    with pytest.raises(DataError, match="no images"):
        contact_sheet([])


def test_save_picture(tmp_path):
    "PNG keeps every pixel, JPEG nearly; another ending is refused and nothing is left behind."
    picture = np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    save_picture(tmp_path / "new" / "a.png", picture)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), picture)
    save_picture(tmp_path / "a.jpg", picture * 0 + 90)
    assert abs(np.array(Image.open(tmp_path / "a.jpg")).astype(int) - 90).max() <= 2
    with pytest.raises(DataError, match="'.tif'"):
        save_picture(tmp_path / "a.tif", picture)
    with pytest.raises(DataError, match="holds complex128"):
        save_picture(tmp_path / "b.png", picture.astype(complex))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "new"]


def test_legend_and_quality():
    "All classes with VOC's colours; three curves with markers of their own; a missing number is named."
    ax = legend(CLASSES)
    assert [t.get_text() for t in ax.texts] == ["0 background", "1 bird", "2 boat", "3 car", "255 unlabelled"]
    np.testing.assert_allclose(ax.patches[3].get_facecolor()[:3], np.array([128, 128, 0]) / 255)
    ax = plot_quality([{"precision": .6, "recall": .3, "iou": .2}, {"precision": .5, "recall": float("nan"), "iou": .4}])
    assert [line.get_label() for line in ax.lines] == ["precision", "recall", "iou"]
    assert len({line.get_marker() for line in ax.lines}) == 3
    many = tuple("abcdefgh")
    assert len(plot_quality([dict.fromkeys(many, .5)], keys=many).lines) == 8
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [.2, .4])
    with pytest.raises(DataError, match="lacks recall"):
        plot_quality([{"precision": .5, "iou": .4}])
    with pytest.raises(DataError, match="0 epochs"):
        plot_quality([])


def test_pictures_of_toyvoc(toyvoc, tmp_path):
    "A contact sheet of a real folder, saved and read again."
    from wsss_nb.voc import voc_folder
    data = voc_folder(toyvoc, "train", masks=True).subset(range(6))
    sheet = contact_sheet([data.image(i) for i in range(6)], [data.mask(i) for i in range(6)], 3, list(data.ids))
    save_picture(tmp_path / "sheet.jpg", sheet)
    assert np.array(Image.open(tmp_path / "sheet.jpg")).shape == sheet.shape
