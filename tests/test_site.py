"""The site: it builds without Quarto, its links hold, it loads nothing from a network, and a browser shows its formulas."""
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "data_scripts" / "build_site"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LESSONS = [n for n in NOTEBOOKS if n.stem[0].isdigit()]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    "What a page links to, loads, names and says."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids, self.words, self.folded, self.sidebar = [], [], set(), [], [], []
        self.inside = []   # open elements whose text or links are of a kind of their own
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag in ("script", "style", "summary", "nav"):
            self.inside.append((tag, given))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
            if any(t == "nav" and g.get("id") == "quarto-sidebar" for t, g in self.inside):
                self.sidebar.append(given["href"])
        if tag == "link" and {"stylesheet", "icon", "preload"} & set((given.get("rel") or "").split()):
            self.loads.append(given["href"])
        if tag in ("script", "img", "iframe", "source", "video", "embed") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "details":
            self.open = "open" in given

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1][0] == tag:
            self.inside.pop()

    def handle_data(self, data):
        tag = self.inside[-1][0] if self.inside else ""
        if tag == "style" or tag == "script":
            self.loads += re.findall(r"(?:import|from)\s*['\"](https?:[^'\"]+)|url\(['\"]?(https?:[^)]+)", data)
        elif tag == "summary":
            self.folded.append((data, self.open))
        else:
            self.words.append(data)


def run_script(*arguments, **environment):
    "Run build_site as a person would."
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], text=True, capture_output=True, cwd=ROOT,
                          env={**os.environ, **environment}, timeout=600)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The built site, made once."
    if not shutil.which("npm"):
        pytest.skip("npm is not installed, and KaTeX comes with it")
    output = tmp_path_factory.mktemp("site") / "site"
    done = run_script("--output", output)
    assert done.returncode == 0, done.stderr
    assert "http.server" in done.stdout and str(output) in done.stdout
    return output


@pytest.fixture(scope="session")
def pages(site):
    "Every page of the site by its name, read."
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}


@pytest.fixture(scope="session")
def script():
    "The script as a module."
    loader = SourceFileLoader("build_site", str(SCRIPT))
    module = module_from_spec(spec_from_loader("build_site", loader))
    loader.exec_module(module)
    return module


def page_of(notebook: Path) -> str:
    return notebook.stem.split("_", 1)[-1] + ".html"


def test_every_notebook_is_a_page(pages):
    "One page a notebook, under the name without its number."
    assert set(pages) == {page_of(n) for n in NOTEBOOKS}


def test_links_and_anchors_resolve(site, pages):
    "No link inside the site leads nowhere, and none leads out to the published copy of the site."
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if "github.io" in parts.netloc:
                    broken.append((name, link, "leaves this copy of the site"))
                continue
            target = (site / unquote(parts.path)).resolve() if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append((name, link, "no such file"))
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target.name].ids:
                broken.append((name, link, "no such anchor"))
    assert not broken


def test_pages_are_small(site):
    "A page loads on a phone: no more than 1.5 MB."
    large = {path.name: path.stat().st_size for path in site.glob("*.html") if path.stat().st_size > 1.5e6}
    assert not large


def test_nothing_comes_from_a_network(site, pages):
    "Scripts, styles, pictures and fonts lie in the site, and every one of them is there."
    for name, page in pages.items():
        for load in page.loads:
            assert isinstance(load, str) and not re.match(r"https?:|//", load), f"{name} loads {load}"
            if not load.startswith("data:"):
                assert (site / unquote(urlsplit(load).path)).is_file(), f"{name} loads {load}, which is not there"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        for load in re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text):
            assert not re.match(r"https?:|//", load), f"{style.name} loads {load[:80]}"
            if not load.startswith(("data:", "#")):
                assert (style.parent / urlsplit(load).path).is_file(), f"{style.name} loads {load}, which is not there"


def test_directives_are_not_text(pages):
    "What steers nbdev and Quarto is not for readers."
    for name, page in pages.items():
        lines = "".join(page.words).splitlines()
        assert not [line for line in lines if line.startswith(("#|", "show_doc("))], name
        assert not [line for line in lines if re.search(r"\]\(\w+\.html", line)], name


def test_solutions_are_folded(pages):
    "A solution is there, and closed; code that is exported is there, and open."
    for notebook in LESSONS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        solutions = sum('#| code-summary: "A solution"' in "".join(cell["source"]) for cell in cells)
        folded = pages[page_of(notebook)].folded
        assert folded.count(("A solution", False)) == solutions, notebook.name
        assert ("Exported source", True) in folded or not any("#| export\n" in "".join(c["source"]) for c in cells), notebook.name


def test_sidebar_leads_to_every_lesson_in_order(pages):
    "The sidebar is made from the notebooks' names."
    links = [link.removeprefix("./") for link in pages["core.html"].sidebar if link.endswith(".html")]
    assert links == ["index.html", *map(page_of, LESSONS)], "a notebook's decade needs a section in _quarto.yml"


def test_lessons_can_be_taken_along(pages):
    "Every lesson's page leads to its notebook and to Colab; the front page is no notebook to run."
    for notebook in LESSONS:
        links = [link for link in pages[page_of(notebook)].links if link.endswith(f"/nbs/{notebook.name}")]
        assert len(links) == 2 and "/raw/" in links[0] and links[1].startswith("https://colab.research.google.com/github/"), notebook.name
    assert not any("colab.research" in link for link in pages["index.html"].links)


def test_a_shared_link_has_title_and_picture(site):
    "What a chat or a search engine shows of a page (Open Graph)."
    for name in ("index.html", "growing.html"):
        text = (site / name).read_text(encoding="utf-8")
        assert re.search(r'<meta property="og:title" content="[^"]+"', text), name
        picture = re.search(r'<meta property="og:image" content="([^"]+)"', text)[1]
        assert picture.endswith("/images/training.jpg") and picture.startswith("https://") and (site / "images/training.jpg").is_file()


