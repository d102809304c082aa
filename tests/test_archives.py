"""Archives from strangers: what is refused, what is mended, what a kill leaves."""
import errno
import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsss_nb import archives, remotes
from wsss_nb.archives import Piece, bring, extract, list_archive, missing, pieces_faults, safe_name, unpacked
from wsss_nb.core import DataError
from wsss_nb.remotes import Remote

FILES = {f"kit/pictures/{k:02}.jpg": bytes([k]) * (500 + k) for k in range(30)} | {"kit/list.txt": b"00\n01\n", "kit/empty.txt": b""}
KINDS = ("tar", "tar.gz", "zip")


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind its name says."""
    if path.name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files.items():
                opened.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def one_entry(path: Path, name: str, **fields) -> Path:
    """A tar of a picture and then one odd entry."""
    with tarfile.open(path, "w") as opened:
        good = tarfile.TarInfo("a.jpg")
        opened.addfile(good, io.BytesIO())
        odd = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(odd, key, value)
        opened.addfile(odd)
    return path


def refused(call, *words) -> None:
    """The call is refused in one line with these words."""
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    assert all(str(word) in text for word in words) and "\n" not in text, text


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the hidden list."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".unpacked" not in p.parts}


@pytest.fixture(params=KINDS)
def archive(request, tmp_path) -> Path:
    """The same files in each kind of archive."""
    return pack(tmp_path / f"kit.{request.param}", FILES)


# ---- what should work -------------------------------------------------------------------------------------------------

def test_extract(archive, tmp_path):
    """Every file, its content, nothing else."""
    files = extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert files == {name: len(content) for name, content in FILES.items()} == unpacked(tmp_path / "out", archive.name)


def test_strip_and_wanted(archive, tmp_path):
    """Leading folders go, and names are picked after that."""
    extract(archive, tmp_path / "out", wanted=lambda name: name.startswith("pictures/0"), strip=1)
    assert tree(tmp_path / "out") == {f"pictures/{k:02}.jpg": bytes([k]) * (500 + k) for k in range(10)}


def test_completes_what_is_half(archive, tmp_path):
    """Missing and short files are written, others are not touched, and the list is the same."""
    out = tmp_path / "out"
    extract(archive, out)
    (out / "kit/pictures/03.jpg").unlink()
    (out / "kit/pictures/04.jpg").write_bytes(b"short")
    kept = out / "kit/pictures/05.jpg"
    os.utime(kept, (1, 1))
    assert missing(unpacked(out, archive.name), out) == ["kit/pictures/03.jpg", "kit/pictures/04.jpg"]
    extract(archive, out)
    assert tree(out) == FILES and kept.stat().st_mtime == 1


def test_damaged_list_is_no_list(archive, tmp_path):
    """A list that can't be read, or is something else, counts as not there."""
    out = tmp_path / "out"
    extract(archive, out)
    mark = out / f".unpacked/{archive.name}.json.gz"
    for content in (b"", mark.read_bytes()[:-9], b"no gzip"):
        mark.write_bytes(content)
        assert unpacked(out, archive.name) is None
    extract(archive, out)
    assert unpacked(out, archive.name)


def test_folders_and_dots(tmp_path):
    """Entries for folders, and names that begin with ./, as tar writes them."""
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        folder = tarfile.TarInfo("./kit/")
        folder.type = tarfile.DIRTYPE
        opened.addfile(folder)
        info = tarfile.TarInfo("./kit/a.txt")
        info.size = 2
        opened.addfile(info, io.BytesIO(b"hi"))
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"kit/a.txt": b"hi"}


# ---- hostile archives -----------------------------------------------------------------------------------------------------

