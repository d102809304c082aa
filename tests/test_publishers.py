"""VOC and COCO from miniature archives in their publishers' layout, served by a server that fails in every way; the scripts."""
import gzip
import hashlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from file_server import PAGE, FileServer
from notebooks import ROOT
from PIL import Image
from scipy.io import savemat

from wsss_nb import publishers, remotes, weights
from wsss_nb.coco import coco
from wsss_nb.coco_files import COCO_COUNTS, COCO_FILES, check_coco, coco_pieces, prepare_coco
from wsss_nb.core import PALETTE, DataError
from wsss_nb.remotes import Remote
from wsss_nb.voc import VOC_CLASSES, voc12
from wsss_nb.voc_files import VOC12_COUNTS, VOC12_FILES, check_voc12, make_masks, prepare_voc12, train_aug_ids

QUICK = (0, 0, 0)
IDS = [f"2008_{k:06}" for k in range(12)]
TRAIN, VAL, TEST = IDS[:4], IDS[4:7], IDS[10:]
SBD_TRAIN, SBD_VAL = [IDS[8], IDS[1], IDS[4]], [IDS[9], IDS[5], IDS[7]]          # with images of VOC's train and of its val
TRAIN_AUG = [IDS[k] for k in (0, 1, 2, 3, 7, 8, 9)]                              # worked out by hand
COUNTS = {"train": 4, "val": 3, "trainval": 7, "train_aug": 7, "test": 2}
LISTS = "ImageSets/Segmentation"


def saved(save) -> bytes:
    """What a function writes into a file object."""
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def shape(k: int) -> np.ndarray:
    """The mask of picture k: a box of class k + 1 on background."""
    S = np.zeros((24 + k, 30), np.uint8)
    S[5:15, 4 + k:20] = k + 1
    return S


def palette_png(S: np.ndarray) -> bytes:
    """A palette PNG, as VOC's are."""
    picture = Image.fromarray(S)
    picture.putpalette(PALETTE.tobytes())
    return saved(lambda file: picture.save(file, "PNG"))


def jpeg(k: int) -> bytes:
    """Picture k."""
    pixels = np.random.default_rng(k).integers(0, 255, (*shape(k).shape, 3)).astype(np.uint8)
    return saved(lambda file: Image.fromarray(pixels).save(file, "JPEG"))


def lines(ids: list[str]) -> bytes:
    """A list file."""
    return "".join(f"{i}\n" for i in ids).encode()


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """A tar with entries for folders too, as the publishers' have."""
    def write(file):
        packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if mode == "w:gz" else file       # no time in it: made twice, the same bytes
        with tarfile.open(fileobj=packed, mode="w") as opened:
            for folder in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
                info = tarfile.TarInfo(folder)
                info.type = tarfile.DIRTYPE
                opened.addfile(info)
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
        if packed is not file:
            packed.close()
    return saved(write)


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip with entries for folders too."""
    def write(file):
        with zipfile.ZipFile(file, "w") as opened:
            for folder in sorted({name.rpartition("/")[0] for name in files}):
                opened.writestr(folder + "/", b"")
            for name, content in files.items():
                opened.writestr(name, content)
    return saved(write)


def voc_archives() -> dict[str, bytes]:
    """VOCtrainval, SBD and VOC's test archive of twelve pictures."""
    outer = {f"JPEGImages/{i}.jpg": jpeg(k) for k, i in enumerate(IDS) if i not in TEST}
    outer |= {f"Annotations/{i}.xml": f"<annotation><object><name>{VOC_CLASSES[k]}</name></object></annotation>".encode() for k, i in enumerate(IDS) if i not in TEST}
    for k, i in enumerate(TRAIN + VAL):
        S = shape(k)
        S[:2] = 255                                                                     # VOC has void, SBD does not
        outer |= {f"SegmentationClass/{i}.png": palette_png(S), f"SegmentationObject/{i}.png": palette_png(np.minimum(S, 1) + 254 * (S == 255).astype(np.uint8))}
    outer |= {f"{LISTS}/{name}.txt": lines(ids) for name, ids in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL))} | {"ImageSets/Main/cat_train.txt": b"2008_000000 -1\n"}
    sbd = {f"cls/{i}.mat": saved(lambda file: savemat(file, {"GTcls": {"Segmentation": shape(IDS.index(i)), "CategoriesPresent": [1]}})) for i in SBD_TRAIN + SBD_VAL}
    sbd |= {f"img/{i}.jpg": jpeg(IDS.index(i)) for i in SBD_TRAIN} | {"train.txt": lines(SBD_TRAIN), "val.txt": lines(SBD_VAL)}
    test = {f"JPEGImages/{i}.jpg": jpeg(IDS.index(i)) for i in TEST} | {f"{LISTS}/test.txt": lines(TEST), "Annotations/2008_000010.xml": b"<annotation/>"}
    return {"trainval": tar({f"VOCdevkit/VOC2012/{name}": c for name, c in outer.items()}, "w"),
            "sbd": tar({f"benchmark_RELEASE/dataset/{name}": c for name, c in sbd.items()} | {"benchmark_RELEASE/README": b"hello"}, "w:gz"),
            "test": tar({f"VOCdevkit/VOC2012/{name}": c for name, c in test.items()}, "w")}


