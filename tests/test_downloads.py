"""Downloads against a server that drops, lies, truncates, redirects and stalls."""
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from file_server import PAGE, FileServer, file_server

from wsss_nb import downloads, remotes
from wsss_nb.core import DataError
from wsss_nb.downloads import download
from wsss_nb.remotes import Remote, check_room, read_records, verify

CONTENT = bytes(k * k % 251 for k in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = (0, 0, 0)


def remote(*addresses: str, **changes) -> Remote:
    """The test's file."""
    return Remote(**{"file": "a.bin", "addresses": addresses, "size": len(CONTENT), "sha256": SHA256} | changes)


def get(wanted: Remote, folder: Path, **options) -> Path:
    """Download quietly, without waiting."""
    return download(wanted, folder, **{"pauses": QUICK, "timeout": 5., "say": lambda text: None} | options)


def visible(folder: Path) -> list[str]:
    """Names of the files that a user sees."""
    return sorted(p.name for p in folder.iterdir() if p.name[0] != ".")


def refused(call, *words) -> str:
    """The call is refused in one line with these words."""
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    assert all(str(word) in text for word in words) and "\n" not in text, text
    return text


# ---- the connection ---------------------------------------------------------------------------------------------------

def test_plain(server, tmp_path):
    """One request, the right bytes, nothing else in the folder."""
    path = get(remote(server.put("/a", CONTENT)), tmp_path)
    assert path.read_bytes() == CONTENT and visible(tmp_path) == ["a.bin"] and server.asked == [("/a", None)]


@pytest.mark.parametrize("fault", ["drops", "short"])
def test_resumes_where_it_ended(server, tmp_path, fault):
    """After a reset, and after an early end in good order, the next request asks for the rest."""
    get(remote(server.put("/a", CONTENT, **{fault: [100_000, 50_000]})), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    starts = [int(wanted[6:-1]) for _, wanted in server.asked if wanted]
    assert len(starts) == 2 and 0 < starts[0] <= 100_000 and starts[0] < starts[1] <= 150_000
    assert fault == "drops" or starts == [100_000, 150_000]


def test_stall(server, tmp_path):
    """A server that falls silent is asked again after the timeout."""
    get(remote(server.put("/a", CONTENT, stalls=[70_000])), tmp_path, timeout=.2)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked[1] == ("/a", "bytes=70000-")


def test_server_without_ranges(server, tmp_path):
    """A 200 in answer to a range is the whole file: it replaces what was there."""
    get(remote(server.put("/a", CONTENT, ranges=False, drops=[100_000])), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_server_without_ranges_that_always_drops(server, tmp_path):
    """No progress, no endless loop."""
    address = server.put("/a", CONTENT, ranges=False, short=[100_000] * 50)
    refused(lambda: get(remote(address), tmp_path), "ended after 100,000 of 300,000")
    assert len(server.asked) == 1 + len(QUICK)


def test_progress_earns_patience(server, tmp_path):
    """As long as each try brings the file further, more than `pauses` tries are made."""
    get(remote(server.put("/a", CONTENT, short=[20_000] * 12)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and len(server.asked) == 13


@pytest.mark.parametrize("shift", [-40, 40])
def test_wrong_content_range(server, tmp_path, shift):
    """A 206 that begins elsewhere is not appended; the file is asked for anew."""
    get(remote(server.put("/a", CONTENT, short=[100_000], shift=shift)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and [r for _, r in server.asked] == [None, "bytes=100000-", None]


def test_416_begins_anew(server, tmp_path):
    """"No such range" for a part that is not whole: begin again."""
    get(remote(server.put("/a", CONTENT, short=[100_000], unsatisfiable=1)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and [r for _, r in server.asked] == [None, "bytes=100000-", None]


def test_partial_answer_nobody_asked_for(server, tmp_path):
    """A 206 with a later beginning to a plain request is no file."""
    server.put("/a", CONTENT, always_partial=True)
    assert get(remote(server.address("/a")), tmp_path).read_bytes() == CONTENT      # from byte 0: all of it, then
    server.put("/b", CONTENT, unasked=50)
    refused(lambda: get(remote(server.address("/b"), file="b.bin"), tmp_path), "nobody asked for")


@pytest.mark.parametrize("chunked", [False, True])
def test_without_content_length(server, tmp_path, chunked):
    """No length in the answer: the description's length tells a short file from a whole one."""
    get(remote(server.put("/a", CONTENT, length=False, chunked=chunked, short=[100_000])), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_length_is_remembered(server, tmp_path):
    """The first answer says how long the whole is; a later one, `bytes 100000-299999/*`, does not: it is appended, and its end is known."""
    address = server.put("/a", CONTENT, short=[100_000])
    wanted = remote(address, size=None, sha256=None)
    refused(lambda: get(wanted, tmp_path, pauses=()), "ended after 100,000 of 300,000")
    server.put("/a", CONTENT, length=False, short=[50_000])
    refused(lambda: get(wanted, tmp_path, pauses=()), "ended after 150,000 of 300,000")
    assert get(wanted, tmp_path).read_bytes() == CONTENT and [r for _, r in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_changed_on_the_server(server, tmp_path):
    """Another ETag: If-Range makes a good server send everything; one that ignores it is caught by the tag it sends."""
    old, new = b"o" * 300_000, CONTENT
    for ignores in (False, True):
        folder = tmp_path / str(ignores)
        address = server.put("/a", old, tag='"old"', short=[100_000])
        refused(lambda: get(remote(address, sha256=None), folder, pauses=()), "ended after")      # no hash: only the tag can tell
        server.put("/a", new, tag='"new"', ignores_if_range=ignores)
        server.asked.clear()
        assert get(remote(address, sha256=None), folder).read_bytes() == new
        assert len(server.asked) == 1 + ignores


def test_length_changed_on_the_server(server, tmp_path):
    """Without a tag the length of the whole tells that the file is another one."""
    address = server.put("/a", b"o" * 200_000, tag=None, short=[100_000])
    refused(lambda: get(remote(address, size=None), tmp_path, pauses=()), "ended after 100,000 of 200,000")
    server.put("/a", CONTENT, tag=None)
    assert get(remote(address, size=None), tmp_path).read_bytes() == CONTENT
    assert visible(tmp_path) == ["a.bin"]                          # no mixture was made and set aside


def test_no_hash_no_tag_no_resume(server, tmp_path):
    """Where nothing could tell a mixture from the file, a part is not continued."""
    address = server.put("/a", CONTENT, tag=None, short=[100_000])
    assert get(remote(address, sha256=None), tmp_path).read_bytes() == CONTENT
    assert [r for _, r in server.asked] == [None, None]


def test_redirect(server, tmp_path):
    """Redirects are followed, also when resuming; never to a local file."""
    real = server.put("/real", CONTENT, short=[100_000])
    assert get(remote(server.put("/a", b"", goes_to=real)), tmp_path).read_bytes() == CONTENT
    assert ("/real", "bytes=100000-") in server.asked
    (tmp_path / "secret").write_bytes(CONTENT)
    refused(lambda: get(remote(server.put("/b", b"", goes_to=(tmp_path / "secret").as_uri()), file="b.bin"), tmp_path), "b.bin could not be downloaded")
    refused(lambda: get(remote(server.put("/c", b"", goes_to="ftp://127.0.0.1/x"), file="c.bin"), tmp_path), "unknown url type: ftp")
    refused(lambda: get(remote(server.put("/d", b"", goes_to=server.address("/d")), file="d.bin"), tmp_path), "HTTP 302")


@pytest.mark.parametrize("status", [403, 404, 410, 429, 500, 503])
def test_next_mirror(server, tmp_path, status):
    """An address that refuses is not asked twice; the next one is."""
    first, said = server.put("/gone", CONTENT, status=[status] * 9), []
    get(remote(first, server.put("/a", CONTENT)), tmp_path, say=said.append)
    assert [path for path, _ in server.asked] == ["/gone", "/a"] and f"HTTP {status}" in said[0]


def test_mirror_goes_on_where_the_first_one_ended(server, tmp_path):
    """With a hash to judge the whole, the second mirror sends only the rest, whatever its tags are."""
    first = server.put("/first", CONTENT, short=[120_000], status=[])
    server.files["/first"].status = Late([503] * 9)
    get(remote(first, server.put("/a", CONTENT, tag='"other"')), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked[-1] == ("/a", "bytes=120000-")


class Late(list):
    """Falsy the first time it is asked: the first answer is a good one."""
    asked = False

    def __bool__(self) -> bool:
        before, self.asked = self.asked, True
        return before and len(self) > 0


def test_patience_is_counted_anew_for_each_mirror(server, tmp_path):
    """A whole wrong file from the first mirror takes no patience from the second."""
    wrong, patchy = server.put("/wrong", bytes(len(CONTENT))), server.put("/a", CONTENT, short=[40_000] * 6)
    assert get(remote(wrong, patchy), tmp_path).read_bytes() == CONTENT and len(server.asked) == 1 + 7


def test_nobody_there(tmp_path):
    """No network: the error comes at once and names every address; nothing is left behind."""
    with file_server() as gone:
        address = gone.address("/a")
    text = refused(lambda: get(remote(address, address + "2"), tmp_path, pauses=(60, 60)), "a.bin could not be downloaded", address, "--from")
    assert text.count("refused") == 2 and visible(tmp_path) == []


# ---- the wrong file -----------------------------------------------------------------------------------------------------

def test_wrong_bytes_are_set_aside(server, tmp_path):
    """A complete file with another hash is kept under another name, which the error gives; the next mirror is asked."""
    wrong = bytes(len(CONTENT))
    bad = server.put("/bad", wrong)
    text = refused(lambda: get(remote(bad), tmp_path), "SHA256", SHA256[:16], tmp_path / "a.bin.wrong")
    assert "expected" in text and visible(tmp_path) == ["a.bin.wrong"] and (tmp_path / "a.bin.wrong").read_bytes() == wrong
    get(remote(bad, server.put("/a", CONTENT)), tmp_path)
    assert visible(tmp_path) == ["a.bin", "a.bin.wrong", "a.bin.wrong2"] and (tmp_path / "a.bin").read_bytes() == CONTENT


def test_md5_and_first_digits(server, tmp_path):
    """MD5 where there is no SHA-256; and eight digits are compared as eight digits."""
    address = server.put("/a", CONTENT)
    md5 = hashlib.md5(CONTENT).hexdigest()
    get(remote(address, sha256=None, md5=md5.upper()), tmp_path / "1")
    refused(lambda: get(remote(address, sha256=None, md5="0" * 32), tmp_path / "2"), "MD5")
    get(remote(address, sha256=SHA256[:8]), tmp_path / "3")
    refused(lambda: get(remote(address, sha256="00000000"), tmp_path / "4"), "00000000")
    get(remote(address, md5="0" * 32), tmp_path / "5")                       # SHA-256 is there and decides


def test_mixture_is_tried_again_from_the_start(server, tmp_path):
    """A part whose first bytes rotted: the whole has another hash, is set aside, and comes anew from the same mirror."""
    address = server.put("/a", CONTENT, short=[100_000])
    refused(lambda: get(remote(address), tmp_path, pauses=()), "ended after")
    with (tmp_path / "a.bin.part").open("r+b") as part:
        part.write(b"rot")
    assert get(remote(address), tmp_path).read_bytes() == CONTENT
    assert visible(tmp_path) == ["a.bin", "a.bin.wrong"]


def test_size(server, tmp_path):
    """An answer of another length is not even fetched, and one that goes on for ever is cut."""
    refused(lambda: get(remote(server.put("/a", CONTENT + b"x")), tmp_path), "300,001 bytes instead of 300,000")
    refused(lambda: get(remote(server.put("/b", CONTENT * 9, length=False)), tmp_path), "more than 300,000 bytes")
    assert (tmp_path / "a.bin.part").stat().st_size < 9 * len(CONTENT)
    get(remote(server.put("/c", CONTENT)), tmp_path)                        # what came of the wrong one does no harm


def test_web_page(server, tmp_path):
    """A page in place of the file is called a page; nothing is kept of it."""
    page = server.put("/page", b"\n  " + PAGE)
    refused(lambda: get(remote(page, size=None, sha256=None), tmp_path), "web page")
    refused(lambda: get(remote(server.put("/page2", PAGE)), tmp_path), "web page")
    get(remote(page, server.put("/a", CONTENT), size=None), tmp_path)
    assert visible(tmp_path) == ["a.bin"]


def test_wrong_file_that_lies_there(server, tmp_path):
    """A wrong file under the right name is set aside and downloaded again; a right one is left alone."""
    (tmp_path / "a.bin").write_bytes(PAGE)
    said = []
    get(remote(server.put("/a", CONTENT)), tmp_path, say=said.append)
    assert (tmp_path / "a.bin.wrong").read_bytes() == PAGE and "web page" in said[0] and "a.bin.wrong" in said[0]
    get(remote(server.address("/a")), tmp_path)
    assert len(server.asked) == 1


def test_first_download_records_a_hash(server, tmp_path):
    """Without a published hash the first download is remembered, and later ones must agree."""
    address = server.put("/a", CONTENT)
    unknown = remote(address, sha256=None)
    get(unknown, tmp_path)
    assert read_records(tmp_path) == {"a.bin": SHA256}
    verify(tmp_path / "a.bin", unknown)
    (tmp_path / "a.bin").unlink()
    server.put("/a", CONTENT[::-1])
    refused(lambda: get(unknown, tmp_path), SHA256[:16], "a.bin.wrong")
    (tmp_path / "a.bin").write_bytes(CONTENT[::-1])
    refused(lambda: verify(tmp_path / "a.bin", unknown), SHA256[:16], "hashes.json")


def test_file_that_was_there_is_recorded(server, tmp_path):
    """A file put there by hand counts as the first download."""
    (tmp_path / "a.bin").write_bytes(CONTENT)
    get(remote(server.address("/none"), sha256=None), tmp_path)
    assert read_records(tmp_path) == {"a.bin": SHA256} and not server.asked
    (tmp_path / "hashes.json").write_text("[")
    refused(lambda: read_records(tmp_path), "hashes.json", "delete it")


# ---- files that somebody has already ------------------------------------------------------------------------------------

def test_from_folder(server, tmp_path):
    """A file of --from is compared and used in place; a wrong one is refused and left alone; a missing one is downloaded."""
    shelf, target = tmp_path / "shelf", tmp_path / "target"
    shelf.mkdir()
    wanted = remote(server.put("/a", CONTENT))
    (shelf / "a.bin").write_bytes(CONTENT)
    assert get(wanted, target, source=shelf) == shelf / "a.bin" and not server.asked
    (shelf / "a.bin").write_bytes(CONTENT[:-1])
    refused(lambda: get(wanted, target, source=shelf), shelf / "a.bin", "299,999 bytes")
    assert (shelf / "a.bin").stat().st_size == 299_999 and visible(shelf) == ["a.bin"]
    (shelf / "a.bin").unlink()
    assert get(wanted, target, source=shelf) == target / "a.bin"


def test_file_address(tmp_path):
    """file:// is an address like another."""
    (tmp_path / "there").write_bytes(CONTENT)
    assert get(remote((tmp_path / "there").as_uri()), tmp_path / "new").read_bytes() == CONTENT
    refused(lambda: get(remote((tmp_path / "nowhere").as_uri()), tmp_path / "other"), "could not be downloaded")


@pytest.mark.parametrize("changes, words", [
    ({"file": "../a.bin"}, "without folder"), ({"file": ""}, "without folder"), ({"addresses": ("ftp://x/a",)}, "https://"),
    ({"addresses": ()}, "https://"), ({"addresses": ("/etc/passwd",)}, "https://"), ({"sha256": "abc"}, "64 of SHA-256"), ({"sha256": "0" * 63}, "64 of SHA-256"),
    ({"sha256": "z" * 64}, "64 of SHA-256"), ({"md5": "0" * 31}, "32 of MD5")])
def test_descriptions(changes, words):
    """A description that can't be right is refused when it is written."""
    refused(lambda: remote(**{"addresses": ("https://example.org/a",)} | changes), words)


# ---- the disk -------------------------------------------------------------------------------------------------------------

def test_room(server, tmp_path, monkeypatch):
    """Too small a disk is seen before a byte is asked for; the message counts in gigabytes and names the folder."""
    usage = type("usage", (), {"free": 100_000})
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: usage)
    refused(lambda: get(remote(server.put("/a", CONTENT)), tmp_path), "0.3 MB", "0.1 MB", tmp_path)
    assert not server.asked
    refused(lambda: check_room(tmp_path / "not/yet", 13_510_573_713, "train2014.zip"), "train2014.zip needs 13.5 GB", "not/yet")


def test_room_counts_what_came_already(server, tmp_path, monkeypatch):
    """Of a half file only the rest needs room."""
    address = server.put("/a", CONTENT, short=[250_000])
    refused(lambda: get(remote(address), tmp_path, pauses=()), "ended after")
    monkeypatch.setattr(remotes.shutil, "disk_usage", lambda path: type("usage", (), {"free": 60_000}))
    assert get(remote(address), tmp_path).read_bytes() == CONTENT


def test_disk_fills_up(server, tmp_path, monkeypatch):
    """ENOSPC in the middle is one line; what came stays and is continued."""
    take, wrote = downloads.Part.append, []
    def full(self, file, chunk):
        if wrote:
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote.append(take(self, file, chunk))
    monkeypatch.setattr(downloads, "CHUNK", 100_000)
    monkeypatch.setattr(downloads.Part, "append", full)
    address = server.put("/a", CONTENT)
    refused(lambda: get(remote(address), tmp_path), "is full", tmp_path)
    monkeypatch.undo()
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < have <= 100_000 and get(remote(address), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a", f"bytes={have}-")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(server, tmp_path):
    """A folder that is read-only is named."""
    tmp_path.chmod(0o500)
    refused(lambda: get(remote(server.put("/a", CONTENT)), tmp_path), "cannot be written", tmp_path)
    tmp_path.chmod(0o700)


def test_refused_by_the_system(server, tmp_path, monkeypatch):
    """The same as anybody, root included: what the system says of permissions becomes one line."""
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.bin.part"))
    monkeypatch.setattr(downloads.Part, "begin", denied)
    refused(lambda: get(remote(server.put("/a", CONTENT)), tmp_path), "cannot be written", "Permission denied", "a.bin.part")
    (tmp_path / "file").write_text("")
    refused(lambda: get(remote(server.address("/a")), tmp_path / "file/inside"), "cannot be written")


# ---- kills, and several at once --------------------------------------------------------------------------------------------

CHILD = """
import sys
from wsss_nb.downloads import download
from wsss_nb.remotes import Remote
address, folder, size, digits = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
download(Remote("a.bin", (address,), int(size), digits), folder, timeout=60.)
"""


def child(address: str, folder: Path) -> subprocess.Popen:
    """A process that downloads."""
    return subprocess.Popen([sys.executable, "-c", CHILD, address, folder, str(len(CONTENT)), SHA256], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def go(*processes: subprocess.Popen) -> None:
    """Once all of them have imported what they need, let them begin at the same moment."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_killed_in_the_middle(server, tmp_path):
    """SIGKILL during a download: the next call asks for the rest, and the result is the file."""
    process = child(server.put("/a", CONTENT, stalls=[2 ** 17]), tmp_path)
    go(process)
    part = tmp_path / "a.bin.part"
    for _ in range(1000):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT) and visible(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    assert get(remote(server.address("/a")), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a", f"bytes={have}-") and visible(tmp_path) == ["a.bin"]


def test_killed_between_the_last_byte_and_the_name(server, tmp_path):
    """A part that is whole is compared and renamed; nobody is asked."""
    address = server.put("/a", CONTENT)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"address": address, "tag": '"1"', "total": len(CONTENT)}))
    assert get(remote(address), tmp_path).read_bytes() == CONTENT and not server.asked and visible(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("note", ["", "{", "[1]", "null"])
def test_part_without_a_note(server, tmp_path, note):
    """Bytes of unknown origin, or with a note that was cut short, are not continued."""
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    if note:
        (tmp_path / "a.bin.part.json").write_text(note)
    assert get(remote(server.put("/a", CONTENT)), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/a", None)]


def test_part_longer_than_the_file(server, tmp_path):
    """A part that is too long is thrown away."""
    address = server.put("/a", CONTENT)
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"address": address, "tag": '"1"', "total": None}))
    assert get(remote(address), tmp_path).read_bytes() == CONTENT


def test_several_at_once(server, tmp_path):
    """Processes started together, as torchrun does: one downloads, the others wait and find the file."""
    address = server.put("/a", CONTENT, delay=.4)
    processes = [child(address, tmp_path) for _ in range(3)]
    go(*processes)
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and len(server.asked) == 1 and visible(tmp_path) == ["a.bin"]


def test_server_of_the_tests(server: FileServer):
    """The server does serve wrong ranges when told to, or the tests above would prove nothing."""
    from urllib.request import Request, urlopen
    address = server.put("/a", b"0123456789", shift=2)
    with urlopen(Request(address, headers={"Range": "bytes=4-"})) as answer:
        assert answer.status == 206 and answer.read() == b"6789" and answer.headers["Content-Range"] == "bytes 6-9/10"