def test_front_page_lists_every_lesson():
    "The table of lessons is an output of nbs/index.ipynb, so it can be old."
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    table = "".join(line for cell in cells for out in cell.get("outputs", []) for line in out.get("data", {}).get("text/markdown", []))
    assert re.findall(r"\((\w+\.ipynb)\)", table) == [n.name for n in LESSONS], "run data_scripts/run_lessons.py nbs/index.ipynb"


def dom(url: str, folder: Path, tries: int = 3) -> str:
    "The page as headless Chromium sees it after its scripts ran, with every host name unknown. Chromium now and then ends without a page on a busy machine: it is asked again."
    flags = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-dev-shm-usage "
             "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom").split()
    for k in range(tries):
        done = subprocess.run([CHROMIUM, *flags, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / str(k)}", url],
                              text=True, capture_output=True, timeout=120)
        if "<title>" in done.stdout:
            return done.stdout
    raise AssertionError(f"Chromium showed no page of {url}: it ended with {done.returncode}, {len(done.stdout)} characters and {done.stderr[-600:]!r}")


def formulas(lesson: str) -> int:
    "How many formulas the text of a lesson has; dollars in code are none."
    cells = json.loads((ROOT / f"nbs/{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S), re.S))


# page, its lesson, its title, something it must say
@pytest.mark.parametrize("address, lesson, title, says", [
    ("index.html", "index", "Learning to segment from tags", "Deep Seeded Region Growing"),
    ("core.html", "00_core", "Core: the tensors", "The letters are the papers"),
    ("core.html#colorize", "00_core", "Core: the tensors", "uint8 (…,h,w,3)"),
    ("growing.html", "30_growing", "Growing: cues become objects", "a fence runs across a cow"),
])
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_browser_shows(site, tmp_path, address, lesson, title, says):
    "A real browser renders title, formulas and documentation."
    seen = dom(f"{site.as_uri()}/{address}", tmp_path)
    page = Page(seen)
    assert re.search(r"<title>([^<]*)</title>", seen)[1].startswith(title)
    assert len(re.findall(r'<span class="katex">', seen)) == formulas(lesson) > 2
    assert "katex-error" not in seen
    assert says in "".join(page.words)
    assert not re.search(r"\$\$|\\\(|\\\[", "".join(page.words))
    if "#" in address:
        section = seen[seen.index(f'id="{address.split("#")[1]}"'):].split("<h3", 1)[0]
        signature = "".join(Page(re.search(r"<pre.*?</pre>", section, re.S)[0]).words)
        assert re.sub(r"\s+", " ", signature) == "def colorize( S:np.ndarray, # integer (…,h,w), label values )->np.ndarray: # uint8 (…,h,w,3)"


def test_help_has_examples():
    "`--help` shows how the script is used."
    said = run_script("--help").stdout
    assert "examples:" in said and "python -m http.server -d _docs" in said


def test_without_npm_it_says_what_to_install(tmp_path):
    "A missing program is named before anything is built."
    done = run_script("--output", tmp_path / "site", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "`npm` is not installed" in done.stderr and "Node.js" in done.stderr and "Traceback" not in done.stderr


def test_without_quarto_it_says_what_to_install(tmp_path):
    "The publishing workflow's renderer is optional."
    done = run_script("--with", "quarto", "--output", tmp_path / "site", PATH=str(tmp_path))
    assert done.returncode == 1 and "`quarto` is not installed" in done.stderr


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    "The output folder is replaced, so it must be an older site."
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_script("--output", tmp_path)
    assert done.returncode == 1 and "no site" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_links_stay_inside_the_site(script):
    "Links to notebooks, and the absolute ones nbdev writes, become links between pages."
    names = {"00_core": "core", "index": "index"}
    text = "[a](00_core.ipynb#colours) [b](https://x.org/lib/core.html#check) [c](https://x.org/lib/core.html#batch.to) [d](https://x.org/other)"
    assert script.relink(text, names, "https://x.org/lib") == "[a](core.ipynb#colours) [b](core.html#check) [c](core.html#batch) [d](https://x.org/other)"


def test_navigation_is_written_out(script):
    "Patterns become pages in the lessons' order; a section without lessons goes."
    names = {"00_core": "core", "01a_drawing": "drawing", "10_zoo": "zoo", "index": "index"}
    sections = ["index.ipynb", {"section": "A", "contents": [{"auto": "0*.ipynb"}]}, {"section": "B", "contents": [{"auto": "2*.ipynb"}]},
                {"text": "go", "href": "10_zoo.ipynb"}]
    assert script.expand(sections, names) == ["index.ipynb", {"section": "A", "contents": ["core.ipynb", "drawing.ipynb"]},
                                              {"text": "go", "href": "zoo.ipynb"}]


def test_each_definition_is_a_piece(script):
    "Constants and comments stay where they were; decorators go with what they decorate."
    code = "A = 1\ndef f():\n    return A\n\nB = f()\n\n# why\n@cache\ndef g():\n    pass\nclass C: pass\n# end"
    assert script.split_definitions(code) == ["A = 1\ndef f():\n    return A\n\nB = f()", "# why\n@cache\ndef g():\n    pass", "class C: pass\n# end"]
    assert script.split_definitions("A = 1\nB = 2") == ["A = 1\nB = 2"]


def test_two_pages_of_one_name_are_refused(script):
    "Numbers order the lessons, so they cannot tell pages apart."
    with pytest.raises(script.SiteError, match="core.html"):
        script.page_names([Path("00_core.ipynb"), Path("01_core.ipynb")])