def instances(names: list[str]) -> bytes:
    """COCO's annotations of pictures with one object each."""
    return json.dumps({"categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
                       "images": [{"id": 7 + k, "file_name": f"{name}.jpg", "height": 24 + k, "width": 30} for k, name in enumerate(names)],
                       "annotations": [{"id": k, "image_id": 7 + k, "category_id": (1, 90)[k % 2], "iscrowd": 0, "bbox": [4, 5, 10, 10], "segmentation": {"size": [24 + k, 30], "counts": [0, (24 + k) * 2, (24 + k) * 28]}}
                                       for k in range(len(names))]}).encode()


def coco_archives(year: int = 2014) -> dict[str, bytes]:
    """Pictures and annotations of five images."""
    stem = f"COCO_{{}}{year}_{{:012}}" if year == 2014 else "{1:012}"
    names = {split: [stem.format(split, k) for k in range(n)] for split, n in (("train", 3), ("val", 2))}
    return {split: zipped({f"{split}{year}/{name}.jpg": jpeg(k) for k, name in enumerate(names[split])}) for split in names} | {
        "annotations": zipped({f"annotations/{kind}_{split}{year}.json": instances(names[split]) if kind == "instances" else b"[]" for split in names for kind in ("instances", "captions", "person_keypoints")})}


def described(official: Remote, content: bytes, *addresses: str) -> Remote:
    """The publisher's file, small: same name, same kinds of hashes, other addresses."""
    digits = {kind: getattr(hashlib, kind)(content).hexdigest() if getattr(official, kind) else None for kind in ("sha256", "md5")}
    return replace(official, addresses=addresses, size=len(content) if official.size else None, **digits)


def voc_served(server: FileServer, **behaviour: dict) -> dict[str, Remote]:
    """VOC's three archives on the server; behaviour by archive."""
    return {name: described(VOC12_FILES[name], content, server.put(f"/{name}", content, **behaviour.get(name, {}))) for name, content in voc_archives().items()}


def coco_served(server: FileServer, year: int = 2014, **behaviour: dict) -> dict[int, dict[str, Remote]]:
    """COCO's three archives on the server."""
    return {year: {name: described(COCO_FILES[year][name], content, server.put(f"/{name}{year}", content, **behaviour.get(name, {}))) for name, content in coco_archives(year).items()}}


def options(remotes, **more) -> dict:
    """What makes preparing quick and quiet."""
    return {"remotes": remotes, "counts": {}, "pauses": QUICK, "say": lambda text: None} | more


def refused(call, *words) -> None:
    """The call is refused in one line with these words."""
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    assert all(str(word) in text for word in words) and "\n" not in text, text


# ---- VOC ------------------------------------------------------------------------------------------------------------------

