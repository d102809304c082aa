"""From a publisher's server to a page of results: miniature VOC and COCO, packed as the publishers pack them, on a bad day."""
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from file_server import PAGE, FileServer
from PIL import Image
from run_toy import tiny
from scipy.io import savemat
from test_coco_runs import convert

from wsss_nb import publishers
from wsss_nb.coco_files import COCO_FILES
from wsss_nb.core import PALETTE
from wsss_nb.remotes import Remote
from wsss_nb.stages import run_all
from wsss_nb.voc import VOC_CLASSES, voc12, voc_folder
from wsss_nb.voc_files import VOC12_FILES

QUICK = {"pauses": (0, 0, 0, 0, 0), "say": lambda text: None}


def png(S: np.ndarray) -> bytes:
    """A palette PNG."""
    file, picture = io.BytesIO(), Image.fromarray(S.astype(np.uint8))
    picture.putpalette(PALETTE.tobytes())
    picture.save(file, "PNG")
    return file.getvalue()


def mat(S: np.ndarray) -> bytes:
    """An SBD file."""
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": S, "CategoriesPresent": np.unique(S)}}, do_compression=True)
    return file.getvalue()


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """An archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(root: Path, *folders: str) -> bytes:
    """An archive of some folders."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for path in sorted(p for folder in folders for p in (root / folder).rglob("*") if p.is_file()):
            opened.write(path, path.relative_to(root))
    return file.getvalue()


def small(official: Remote, content: bytes, *addresses: str) -> Remote:
    """The publisher's file, but ours: what is known of it is its length and its name."""
    return Remote(official.file, addresses, len(content))


def voc_numbers(classes: tuple[str, ...]) -> np.ndarray:
    """VOC's number of each label of a mask of these classes."""
    return np.r_[0, [1 + VOC_CLASSES.index(name) for name in classes], np.zeros(254 - len(classes), int), 255]


def voc_files(toy: Path) -> tuple[dict[str, bytes], dict[str, bytes], list[str], list[str]]:
    """ToyVOC in VOC's own classes: the contents of VOC's archive and of SBD's, and which pictures only SBD has masks of."""
    outer, inner, ids = {}, {}, {}
    for split in ("train", "val"):
        data = voc_folder(toy, split, masks=True, instances=True)
        number = voc_numbers(data.classes)
        ids[split] = list(data.ids)
        for i, image_id in enumerate(data.ids):
            S, objects = number[data.mask(i)], np.zeros(data.mask(i).shape, int)
            for n, mask in enumerate(data.instances(i).masks, 1):
                objects[mask] = n
            outer |= {f"JPEGImages/{image_id}.jpg": data.image_file(image_id).read_bytes(), f"Annotations/{image_id}.xml": (toy / f"Annotations/{image_id}.xml").read_bytes()}
            if split == "val" or i < 10:
                outer |= {f"SegmentationClass/{image_id}.png": png(S), f"SegmentationObject/{image_id}.png": png(np.where(S == 255, 255, objects))}
            if split == "train" and i >= 8 or i == 0:              # two that VOC has too, and one of VOC's validation set
                inner[f"cls/{image_id}.mat"] = mat(np.where(S == 255, 0, S).astype(np.uint8))
    ids["seen"] = ids["train"][:10]
    for name, listed in (("train", ids["seen"]), ("val", ids["val"]), ("trainval", ids["seen"] + ids["val"])):
        outer[f"ImageSets/Segmentation/{name}.txt"] = "".join(f"{i}\n" for i in listed).encode()
    names = [Path(name).stem for name in inner]
    inner |= {"train.txt": "\n".join(names[::2]).encode(), "val.txt": "\n".join(names[1::2]).encode()}
    return outer, inner, ids["train"], ids["val"]


def serve_voc(server: FileServer, toy: Path) -> tuple[dict[str, Remote], list[str], list[str]]:
    """VOC behind a dead address and a server that drops; SBD behind one that answers ranges wrongly."""
    outer, inner, train, val = voc_files(toy)
    voc = tar({f"VOCdevkit/VOC2012/{name}": content for name, content in outer.items()}, "w")
    sbd = tar({f"benchmark_RELEASE/dataset/{name}": content for name, content in inner.items()}, "w:gz")
    gone, there = server.put("/gone", b"", status=[404] * 9), server.put("/voc", voc, drops=[len(voc) // 4] * 3)
    return {"trainval": small(VOC12_FILES["trainval"], voc, gone, there),
            "sbd": small(VOC12_FILES["sbd"], sbd, server.put("/sbd", sbd, short=[len(sbd) // 2], shift=-100))}, train, val


def serve_coco(server: FileServer, root: Path) -> dict[int, dict[str, Remote]]:
    """COCO behind a login page, a server without ranges, and a redirect."""
    content = {"train": zipped(root, "train2014"), "val": zipped(root, "val2014"), "annotations": zipped(root, "annotations")}
    address = {"train": server.put("/train", content["train"], ranges=False, drops=[len(content["train"]) // 2]), "val": server.put("/val", content["val"], stalls=[]),
               "annotations": server.put("/a", b"", goes_to=server.put("/there", content["annotations"], short=[1000]))}
    page = server.put("/login", PAGE)
    return {2014: {name: small(COCO_FILES[2014][name], content[name], page, address[name]) for name in content}}


def finished(data: Path, run: Path, n_val: int) -> dict:
    """A tiny run of DSRG to its page; its scores."""
    run_all(tiny(data, "dsrg/toy"), run)
    scored = json.loads((run / "evaluate/val.json").read_text())
    assert scored["images"] == n_val and 0 <= scored["mean_iou"] <= 1 and "<html" in (run / "report/index.html").read_text()
    return scored


def test_from_voc_s_server_to_a_page(server, few, tmp_path):
    """prepare, classify, cues, train, retrain, predict, evaluate, report: on train_aug, with masks that only SBD has among its own."""
    remotes, train, val = serve_voc(server, few)
    done = publishers.prepare("voc12", tmp_path / "d", remotes=remotes, counts={"train": 10, "val": 3, "trainval": 13, "train_aug": 16}, **QUICK)
    assert voc12(done.root, "train_aug").ids == tuple(sorted(train)) and done.faults == [] and len(server.asked) > 6
    made, drawn = voc12(done.root, masks=True), voc_folder(few, "train", masks=True)
    for i, name in enumerate(drawn.ids):                          # void of VOC's ten masks is void, of SBD's six background
        S = voc_numbers(drawn.classes)[drawn.mask(i)]
        assert (made.mask(made.ids.index(name)) == (S if name in train[:10] else np.where(S == 255, 0, S))).all()
    scored = finished(done.root, tmp_path / "run", len(val))
    assert set(scored["classes"]) == {"background", *VOC_CLASSES}
    assert json.loads((tmp_path / "run/evaluate/cues.json").read_text())["images"] == 16


def test_from_coco_s_server_to_a_page(server, few, tmp_path):
    """The same of COCO's three archives."""
    root = convert(few, tmp_path / "origin", {"train": "train2014", "val": "val2014"})
    done = publishers.prepare("coco14", tmp_path / "d", remotes=serve_coco(server, root), counts={2014: {"train": 16, "val": 3}}, **QUICK)
    assert done.faults == [] and f"--data {done.root}" in done.next
    scored = finished(done.root, tmp_path / "run", 3)
    assert len(scored["classes"]) == 7