HOSTILE = ["/etc/x", "../x", "a/../../x", "a/..", "..", "C:\\x", "C:x", "a\\..\\..\\x", "\\\\host\\x", "a\nb", "a\x1b[31m", "x" * 300, "a:stream"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_leave(tmp_path, kind, name):
    """Refused before anything is written, and named with the archive."""
    bad = pack(tmp_path / f"bad.{kind}", {"a.jpg": b"1", name: b"2", "b.jpg": b"3"})
    refused(lambda: extract(bad, tmp_path / "out"), bad)
    assert sorted(p.name for p in tmp_path.iterdir()) == [bad.name]


@given(st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "C:", "", "b.jpg", "~", "\x00", "é"]), max_size=6), st.sampled_from(["/", "", "//"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_safe_names_stay(parts, joint):
    """Whatever is accepted lies in the folder, by the operating system's own arithmetic."""
    name = joint.join(parts)
    try:
        good = safe_name(name, "x.tar")
    except DataError:
        return
    assert os.path.normpath(os.path.join("/base/folder", good)).startswith("/base/folder")
    assert not os.path.isabs(good) and ".." not in good.split("/")


@pytest.mark.parametrize("kind, fields", [
    ("a link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("a link", {"type": tarfile.SYMTYPE, "linkname": "a.jpg"}),
    ("a link", {"type": tarfile.LNKTYPE, "linkname": "a.jpg"}), ("a device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    ("a device", {"type": tarfile.BLKTYPE}), ("a device", {"type": tarfile.FIFOTYPE}), ("something that is no file", {"type": b"9"})])
def test_links_and_devices(tmp_path, kind, fields):
    """Symbolic and hard links, wherever they point, devices, pipes, and types nobody knows."""
    bad = one_entry(tmp_path / "bad.tar", "kit", **fields)
    refused(lambda: extract(bad, tmp_path / "out"), bad, f"holds {kind} called 'kit'")
    assert not (tmp_path / "out").exists()


def test_link_in_a_zip(tmp_path):
    """Zip keeps the kind in the upper half of external_attr."""
    for mode in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as opened:
            info = zipfile.ZipInfo("kit")
            info.external_attr = (mode | 0o777) << 16
            opened.writestr(info, "/etc")
        refused(lambda: extract(tmp_path / "bad.zip", tmp_path / "out"), "bad.zip", "link or device", "'kit'")
    assert not (tmp_path / "out").exists()


def test_sparse_file(tmp_path):
    """A tar of some kilobytes can describe a file of a terabyte that is one hole."""
    with tarfile.open(tmp_path / "bad.tar", "w", format=tarfile.PAX_FORMAT) as opened:
        info = tarfile.TarInfo("hole")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole", "GNU.sparse.realsize": str(2 ** 40)}
        body = b"1\n0\n0\n".ljust(512, b"\0")
        info.size = len(body)
        opened.addfile(info, io.BytesIO(body))
    refused(lambda: list_archive(tmp_path / "bad.tar", limit=2 ** 50), "sparse")


def test_names_that_collide(archive, tmp_path):
    """The same name twice, names that differ by case, a file that is a folder too."""
    kind = archive.name.partition(".")[2]
    for files, word in (({"A/x.jpg": b"1", "a/X.jpg": b"2"}, "case"), ({"A/1.jpg": b"1", "a/2.jpg": b"2"}, "case"), ({"a": b"1", "a/b": b"2"}, "folder")):
        refused(lambda: list_archive(pack(tmp_path / f"bad.{kind}", files)), word)
    with tarfile.open(tmp_path / "twice.tar", "w") as opened:
        for content in (b"1", b"22"):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    refused(lambda: list_archive(tmp_path / "twice.tar"), "a.jpg twice")


def test_bombs(tmp_path):
    """More bytes than the limit, more files than the limit; by default twenty times the archive beyond a gigabyte."""
    bomb = pack(tmp_path / "bomb.zip", {f"{k}.txt": bytes(10 ** 6) for k in range(5)})
    assert bomb.stat().st_size < 10 ** 4
    refused(lambda: extract(bomb, tmp_path / "out", limit=4 * 10 ** 6), bomb, "more than 4.0 MB")
    refused(lambda: extract(bomb, tmp_path / "out", most=4), bomb, "more than 4 files")
    assert not (tmp_path / "out").exists()
    assert len(list_archive(bomb)) == 5
    huge = one_entry(tmp_path / "huge.tar", "x")
    with tarfile.open(huge, "w") as opened:
        info = tarfile.TarInfo("x")
        info.size = 2 * 10 ** 9
        opened.addfile(info)                                     # announces 2 GB and holds nothing
    refused(lambda: list_archive(huge), "1.0 GB")


@pytest.mark.parametrize("said", [10, 6000])
def test_zip_that_lies_about_lengths(tmp_path, said):
    """A forged length in the table of contents: the content is not what was announced, and nothing is left of it."""
    path = pack(tmp_path / "forged.zip", {"a.txt": b"x" * 5000})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at:at + 4] = said.to_bytes(4, "little")
    path.write_bytes(data)
    refused(lambda: extract(path, tmp_path / "out"), path)
    assert not (tmp_path / "out/a.txt").exists()


def test_encrypted_zip(tmp_path):
    """A password can't be asked for in the middle of the night."""
    path = pack(tmp_path / "locked.zip", {"a.txt": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(lambda: list_archive(path), "encrypted")


def test_folder_that_is_a_link(archive, tmp_path):
    """A link in the folder that leads out of it is not followed; a link as a file is replaced, not written through."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / "kit").mkdir(parents=True)
    outside.mkdir()
    (out / "kit/pictures").symlink_to(outside)
    refused(lambda: extract(archive, out), "leads out of")
    assert list(outside.iterdir()) == []
    (out / "kit/pictures").unlink()
    (outside / "victim").write_bytes(b"mine")
    (out / "kit/list.txt").symlink_to(outside / "victim")
    extract(archive, out)
    assert (outside / "victim").read_bytes() == b"mine" and tree(out) == FILES


# ---- broken archives --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("keep", [.02, .5, .9])
def test_truncated(archive, tmp_path, keep):
    """Cut anywhere: one line that names the archive. (A tar ends in zeros, and has no memory of how many entries it had.)"""
    whole = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(whole[:int(len(whole) * keep) | 1])
    refused(lambda: extract(archive, tmp_path / "out"), archive)


def test_not_an_archive(tmp_path):
    """A text, a web page, nothing, nobody."""
    for content in (b"hello", b"<!DOCTYPE html>", b"", b"PK\3\4", b"\x1f\x8b", os.urandom(2000)):
        (tmp_path / "a.tar").write_bytes(content)
        refused(lambda: list_archive(tmp_path / "a.tar"), tmp_path / "a.tar")
    refused(lambda: list_archive(tmp_path / "none.tar"), "none.tar")


def test_corrupt_header(tmp_path):
    """A header in the middle that fails its checksum is not the end: Python's tarfile would stop there and be content."""
    for kind in ("tar", "tar.gz"):
        path = pack(tmp_path / "a.tar", FILES)
        data = bytearray(path.read_bytes())
        at = data.index(b"kit/pictures/09.jpg")
        data[at] ^= 1
        path = tmp_path / f"bad.{kind}"
        path.write_bytes(gzip.compress(bytes(data)) if kind == "tar.gz" else bytes(data))
        with tarfile.open(path) as opened:
            assert len(opened.getnames()) == 9
        refused(lambda: list_archive(path), path, f"at byte {at:,}")


def test_corrupt_content(tmp_path):
    """A flipped byte inside a zip entry fails its own checksum; the file does not appear."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a.txt", b"hello hello hello")
    data = bytearray(path.read_bytes())
    data[data.index(b"hello")] ^= 1
    path.write_bytes(data)
    refused(lambda: extract(path, tmp_path / "out"), path, "CRC")
    assert not (tmp_path / "out/a.txt").exists() and unpacked(tmp_path / "out", "a.zip") is None


# ---- the disk, kills, several at once -----------------------------------------------------------------------------------------

def test_room(archive, tmp_path, monkeypatch):
    """Room for what is missing is asked for first."""
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: type("usage", (), {"free": 5000}))
    refused(lambda: extract(archive, tmp_path / "out"), archive.name, "0.0 MB")
    assert tree(tmp_path / "out") == {}


def test_disk_fills_up(archive, tmp_path, monkeypatch):
    """ENOSPC half way: one line, and the next call goes on."""
    write, done = archives._write, []
    def full(entry, path, where):
        if len(done) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(write(entry, path, where))
    monkeypatch.setattr(archives, "_write", full)
    refused(lambda: extract(archive, tmp_path / "out"), "is full", tmp_path / "out")
    assert len(tree(tmp_path / "out")) == 7 and unpacked(tmp_path / "out", archive.name) is None
    monkeypatch.undo()
    extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def test_folder_cannot_be_made(archive, tmp_path):
    """A file where the folder should be."""
    (tmp_path / "out").write_text("")
    refused(lambda: extract(archive, tmp_path / "out"), "cannot be written")


CHILD = """
import sys, time
from pathlib import Path
from wsss_nb import archives
write, n = archives._write, 0
def slow(entry, path, where):
    global n
    n += 1
    if n > int(sys.argv[3]):
        path.with_name(f".{path.name}.part").write_bytes(b"half")
        Path(sys.argv[2] + ".ready").touch()
        time.sleep(60)
    write(entry, path, where)
archives._write = slow
archives.extract(sys.argv[1], sys.argv[2])
"""


def test_killed_in_the_middle(archive, tmp_path):
    """SIGKILL after seven files: the next call writes the rest, and nothing temporary is left."""
    out, ready = tmp_path / "out", tmp_path / "out.ready"
    process = subprocess.Popen([sys.executable, "-c", CHILD, archive, out, "7"])
    for _ in range(2000):
        if ready.exists() or process.poll() is not None:
            break
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(tree(out)) == 8 and unpacked(out, archive.name) is None            # seven, and half of the eighth under another name
    extract(archive, out)
    assert tree(out) == FILES


# ---- from an address to a folder --------------------------------------------------------------------------------------------

def piece(path: Path, **more) -> Piece:
    """An archive on this disk as a published one."""
    return Piece(Remote(path.name, (path.as_uri(),), path.stat().st_size, remotes.file_hash(path)), **more)


def test_bring(archive, tmp_path):
    """Downloaded and unpacked once; the archive may go, and what is missing is then fetched again."""
    wanted, out, said = piece(archive, strip=1), tmp_path / "out", []
    assert pieces_faults([wanted], out) == [f"{archive.name} has not been unpacked to the end"]
    bring([wanted], out, say=said.append)
    assert (out / "archives" / archive.name).is_file() and pieces_faults([wanted], out) == [] and len(said) == 1
    (out / "archives" / archive.name).unlink()
    bring([wanted], out, say=said.append)
    assert len(said) == 1 and not (out / "archives" / archive.name).exists()      # complete: nothing was needed
    (out / "list.txt").unlink()
    assert "1 of 32" in pieces_faults([wanted], out)[0]
    bring([wanted], out, say=said.append)
    assert pieces_faults([wanted], out) == []


def test_bring_asks_for_all_the_room_first(archive, tmp_path, monkeypatch):
    """Packed and unpacked together; half of it for an archive that is there already."""
    size, out = archive.stat().st_size, tmp_path / "out"
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: type("usage", (), {"free": int(1.5 * size)}))
    refused(lambda: bring([piece(archive)], out), archive.name, "packed and unpacked")
    assert not out.exists()
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: type("usage", (), {"free": 10 * size + 10 ** 5}))
    bring([piece(archive)], out, source=tmp_path, say=lambda text: None)
    assert not (out / "archives" / archive.name).exists()                        # used in place


def test_hash_of_an_archive_that_rots(archive, tmp_path):
    """--check reads archives that are still there."""
    out = tmp_path / "out"
    bring([piece(archive)], out, say=lambda text: None)
    stored, wanted = out / "archives" / archive.name, piece(archive)
    data = bytearray(stored.read_bytes())
    data[100] ^= 1
    stored.write_bytes(data)
    assert "SHA256" in pieces_faults([wanted], out)[0] and pieces_faults([wanted], out, hashes=False) == []


def test_list_is_plain_json(archive, tmp_path):
    """Anybody can read what belongs there."""
    extract(archive, tmp_path / "out")
    stored = json.loads(gzip.decompress((tmp_path / f"out/.unpacked/{archive.name}.json.gz").read_bytes()))
    assert stored == {"archive": archive.name, "files": {name: len(content) for name, content in FILES.items()}}