def test_voc(server, tmp_path):
    """From three archives to a data set that `voc12` opens: lists, tags, masks."""
    remotes = voc_served(server)
    root = prepare_voc12(tmp_path, test=True, **options(remotes, counts=COUNTS))
    assert root == tmp_path / "VOC2012" and (root / LISTS / "train_aug.txt").read_text().split() == TRAIN_AUG
    data = voc12(root, "train_aug", masks=True)
    assert data.ids == tuple(TRAIN_AUG) and [data.classes[row.argmax()] for row in data.tags] == [VOC_CLASSES[IDS.index(i)] for i in TRAIN_AUG]
    for n, i in enumerate(TRAIN_AUG):
        S = shape(IDS.index(i))
        S[:2] = 255 if i in TRAIN else 0
        assert (data.mask(n) == S).all()
        aug = Image.open(root / f"SegmentationClassAug/{i}.png")                # for other programs, which look only there
        assert aug.mode == "P" and (np.asarray(aug) == S).all() and bytes(aug.getpalette()) == PALETTE.tobytes()
    assert len(voc12(root, "val", masks=True, instances=True)) == 3 and voc12(root, "test").ids == tuple(TEST)
    assert check_voc12(tmp_path, test=True, remotes=remotes, counts=COUNTS) == []
    assert not list(root.rglob("img")) and not (tmp_path / "benchmark_RELEASE/dataset/img").exists() and not (tmp_path / "VOCdevkit").exists()


def test_voc_through_every_fault(server, tmp_path):
    """A dead mirror, a web page, a wrong file, drops, a server without ranges; then it is complete, and nothing is asked again."""
    small = voc_archives()
    gone, page = server.put("/gone", b"", status=[404] * 9), server.put("/page", PAGE)
    remotes = {"trainval": described(VOC12_FILES["trainval"], small["trainval"], gone, page, server.put("/trainval", small["trainval"], drops=[9000, 9000])),
               "sbd": described(VOC12_FILES["sbd"], small["sbd"], server.put("/other", small["sbd"][::-1]), server.put("/sbd", small["sbd"], ranges=False, short=[700])),
               "test": described(VOC12_FILES["test"], small["test"], server.put("/from", b"", goes_to=server.put("/test", small["test"], short=[5000], shift=-9)))}
    prepare_voc12(tmp_path, test=True, **options(remotes, counts=COUNTS))
    assert check_voc12(tmp_path, test=True, remotes=remotes, counts=COUNTS) == []
    assert (tmp_path / "archives/benchmark.tgz.wrong").read_bytes() == small["sbd"][::-1]
    asked = len(server.asked)
    prepare_voc12(tmp_path, test=True, **options(remotes, counts=COUNTS))
    assert len(server.asked) == asked


def test_voc_is_completed(server, tmp_path):
    """Whatever is deleted or cut short is found by the check and brought back by a second call, from archives that are there."""
    remotes = voc_served(server)
    root = prepare_voc12(tmp_path, **options(remotes))
    asked, kept = len(server.asked), root / f"SegmentationClassAug/{IDS[7]}.png"
    os.utime(kept, (1, 1))
    for name in (f"JPEGImages/{IDS[0]}.jpg", f"Annotations/{IDS[1]}.xml", f"SegmentationClass/{IDS[4]}.png", f"{LISTS}/train_aug.txt", f"SegmentationClassAug/{IDS[8]}.png"):
        (root / name).unlink()
    (root / f"SegmentationClassAug/{IDS[9]}.png").write_bytes(b"")
    (root / f"SegmentationObject/{IDS[5]}.png").write_bytes(b"cut")
    faults = " | ".join(check_voc12(tmp_path, remotes=remotes, counts={}))     # ten pictures and annotations, seven masks of each kind, four lists
    assert "4 of 38 files of VOCtrainval_11-May-2012.tar" in faults and "train_aug.txt does not exist" in faults
    prepare_voc12(tmp_path, **options(remotes))
    assert check_voc12(tmp_path, remotes=remotes, counts={}) == [] and len(server.asked) == asked and kept.stat().st_mtime == 1
    assert (np.asarray(Image.open(root / f"SegmentationClassAug/{IDS[9]}.png")) == shape(9)).all()
    (root / f"SegmentationClassAug/{IDS[8]}.png").unlink()
    assert any("SegmentationClassAug" in fault and IDS[8] in fault for fault in check_voc12(tmp_path, remotes=remotes, counts={}))


def test_voc_counts(server, tmp_path):
    """Lists of another length than the publisher's are refused."""
    refused(lambda: prepare_voc12(tmp_path, **options(voc_served(server), counts=COUNTS | {"train_aug": 10582})), "train_aug.txt", "7 images instead of 10,582")


