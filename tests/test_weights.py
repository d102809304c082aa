"""Weight files: MXNet's in all its forms and every way to be broken, files that would run, other names, downloads that fail."""
import hashlib
import os
import pickle
import struct
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from file_server import file_server
from hypothesis import given
from hypothesis import strategies as st

from wsss_nb import weights
from wsss_nb.core import DataError
from wsss_nb.networks import resnet38, small, vgg16
from wsss_nb.remotes import file_hash
from wsss_nb.weights import SOURCES, Source, check_fit, fetch, load_weights, read_mxnet, read_weights, rename, resnet38_name

FORMS = ("legacy", "V1", "V2", "V3")
MAGIC = {"V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA}
CODES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "bool": 7, "int16": 8, "uint16": 9,
         "uint32": 10, "uint64": 11}


# ---- a writer of the test's own, after MXNet's source -------------------------------------------------------------------

def record(form: str, shape, code: int, data: bytes) -> bytes:
    """One array; a shape of None is MXNet's "no array"."""
    if form == "legacy":
        head = struct.pack(f"<I{len(shape or ())}I", len(shape or ()), *(shape or ()))
    else:
        ndim = len(shape) if shape is not None else -1 if form == "V3" else 0
        head = struct.pack("<I", MAGIC[form]) + (struct.pack("<i", 0) if form != "V1" else b"")
        head += struct.pack(f"<i{len(shape or ())}q", ndim, *(shape or ()))
    return head if shape is None else head + struct.pack("<iii", 2, 3, code) + data       # saved from the fourth GPU


def listing(records: list[bytes], names: list[bytes]) -> bytes:
    """A whole file."""
    return (struct.pack("<QQQ", 0x112, 0, len(records)) + b"".join(records) + struct.pack("<Q", len(names))
            + b"".join(struct.pack("<Q", len(name)) + name for name in names))