def test_voc_lists_that_overlap(server, tmp_path):
    """An image to learn from that is scored on would spoil every number."""
    remotes = voc_served(server)
    root = prepare_voc12(tmp_path, sbd=False, **options(remotes))
    (root / LISTS / "train.txt").write_bytes(lines(VAL[:1] + TRAIN[1:]))             # of the same length: only the ids tell
    refused(lambda: prepare_voc12(tmp_path, **options(remotes)), "train.txt and in val.txt", VAL[0])


def test_voc_without_sbd(server, tmp_path):
    """It is asked for by name, has no train_aug, and both the check and `voc12` say so."""
    remotes = voc_served(server)
    root = prepare_voc12(tmp_path, sbd=False, **options(remotes))
    assert check_voc12(tmp_path, sbd=False, remotes=remotes, counts={}) == [] and not any(path == "/sbd" for path, _ in server.asked)
    assert any("train_aug.txt does not exist" in fault for fault in check_voc12(tmp_path, remotes=remotes, counts={}))
    refused(lambda: voc12(root, "train_aug"), "train_aug.txt does not exist")
    assert len(voc12(root, "train", masks=True)) == 4


def test_voc_mask_of_another_size(server, tmp_path):
    """An SBD mask that is not of its photograph's size is refused by name, and mended by the next call."""
    remotes = voc_served(server)
    prepare_voc12(tmp_path, **options(remotes))
    mat = tmp_path / f"benchmark_RELEASE/dataset/cls/{IDS[7]}.mat"
    good = mat.read_bytes()
    (tmp_path / f"VOC2012/SegmentationClassAug/{IDS[7]}.png").unlink()
    wrong = saved(lambda file: savemat(file, {"GTcls": {"Segmentation": np.zeros((60, 60), np.uint8)}}))
    mat.write_bytes(wrong)
    refused(lambda: make_masks(tmp_path / "VOC2012", mat.parent.parent, TRAIN_AUG), mat, "size")
    prepare_voc12(tmp_path, **options(remotes))
    assert check_voc12(tmp_path, remotes=remotes, counts={}) == [] and mat.read_bytes() == good


def test_voc_unpacked_by_somebody_else(tmp_path):
    """A folder without our lists of lengths can be checked as well."""
    for content in voc_archives().values():
        with tarfile.open(fileobj=io.BytesIO(content)) as opened:
            opened.extractall(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012").rename(tmp_path / "VOC2012")
    assert check_voc12(tmp_path, sbd=False, counts={}) == []
    (tmp_path / f"VOC2012/JPEGImages/{IDS[2]}.jpg").unlink()
    assert [IDS[2] in fault and "JPEGImages" in fault for fault in check_voc12(tmp_path, sbd=False, counts={})] == [True, True]    # train and trainval


def test_train_aug_formula(data_folder):
    """The 10,582 of the lists in circulation are sorted, hold all of VOC's train and nothing of its val; so do ours."""
    read = lambda name: tuple((data_folder / f"voc12/{name}.txt").read_text().split())
    train, val, theirs = read("train"), read("val"), read("train_aug")
    rest = tuple(i for i in theirs if i not in set(train))
    assert train_aug_ids(train, val, rest[::2] + val[:100], rest[1::2] + train[:50]) == list(theirs)
    assert {name: len(read(name)) for name in ("train", "val", "train_aug", "test")} == {name: n for name, n in VOC12_COUNTS.items() if name != "trainval"}


# ---- COCO -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("year", [2014, 2017])
def test_coco(server, tmp_path, year):
    """Three zips to a folder that `coco` opens, through a drop, a redirect and a dead mirror; captions stay packed."""
    remotes = coco_served(server, year, train={"drops": [1000]}, val={"status": [503]})
    remotes[year]["val"] = replace(remotes[year]["val"], addresses=remotes[year]["val"].addresses * 2)
    assert prepare_coco(tmp_path, year, **options(remotes, counts={year: {"train": 3, "val": 2}})) == tmp_path
    data = coco(tmp_path / f"train{year}", tmp_path / f"annotations/instances_train{year}.json", masks=True)
    assert len(data) == 3 and data.tags.tolist() == [[True, False], [False, True], [True, False]]
    assert (data.mask(1)[:, :2] == 2).all() and not data.mask(1)[:, 2:].any()
    assert sorted(p.name for p in (tmp_path / "annotations").iterdir()) == [f"instances_train{year}.json", f"instances_val{year}.json"]
    assert check_coco(tmp_path, year, remotes, {year: {"train": 3, "val": 2}}) == []
    asked = len(server.asked)
    prepare_coco(tmp_path, year, **options(remotes))
    assert len(server.asked) == asked


def test_coco_check(server, tmp_path):
    """Pictures that lack, pictures too many, annotations that lack, other numbers, the wrong year."""
    remotes = coco_served(server)
    prepare_coco(tmp_path, **options(remotes))
    look = lambda year=2014, counts={}: check_coco(tmp_path, year, remotes | {2017: COCO_FILES[2017]}, counts)
    assert look() == [] and look(2017) == [f"{tmp_path} holds no pictures of COCO 2017, but of 2014"]
    assert look(counts=COCO_COUNTS) == ["instances_train2014.json names 3 images instead of 82,783", "instances_val2014.json names 2 images instead of 40,504"]
    (tmp_path / "train2014/COCO_train2014_000000000001.jpg").rename(tmp_path / "train2014/other.jpg")
    faults = look()
    assert ["1 of 3 files" in fault for fault in faults] == [True, False, False] and "000000000001" in faults[1] and "does not name, the first is other" in faults[2]
    (tmp_path / "annotations/instances_val2014.json").unlink()
    assert any("instances_val2014.json does not exist" in fault for fault in look())
    prepare_error = lambda: prepare_coco(tmp_path, **options(remotes))
    refused(prepare_error, "other")                                       # what was deleted is back; what is too much stays, and is named
    (tmp_path / "train2014/other.jpg").unlink()
    prepare_error()
    assert look() == []


def test_coco_wrong_year(tmp_path):
    """There are two."""
    for call in (lambda: coco_pieces(2015), lambda: prepare_coco(tmp_path, 2016), lambda: check_coco(tmp_path, 14)):
        refused(call, "2014 or 2017")


def test_half_unpacked_coco(server, tmp_path):
    """Pictures that somebody's killed `unzip` left are used; the rest comes."""
    remotes = coco_served(server)
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014/COCO_train2014_000000000000.jpg").write_bytes(jpeg(0))
    (tmp_path / "train2014/COCO_train2014_000000000001.jpg").write_bytes(jpeg(1)[:50])
    faults = check_coco(tmp_path, 2014, remotes, {2014: {"train": 3}})
    assert any("instances_train2014.json does not exist" in fault for fault in faults) and any("no" in fault and "val2014" in fault for fault in faults)
    prepare_coco(tmp_path, **options(remotes))
    assert (tmp_path / "train2014/COCO_train2014_000000000001.jpg").read_bytes() == jpeg(1)


# ---- by name --------------------------------------------------------------------------------------------------------------

def test_prepare_by_name(server, tmp_path):
    """One function for the command line; the next command names the folder, quoted where a shell needs it."""
    small, folder = {"voc12": voc_served(server), "coco14": coco_served(server)}, tmp_path / "my data"
    for name, inner in (("voc12", "/VOC2012"), ("coco14", "")):
        more = {"remotes": small[name], "counts": {}}
        before = publishers.prepare(name, folder, check_only=True, **more)
        assert before.faults and (name == "coco14" or not folder.exists())
        done = publishers.prepare(name, folder, pauses=QUICK, say=lambda text: None, **more)
        assert done.faults == [] and str(done.root) == f"{folder}{inner}" and f"--data '{folder}{inner}'" in done.next and done.next.startswith("wsss_nb run --recipe ")
        assert publishers.prepare(name, folder, check_only=True, **more).faults == []
    refused(lambda: publishers.prepare("voc2012", folder), "voc12, coco14, coco17")
    refused(lambda: publishers.prepare("voc12", folder, source=tmp_path / "nowhere"), "--from", "nowhere")


def test_from_folder(server, tmp_path):
    """Archives on a disk are compared and used where they lie; a wrong one is refused, named and left alone."""
    remotes, shelf = voc_served(server), tmp_path / "shelf"
    shelf.mkdir()
    for name, content in voc_archives().items():
        (shelf / remotes[name].file).write_bytes(content)
    prepare_voc12(tmp_path / "a", shelf, **options(remotes))
    assert not server.asked and not (tmp_path / "a/archives").exists()
    wrong = shelf / "benchmark.tgz"
    wrong.write_bytes(wrong.read_bytes()[:-1])
    refused(lambda: prepare_voc12(tmp_path / "b", shelf, **options(remotes)), wrong, "MD5")
    assert wrong.exists()


def test_room_for_everything_first(server, tmp_path, monkeypatch):
    """The disk is measured before the first of three archives is asked for."""
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: type("usage", (), {"free": 10 ** 9}))
    refused(lambda: prepare_coco(tmp_path / "new", say=print), "train2014.zip and val2014.zip and annotations", "40.8 GB", "1.0 GB", tmp_path)
    assert not (tmp_path / "new").exists()