def stored(form: str, arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays by name as a file."""
    return listing([record(form, v.shape, CODES[v.dtype.name], v.tobytes()) for v in arrays.values()], [name.encode() for name in arrays])


def refused(call, *named) -> str:
    """The call raises one DataError with all these words, an expectation and a mend."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert all(str(name) in message for name in (*named, "expected", "To mend it: ")) and len(message) < 1000, message
    return message


@pytest.mark.parametrize("form", FORMS)
def test_mxnet_reads_back_exactly(form, tmp_path):
    """Every type, one to five dimensions, an empty array, a name in Greek: byte for byte, without copying."""
    rng, path = np.random.default_rng(0), tmp_path / "some.params"
    arrays = {f"arg:{name}": rng.integers(0, 2 if name == "bool" else 100, (3, 2, 2)[:1 + k % 3]).astype(name) for k, name in enumerate(CODES)}
    arrays |= {"aux:β": rng.normal(size=(2, 1, 3, 1, 2)).astype("float32"), "arg:empty": np.zeros((0, 4), "float32")}
    path.write_bytes(stored(form, arrays))
    found = read_mxnet(path)
    assert list(found) == list(arrays)
    for name, v in arrays.items():
        assert found[name].dtype == v.dtype and found[name].shape == v.shape and found[name].tobytes() == v.tobytes(), name
    with pytest.raises(ValueError, match="read-only"):
        found["aux:β"][0] = 1


@pytest.mark.parametrize("form", FORMS)
def test_mxnet_without_names_or_arrays(form, tmp_path):
    """A list without names is numbered; "no array" is empty, and what follows it is found; V3 alone has single numbers."""
    path, one = tmp_path / "some.params", record(form, (2,), 4, struct.pack("<ii", 7, -1))
    path.write_bytes(listing([record(form, None, 0, b""), one], []))
    found = read_mxnet(path)
    assert found["0"].shape == (0,) and found["1"].tolist() == [7, -1]
    path.write_bytes(listing([], []))
    assert read_mxnet(path) == {}
    if form == "V3":
        path.write_bytes(listing([record(form, (), 0, struct.pack("<f", 2.5)), struct.pack("<Iiiqq", MAGIC["V3"], 0, 2, 3, -1), one], []))
        found = read_mxnet(path)
        assert found["0"].shape == () and found["0"] == 2.5 and found["1"].shape == (0,) and found["2"].tolist() == [7, -1]


def test_mxnet_bfloat16(tmp_path):
    """The upper halves of 1, −2 and 3.140625, whose bits are known, become float32."""
    (tmp_path / "half.params").write_bytes(listing([record("V2", (3,), 12, struct.pack("<HHH", 0x3F80, 0xC000, 0x4049))], [b"x"]))
    found = read_mxnet(tmp_path / "half.params")["x"]
    assert found.dtype == np.float32 and found.tolist() == [1, -2, 3.140625]


@pytest.mark.parametrize("form", FORMS)
def test_mxnet_cut_anywhere(form, tmp_path):
    """Cut after any byte, the file is refused by name; with a byte more, too."""
    path = tmp_path / "cut.params"
    whole = stored(form, {"arg:a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.ones(2, "uint8")})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(lambda: read_mxnet(path), path)
    path.write_bytes(whole + b"\0")
    refused(lambda: read_mxnet(path), path, "1 bytes after")
    path.write_bytes(whole)
    assert len(read_mxnet(path)) == 2


@given(form=st.sampled_from(FORMS), place=st.integers(0, 200), value=st.binary(min_size=1, max_size=8))
def test_mxnet_spoiled_anywhere(tmp_path_factory, form, place, value):
    """Whatever stands in whatever place: arrays no larger than the file, or a DataError; no other exception, no terabyte."""
    path = tmp_path_factory.getbasetemp() / "spoiled.params"
    whole = bytearray(stored(form, {"arg:a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.ones(2, "uint8")}))
    place %= len(whole)
    whole[place:place + len(value)] = value
    path.write_bytes(whole)
    try:
        assert sum(v.nbytes for v in read_mxnet(path).values()) <= 2 * len(whole)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("what, content, named", [
    ("another magic", struct.pack("<QQQQ", 0x113, 0, 0, 0), "0x113"),
    ("2⁶³ arrays", struct.pack("<QQQ", 0x112, 0, 2**63) + b"\0" * 40, str(2**63)),
    ("unknown form", listing([struct.pack("<IIII", 0xF993FACB, 1, 2, 3)], [b"x"]), "byte 24"),
    ("a thousand dimensions", listing([struct.pack("<Iii", MAGIC["V2"], 0, 1000)], [b"x"]), "byte 24"),
    ("a petabyte", listing([struct.pack("<Iiiqqiii", MAGIC["V2"], 0, 2, 2**25, 2**25, 1, 0, 0)], [b"x"]), "byte 64"),
    ("2¹²⁴ numbers", listing([struct.pack("<Iiiqqiii", MAGIC["V2"], 0, 2, 2**62, 2**62, 1, 0, 0)], [b"x"]), "byte 64"),
    ("legacy, 2³¹ by 2³¹", listing([struct.pack("<IIIiii", 2, 2**31, 2**31, 1, 0, 0)], [b"x"]), "byte 48"),
    ("negative length", listing([struct.pack("<Iiqiii", MAGIC["V1"], 1, -5, 1, 0, 0)], [b"x"]), "(-5,)"),
    ("two negative lengths", listing([struct.pack("<Iiqqiii", MAGIC["V1"], 2, -2, -1, 1, 0, 3) + b"\0\0"], [b"x"]), "(-2, -1)"),
    ("−1 dimensions before V3", listing([struct.pack("<Iii", MAGIC["V2"], 0, -1)], [b"x"]), "-1 dimensions"),
    ("unknown type", listing([record("V2", (1,), 13, b"\0" * 8)], [b"x"]), "type 13"),
    ("sparse", listing([struct.pack("<Iii", MAGIC["V2"], 1, 0)], [b"x"]), "storage kind 1"),
    ("too few names", listing([record("V1", (1,), 3, b"\0")] * 2, [b"x"]), "2 arrays but 1 names"),
    ("a name twice", listing([record("V1", (1,), 3, b"\0")] * 2, [b"x", b"x"]), "twice"),
    ("an endless name", listing([record("V1", (1,), 3, b"\0")], [])[:-8] + struct.pack("<QQ", 1, 2**60), "a name")],
    ids=lambda v: v if isinstance(v, str) and len(v) < 30 else "")
def test_mxnet_hostile(what, content, named, tmp_path):
    """Each fault is refused, and the error says in which file and where."""
    (tmp_path / "hostile.params").write_bytes(content)
    refused(lambda: read_mxnet(tmp_path / "hostile.params"), "hostile.params", named)


# ---- ResNet-38's names ---------------------------------------------------------------------------------------------------

def mxnet_names() -> list[str]:
    """The names of model A1's arrays after ademxapp's scheme, and of its 1000-class end."""
    norms = lambda layer: [f"{kind}:bn{layer}_{part}" for kind, part in (("arg", "gamma"), ("arg", "beta"), ("aux", "moving_mean"), ("aux", "moving_var"))]
    names, changes = ["arg:conv1a_weight"], ("2a", "3a", "4a", "5a", "6a", "7a")
    for stage, blocks in ((2, 3), (3, 3), (4, 6), (5, 3), (6, 1), (7, 1)):
        for block in (f"{stage}{'a' if k == 0 else f'b{k}'}" for k in range(blocks)):
            branches = ("2a", "2b1", "2b2") if stage > 5 else ("2a", "2b1")
            names += [name for b in branches for name in (f"arg:res{block}_branch{b}_weight", *norms(f"{block}_branch{b}"))]
            names += [f"arg:res{block}_branch1_weight"] * (block in changes)
    return names + norms("7") + ["arg:linear1000_weight", "arg:linear1000_bias"]


def test_resnet38_file_of_mxnet_fits(tmp_path):
    """Every name of the published scheme finds its layer, every layer its name; the 1000-class end is left out, nothing else."""
    arrays = {name: np.full(1, k, "float32") for k, name in enumerate(mxnet_names())}
    (tmp_path / "a1.params").write_bytes(stored("legacy", arrays))
    with torch.device("meta"):
        own = resnet38()
    found = rename("resnet38", own, read_weights(tmp_path / "a1.params"))
    assert set(found) == {name for name in own.state_dict() if not name.endswith("num_batches_tracked")}
    for theirs, ours in (("arg:res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"), ("aux:bn6a_branch2b2_moving_var", "b6.bn_branch2b2.running_var"),
                         ("arg:bn7_beta", "bn7.bias"), ("arg:res5a_branch1_weight", "b5.conv_branch1.weight")):
        assert found[ours].item() == arrays[theirs].item()


def test_alien_arrays_do_not_vanish():
    """An array that is neither ResNet-38's nor its end stays, so that the comparison of names reports it."""
    with torch.device("meta"):
        own = resnet38()
    found = rename("resnet38", own, {"arg:res9x_branch2a_weight": torch.zeros(1), "arg:conv1a_weight": torch.zeros(1), "arg:linear1000_bias": torch.zeros(1)})
    assert len(found) == 2 and "conv1a.weight" in found
    assert resnet38_name("weird") == "weird"


def test_ends_are_left_out_by_name():
    """Converted ResNet-38 and VGG16 files with and without the end of a classifier give the trunk's names."""
    with torch.device("meta"):
        wide, vgg = resnet38(), vgg16()
    assert set(rename("resnet38", wide, wide.state_dict() | {"fc8.weight": torch.zeros(1)})) == set(wide.state_dict())
    assert set(rename("vgg16", vgg, vgg.state_dict() | {"fc6.weight": torch.zeros(1), "fc7.bias": torch.zeros(1)})) == set(vgg.state_dict())
    assert "extra.weight" in rename("vgg16", vgg, vgg.state_dict() | {"extra.weight": torch.zeros(1)})
    assert "features.99.weight" in rename("vgg16", vgg, {"features.99.weight": torch.zeros(1)})


# ---- does it fit? --------------------------------------------------------------------------------------------------------

def test_another_network_is_named():
    """Missing, surplus and ill-shaped arrays are listed by name, the first three of each."""
    own = small().state_dict()
    lacking = {k: v for k, v in own.items() if not k.startswith("block3")}
    refused(lambda: check_fit(own, lacking, "a.pth"), "a.pth", "block3.conv.weight", "2 more")
    refused(lambda: check_fit(own, own | {"fc.bias": torch.zeros(3)}, "a.pth"), "a.pth", "not expected fc.bias")
    refused(lambda: check_fit(own, own | {"block1.norm.bias": torch.zeros(3)}, "a.pth"), "a.pth", "block1.norm.bias (3,) where the network has (24,)")
    turned = own | {"block2.conv.weight": own["block2.conv.weight"].transpose(0, 1)}
    refused(lambda: check_fit(own, turned, "a.pth"), "block2.conv.weight (24, 48, 3, 3) where the network has (48, 24, 3, 3)")
    for bad in (torch.nan, torch.inf):
        refused(lambda: check_fit(own, own | {"block5.norm.bias": torch.full((64,), bad)}, "a.pth"), "a.pth", "block5.norm.bias")
    check_fit(own, {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}, "old.pth")
    check_fit(own, {k: v.half() if v.is_floating_point() else v for k, v in own.items()}, "half.pth")
    for kind in (torch.int8, torch.uint8, torch.bool, torch.complex64):
        squeezed = own | {"block2.conv.weight": torch.ones(48, 24, 3, 3, dtype=kind)}
        refused(lambda: check_fit(own, squeezed, "a.pth"), "a.pth", "block2.conv.weight", "quantised")


def test_a_refused_file_changes_nothing():
    """Not one layer is filled when the last one doesn't fit."""
    network = small()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(DataError):
        load_weights(network, {k: v + 1 for k, v in before.items() if k != "block5.norm.running_var"}, "a.pth")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# ---- files ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_kinds(zipped, tmp_path):
    """Zipped and old files, bare, wrapped, and saved from several GPUs, read the same."""
    own = small().state_dict()
    for k, content in enumerate((own, {"epoch": 3, "state_dict": own}, {"model": {f"module.{name}": v for name, v in own.items()}}, {"network": own}, {"kind": "ours", "state": own})):
        torch.save(content, tmp_path / f"{k}.pth", _use_new_zipfile_serialization=zipped)
        found = read_weights(tmp_path / f"{k}.pth")
        assert list(found) == list(own) and all(torch.equal(found[name], v) for name, v in own.items())


def test_safetensors(tmp_path):
    """Read whatever the file is called; cut, it is refused."""
    files = pytest.importorskip("safetensors.torch")
    own = {k: v.clone() for k, v in small().state_dict().items()}
    for name in ("a.safetensors", "a.bin"):
        files.save_file(own, tmp_path / name)
        assert all(torch.equal(v, own[k]) for k, v in read_weights(tmp_path / name).items())
    content = (tmp_path / "a.safetensors").read_bytes()
    for length in (4, 50, len(content) - 1):
        (tmp_path / "a.safetensors").write_bytes(content[:length])
        refused(lambda: read_weights(tmp_path / "a.safetensors"), "a.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_cut(zipped, tmp_path):
    """Cut anywhere, a torch file is refused by name."""
    torch.save(small().state_dict(), tmp_path / "cut.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "cut.pth").read_bytes()
    for length in (1, 9, 100, len(content) // 2, len(content) - 200):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refused(lambda: read_weights(tmp_path / "cut.pth"), "cut.pth")


class Runs:
    """Pickled, a command; unpickled, its execution."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_runs(tmp_path):
    """A pickle with code in it is refused and not run: plain, zipped, old, hidden beside good weights, under any ending."""
    good = small().state_dict()
    bad = {**good, "extra": Runs(tmp_path / "it ran")}
    pickle.loads(pickle.dumps(Runs(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir()                      # it would have
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Runs(tmp_path / "it ran"), protocol=2))
    (tmp_path / "newer.pth").write_bytes(pickle.dumps(Runs(tmp_path / "it ran"), protocol=5))
    torch.save(bad, tmp_path / "zipped.pt")
    torch.save({"state_dict": bad}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "named.params").write_bytes((tmp_path / "zipped.pt").read_bytes())
    for name in ("plain.pth", "zipped.pt", "old.pth", "named.params"):
        refused(lambda: read_weights(tmp_path / name), name, "mkdir")
    refused(lambda: read_weights(tmp_path / "newer.pth"), "newer.pth")
    assert not (tmp_path / "it ran").exists()


def test_no_weights_at_all(tmp_path):
    """A missing file, an empty one, a folder, a web page, a picture, another zip, a lone tensor, a list, numbers by name."""
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Virus scan warning</title>")
    (tmp_path / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as other:
        other.writestr("a.txt", "hello")
    for name, content in (("lone.pth", torch.zeros(3)), ("list.pth", [torch.zeros(3)]), ("numbers.pth", {"a": 3}), ("none.pth", {})):
        torch.save(content, tmp_path / name)
    for name in ("missing.pth", "empty.pth", "", "page.pth", "picture.pth", "other.pth", "lone.pth", "list.pth", "numbers.pth", "none.pth"):
        refused(lambda: read_weights(tmp_path / name), tmp_path / name)


# ---- downloads ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Torch's folder of downloads, for this test alone."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def source(path, **changes) -> Source:
    """A file on this disk as a download."""
    return Source("w.pth", path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()[:8])._replace(**changes)


def test_fetch_once(hub, tmp_path):
    """The file comes whole, and a second call doesn't need its address."""
    (tmp_path / "there").write_bytes(b"weights" * 1000)
    wanted = source(tmp_path / "there")
    assert fetch(wanted) == hub / "w.pth" and (hub / "w.pth").read_bytes() == b"weights" * 1000
    (tmp_path / "there").unlink()
    assert fetch(wanted) == hub / "w.pth"


def test_fetch_of_something_else(hub, tmp_path):
    """A wrong fingerprint is refused after downloading and before, never takes the file's place, and is set aside."""
    (tmp_path / "there").write_bytes(b"weights")
    refused(lambda: fetch(source(tmp_path / "there", digits="00000000")), "w.pth", "00000000", tmp_path / "there", hub / "w.pth.wrong")
    assert not (hub / "w.pth").exists() and (hub / "w.pth.wrong").read_bytes() == b"weights"
    (hub / "w.pth").write_bytes(b"weigh")                     # somebody's half download
    assert fetch(source(tmp_path / "there")).read_bytes() == b"weights" and (hub / "w.pth.wrong2").read_bytes() == b"weigh"


def test_fetch_without_network(hub, monkeypatch):
    """The error names the file, its address and the folder it belongs in; nothing half done stays."""
    def no_network(*arguments, **options):
        raise urllib.error.URLError("Temporary failure in name resolution")
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    for name in ("vgg16", "resnet50", "resnet101"):
        refused(lambda: fetch(SOURCES[name]), SOURCES[name].file, "https://download.pytorch.org/models/", hub / SOURCES[name].file, "name resolution")
    assert [p for p in hub.iterdir() if p.name[0] != "."] == []
    refused(lambda: fetch(SOURCES["resnet38"]), SOURCES["resnet38"].file, "itijyou/ademxapp", hub)


def test_fetch_goes_on(hub):
    """A connection that dies in the middle is continued by the next call."""
    with file_server() as server:
        wanted = Source("w.pth", server.put("/w.pth", b"weights" * 1000, short=[3000]), hashlib.sha256(b"weights" * 1000).hexdigest()[:8])
        refused(lambda: fetch(wanted, pauses=()), "w.pth", "3,000 of 7,000")
        assert fetch(wanted).read_bytes() == b"weights" * 1000 and server.asked[-1][1] == "bytes=3000-"


def test_fetch_from_a_folder(hub, tmp_path):
    """A file somebody has already is compared and copied to where networks look for it."""
    md5 = hashlib.md5(b"mxnet").hexdigest()
    (tmp_path / "m.params").write_bytes(b"mxnet")
    by_hand = Source("m.params", "https://example.org (by hand)", md5, False)
    assert fetch(by_hand, tmp_path) == hub / "m.params" and (hub / "m.params").read_bytes() == b"mxnet" and fetch(by_hand) == hub / "m.params"
    (tmp_path / "m.params").write_bytes(b"other")
    (hub / "m.params").unlink()
    refused(lambda: fetch(by_hand, tmp_path), tmp_path / "m.params", "MD5")


def test_fetch_without_a_published_hash(hub, tmp_path):
    """The copy of ResNet-38 has none: the first download records it, and a change is noticed."""
    assert weights.RESNET38_TORCH.digits == "" and weights.RESNET38_TORCH.download
    (tmp_path / "there").write_bytes(b"weights")
    unknown = source(tmp_path / "there", digits="")
    fetch(unknown)
    (hub / "w.pth").unlink()
    (tmp_path / "there").write_bytes(b"changed")
    refused(lambda: fetch(unknown), hub / "w.pth.wrong", hashlib.sha256(b"weights").hexdigest()[:16])


def test_sources_agree_with_torchvision():
    """Addresses and fingerprints are torchvision's own V1 weights; the file name carries the digits."""
    from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_Weights
    for name, theirs in (("vgg16", VGG16_Weights), ("resnet50", ResNet50_Weights), ("resnet101", ResNet101_Weights)):
        assert SOURCES[name].address == theirs.IMAGENET1K_V1.url and SOURCES[name].address.endswith(f"-{SOURCES[name].digits}.pth")


def test_fetched_by_hand_with_md5(hub, tmp_path):
    """A source with 32 digits is compared by MD5."""
    hub.mkdir(parents=True)
    (hub / "m.params").write_bytes(b"abc")
    assert fetch(Source("m.params", "https://example.org", "900150983cd24fb0d6963f7d28e17f72", False)) == hub / "m.params"     # RFC 1321's test value
    assert file_hash(hub / "m.params") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"             # FIPS 180's