CHILD = """
import json, sys
from wsss_nb.remotes import Remote
from wsss_nb.voc_files import prepare_voc12
remotes = {name: Remote(**{**told, "addresses": tuple(told["addresses"])}) for name, told in json.loads(sys.argv[2]).items()}
prepare_voc12(sys.argv[1], remotes=remotes, counts={})
"""


def test_killed_again_and_again(server, tmp_path):
    """SIGKILL while SBD comes, in two processes at once; then the rest, and the whole is right."""
    remotes = voc_served(server, sbd={"stalls": [600] * 2})
    told = json.dumps({name: vars(remote) for name, remote in remotes.items()})
    children = [subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, told], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    part = tmp_path / "archives/benchmark.tgz.part"
    for _ in range(2000):                          # less than the half minute after which the children would give up by themselves
        if part.exists() and part.stat().st_size == 600:
            break
        time.sleep(.01)
    assert part.stat().st_size == 600
    for process in children:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in children] == [-9, -9]
    server.files["/sbd"].stalls.clear()
    prepare_voc12(tmp_path, **options(remotes, counts=COUNTS))
    assert check_voc12(tmp_path, remotes=remotes, counts=COUNTS) == [] and ("/sbd", "bytes=600-") in server.asked
    assert [path for path, _ in server.asked].count("/trainval") == 1


def test_addresses():
    """Every published file has a hash, https first, and mirrors that the hash lets us trust."""
    files = [*VOC12_FILES.values(), *(remote for year in COCO_FILES.values() for remote in year.values())]
    assert len({remote.file for remote in files}) == len(files) == 9
    for remote in files:
        assert len(remote.md5 or "") == 32 and len(remote.sha256 or "x" * 64) == 64 and (remote.size or remote.file == "benchmark.tgz")
        secure = [address.startswith("https://") for address in remote.addresses]
        assert secure == sorted(secure, reverse=True) and all(address.endswith(f"/{remote.file}") for address in remote.addresses)


# ---- scripts --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def script(monkeypatch):
    """Import a script of data_scripts as it sees itself."""
    monkeypatch.syspath_prepend(str(ROOT / "data_scripts"))
    return importlib.import_module


def small_table(served: dict, name: str) -> publishers.Published:
    """The table's row, with the test's archives."""
    row = publishers.PUBLISHED[name]
    return row._replace(prepare=partial(row.prepare, remotes=served, counts={}, pauses=QUICK), check=partial(row.check, remotes=served, counts={}))


@pytest.mark.parametrize("name, module, inner", [("voc12", "get_voc12", "VOC2012"), ("coco14", "get_coco", "")])
def test_get_script(server, tmp_path, monkeypatch, capsys, script, name, module, inner):
    """--check of nothing fails with words; getting prints the next command; --check is then content."""
    served = voc_served(server) if name == "voc12" else coco_served(server)
    monkeypatch.setitem(publishers.PUBLISHED, name, small_table(served, name))
    main = script(module).main
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "d"), "--check"])
    assert "without --check" in str(stopped.value.code) and "- " in capsys.readouterr().out and not (tmp_path / "d").exists()
    main([str(tmp_path / "d")])
    assert f"--data {tmp_path / 'd' / inner} --run" in capsys.readouterr().out.replace("/ --run", " --run")
    main([str(tmp_path / "d"), "--check"])
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "d"), "--from", str(tmp_path / "nowhere")])
    assert str(stopped.value.code).startswith("error: --from")


def test_get_script_options(server, tmp_path, monkeypatch, capsys, script):
    """--test and --no-sbd reach the library; COCO's year is one of two."""
    monkeypatch.setitem(publishers.PUBLISHED, "voc12", small_table(voc_served(server), "voc12"))
    script("get_voc12").main([str(tmp_path), "--test", "--no-sbd"])
    assert [path for path, _ in server.asked] == ["/trainval", "/test"]
    with pytest.raises(SystemExit):
        script("get_coco").main([str(tmp_path), "--year", "2015"])
    assert "2014, 2017" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["get_voc12", "get_coco", "get_weights", "get_saliency"])
def test_help_has_examples(capsys, script, module):
    """--help shows commands to copy."""
    with pytest.raises(SystemExit) as stopped:
        script(module).main(["--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.count(f"python data_scripts/{module}.py ") >= 2


def test_script_as_a_command(tmp_path):
    """As a user starts it: an error that was foreseen is one line, and the exit status says so."""
    made = subprocess.run([sys.executable, ROOT / "data_scripts/get_voc12.py", tmp_path, "--from", tmp_path / "nowhere"], capture_output=True, text=True)
    assert made.returncode == 1 and made.stderr.startswith("error: --from") and made.stderr.count("\n") == 1


def test_get_weights(server, tmp_path, monkeypatch, capsys, script):
    """Fetched into torch's folder, or copied from --from; one that is missing is named and doesn't keep the others away."""
    main, module = script("get_weights").main, script("get_weights")
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    content = {"vgg16": b"v" * 900, "resnet38": b"mxnet"}
    for name, bytes_ in content.items():
        digits = hashlib.sha256(bytes_).hexdigest()[:8] if name == "vgg16" else hashlib.md5(bytes_).hexdigest()
        monkeypatch.setitem(module.FILES, name, weights.SOURCES[name]._replace(address=server.put(f"/{name}", bytes_, short=[100]), digits=digits))
    with pytest.raises(SystemExit):
        main(["vgg16", "resnet38", "--check"])
    assert capsys.readouterr().out.count("is not there") == 2
    with pytest.raises(SystemExit):
        main(["resnet38", "vgg16"])
    assert (tmp_path / "hub/checkpoints/vgg16-397923af.pth").read_bytes() == content["vgg16"] and "- resnet38: there is no" in capsys.readouterr().out
    (tmp_path / module.FILES["resnet38"].file).write_bytes(content["resnet38"])
    main(["resnet38", "vgg16", "--from", str(tmp_path)])
    main(["resnet38", "vgg16", "--check"])
    assert "Next:" in capsys.readouterr().out
    (tmp_path / "hub/checkpoints/vgg16-397923af.pth").write_bytes(b"rot")
    with pytest.raises(SystemExit):
        main(["vgg16", "--check"])
    assert "SHA256" in capsys.readouterr().out


def test_get_saliency(server, tmp_path, capsys, script, toyvoc):
    """An archive of maps becomes a folder that has one for each picture, or an error that names the first that lacks."""
    main = script("get_saliency").main
    ids = (toyvoc / LISTS / "val.txt").read_text().split()
    grey = saved(lambda file: Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(file, "PNG"))
    address = server.put("/maps.zip", zipped({f"maps/{i}.png": grey for i in ids} | {"maps/read.me": b"hello"}))
    begin = [str(tmp_path / "s"), "--model", "mine", "--data", str(toyvoc), "--list", "val"]
    with pytest.raises(SystemExit) as stopped:
        main([*begin, "--address", address])
    assert f"begins with maps/{ids[0]}.png" in str(stopped.value.code) and "stripped" in str(stopped.value.code)
    main([*begin, "--address", address, "--strip", "1"])
    assert f"for each of the {len(ids)} images" in (said := capsys.readouterr().out) and "--set cues.model=mine" in said
    (tmp_path / f"s/{ids[3]}.png").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([*begin, "--check"])
    assert ids[3] in str(stopped.value.code)
