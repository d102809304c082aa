"""The health of the lessons: how each opens and ends, what it saves, how long its functions are."""
from __future__ import annotations

import ast
import base64
import re
import statistics
from itertools import takewhile
from pathlib import Path

import pytest
from notebooks import ROOT, Cell, Lesson, joined, lesson_paths, lessons, make_lesson, read_lesson, settings

PATHS = lesson_paths()
FLAGS = set(settings()["tst_flags"].split())
PAGES = {"index", "53_cli", "58_differences"}                  # pages that teach no method end without exercises
DATA_FLOORS = range(4)                       # 00–03, core and the data sets: here 255 may be written as a number
NUMBERS = {20, 21, 41, 255}
# folders of somebody's machine, in parts, so that this file does not hold what it looks for
MACHINE = re.compile(r"(?<![\w./~<>*-])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/\w")


# ---- rules: each takes a lesson and returns its faults, in words -------------------------------------------------------

def opening(lesson: Lesson) -> list[str]:
    """The first cell is a title and the one question the lesson answers."""
    first = lesson.cells[0].source if lesson.cells and lesson.cells[0].kind == "markdown" else ""
    return [] if re.match(r"# \S.*\n+> \S[^\n]*\?\s*$", first) else ["must open with `# Title` and `> a question?`, and nothing else"]


def saved_errors(lesson: Lesson) -> list[str]:
    """No cell was saved while it raised."""
    return [f"{cell} has an error among its outputs" for cell in lesson.code if any(o["output_type"] == "error" for o in cell.outputs)]


def saved_outputs(lesson: Lesson) -> list[str]:
    """A reader who runs nothing sees results."""
    return [] if any(cell.outputs for cell in lesson.code) or not lesson.exported else ["no output is saved"]


def lost_prints(lesson: Lesson) -> list[str]:
    """run_lessons.py keeps nothing that a cell prints when its last sign is a semicolon, so it must not end with one."""
    return [f"{cell} prints, and ends with a semicolon" for cell in lesson.code if "print" in cell.called and cell.source.rstrip().endswith(";") and not cell.skipped(FLAGS)]


def stderr_outputs(lesson: Lesson) -> list[str]:
    """No warnings and progress bars among the results."""
    return [f"{cell} has saved stderr" for cell in lesson.code if any(o.get("name") == "stderr" for o in cell.outputs)]


def is_import(node: ast.stmt) -> bool:
    """An import, or an `if TYPE_CHECKING:` that holds nothing else."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return all(map(is_import, node.body)) and not node.orelse
    return isinstance(node, (ast.Import, ast.ImportFrom))


def import_cells(lesson: Lesson) -> list[str]:
    """The docs build re-runs every cell that imports, so such a cell does nothing else; exported functions may import inside."""
    faults = []
    for cell in lesson.code:
        reach = cell.tree.body if cell.exported else list(ast.walk(cell.tree))
        if any(map(is_import, reach)) and not all(map(is_import, cell.tree.body)):
            faults.append(f"{cell} imports and does other things")
    return faults


def flagged_cells(lesson: Lesson) -> list[str]:
    """A cell that tests pass over has a twin in its section: a cell that runs and calls something it calls."""
    faults, section = [], []
    sections = [section]
    for cell in lesson.cells:
        if cell.kind == "markdown" and re.search(r"^#{1,4} ", cell.source, re.M):
            sections.append(section := [])
        section.append(cell)
    for section in sections:
        running = set().union(*(cell.called for cell in section if not cell.skipped(FLAGS)))
        for cell in section:
            if cell.skipped(FLAGS - {"exercise"}) and not cell.called & running:
                faults.append(f"{cell} is never run: give it a small twin in the same section that calls the same functions")
    faults += [f"{cell} has skip_exec: no cell of the notebook would run" for cell in lesson.cells
               if cell.kind == "raw" and "skip_" in cell.source]
    return faults


def figures(lesson: Lesson) -> list[str]:
    """Figures are JPEG; PNG is ten times the size."""
    return [f"{cell} has a PNG figure; data_scripts/run_lessons.py saves JPEG" for cell in lesson.code
            if any("image/png" in o.get("data", {}) for o in cell.outputs)]


def figure_words(lesson: Lesson) -> list[str]:
    """Who cannot see a figure is told what it shows: Quarto takes fig-alt from the lines that begin a cell."""
    shown = [cell for cell in lesson.code if any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {}))]
    head = lambda cell: "\n".join(takewhile(lambda line: line.startswith("#|"), cell.source.splitlines()))
    return [f"{cell} shows a figure without words: begin it with #| fig-alt: \"what the figure shows\"" for cell in shown if not re.search(r"^#\| fig-alt: .{30}", head(cell), re.M)]


def opening_pictures(lesson: Lesson) -> list[str]:
    """A picture taken from a figure further down stands above the code, and is that figure as it was last drawn."""
    faults, above = [], "\n".join(cell.source for cell in takewhile(lambda cell: cell.kind == "markdown", lesson.cells))
    for cell in lesson.code:
        for name in re.findall(r"^#\| opening: (\S+)$", cell.source, re.M):
            drawn = [joined(o["data"]["image/jpeg"]) for o in cell.outputs if "image/jpeg" in o.get("data", {})]
            file = ROOT / "nbs/images" / name
            faults += [] if f"](images/{name})" in above else [f"{cell} draws images/{name}, and the lesson does not open with it"]
            faults += [] if drawn and file.is_file() and file.read_bytes() == base64.b64decode(drawn[0]) else [f"images/{name} is not what {cell} draws: run data_scripts/run_lessons.py on the lesson"]
    return faults


def exported_lines(lesson: Lesson) -> int:
    """Lines of the module's code; blank lines and directives do not count."""
    lines = "\n".join(cell.source for cell in lesson.exported).splitlines()
    return sum(bool(line.strip()) and not line.startswith("#|") for line in lines)


def size(lesson: Lesson) -> list[str]:
    """A lesson is short."""
    measures = {"cells": (len(lesson.cells), 80), "exported lines": (exported_lines(lesson), 220), "bytes": (lesson.bytes, 10**6)}
    return [f"{value} {what}, more than {limit}" for what, (value, limit) in measures.items() if value > limit]


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions and methods; not those inside functions."""
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    return [node for scope in scopes for node in scope.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(function: ast.FunctionDef) -> int:
    """Lines from `def` to the end; decorators not counted."""
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    """All parameters but self and cls."""
    a = function.args
    found = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    return [p for p in found if p.arg not in ("self", "cls")]


def is_command(function: ast.FunctionDef) -> bool:
    """A command of the command line: its docstring is the page that --help shows, examples included."""
    return any(re.search(r"\.command\b", ast.unparse(decorator)) for decorator in function.decorator_list)


def signatures(lesson: Lesson) -> list[str]:
    """Exported functions have types, a one-line docstring (private ones may go without) and at most 40 lines."""
    faults = []
    for function in [f for cell in lesson.exported for f in functions(cell.tree)]:
        untyped = [p.arg for p in parameters(function) if p.annotation is None]
        docstring = ast.get_docstring(function, clean=False)
        faults += [f"{function.name}: no type for {', '.join(untyped)}"] if untyped else []
        faults += [f"{function.name}: no docstring"] if not docstring and not function.name.startswith("_") else []
        faults += [f"{function.name}: the docstring has more than one line"] if docstring and "\n" in docstring and not is_command(function) else []
        faults += [f"{function.name}: {length(function)} lines, more than 40"] if length(function) > 40 else []
    return faults


def magic_numbers(lesson: Lesson) -> list[str]:
    """Class counts and sizes of the papers' data sets have names; elsewhere they would tie a method to VOC."""
    if lesson.order[0] in DATA_FLOORS:
        return []
    how_long = {id(node.value) for cell in lesson.exported for node in ast.walk(cell.tree)
                if isinstance(node, ast.keyword) and node.arg in ("epochs", "batch_size")}   # these tie a method to no data set
    return [f"{cell} holds the number {node.value}: use IGNORE, BACKGROUND, len(classes), an argument" for cell in lesson.exported
            for node in ast.walk(cell.tree) if isinstance(node, ast.Constant) and type(node.value) is int and node.value in NUMBERS and id(node) not in how_long]


def machine_paths(lesson: Lesson) -> list[str]:
    """Nothing in cells or outputs tells whose machine it ran on; outputs name no temporary folder either."""
    faults = []
    for cell in lesson.cells:
        outputs = " ".join(joined(text) for o in cell.outputs for kind, text in [("text", o.get("text", "")), *o.get("data", {}).items()]
                           if kind.startswith("text"))
        if MACHINE.search(cell.source) or MACHINE.search(outputs) or re.search(r"(?<!\w)/tmp/\w", outputs):
            faults.append(f"{cell} names a folder of one machine")
    return faults


def ending(lesson: Lesson) -> list[str]:
    """A lesson ends with exercises."""
    ends = lesson.headings and lesson.headings[-1] in ("Exercise", "Exercises") and any("exercise" in c.directives for c in lesson.code)
    return [] if ends or lesson.name in PAGES else ["does not end with `## Exercises` and a cell for the student"]


RULES = (opening, saved_errors, saved_outputs, stderr_outputs, lost_prints, import_cells, flagged_cells, figures, figure_words, opening_pictures, size, signatures,
         magic_numbers, machine_paths, ending)


# ---- the lessons obey ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_lesson_is_healthy(path, rule):
    """Every rule holds in every lesson."""
    assert rule(read_lesson(path)) == []


def test_every_difference_is_collected():
    """The page of differences shows each note of each lesson as it stands there now; run it again when a note changes."""
    page = next(lesson for lesson in lessons() if lesson.name == "58_differences")
    shown = "".join(joined(o["data"]["text/markdown"]) for cell in page.code for o in cell.outputs if "text/markdown" in o.get("data", {}))
    notes = [(lesson.name, begins) for lesson in lessons() if lesson.name != page.name for cell in lesson.cells if cell.kind == "markdown"
             for begins in re.findall(r"^(?:> )?(?:## Where we differ\n+|\*\*Where we differ\.?\*\*\s+)(.{25})", cell.source, re.M)]
    assert len(notes) > 20 and [name for name, begins in notes if begins not in shown] == []


def test_functions_are_short():
    """The median exported function is under 12 lines."""
    lengths = [length(f) for lesson in lessons() for cell in lesson.exported for f in functions(cell.tree)]
    assert statistics.median(lengths) < 12


def test_files_name_no_machine():
    """No test, script, module or page holds a path of one machine."""
    folders = [ROOT / name for name in ("tests", "data_scripts", "wsss_nb", ".ci", ".github")]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()] + [p for p in ROOT.iterdir() if p.is_file()]
    assert named_machines(p for p in files if "__pycache__" not in p.parts) == []


def named_machines(paths) -> list[str]:
    """The text files that name a folder of one machine, with the line."""
    faults = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:      # a picture
            continue
        faults += [f"{path.name}:{k}: {line.strip()}" for k, line in enumerate(lines, 1) if MACHINE.search(line)]
    return faults


# ---- each rule can fail -------------------------------------------------------------------------------------------------

TITLE = ("markdown", "# Boxes: where things are\n\n> How many numbers is a box?")
END = ("markdown", "## Where it fails\n\nEverywhere.\n\n## Exercises\n\nCount.")
STUB = ("code", "#| exercise\ndef count(): ...")
GOOD = '#| export\ndef area(h: int, # rows\n         w: int = 2,\n         ) -> int: # pixels\n    "Pixels of a box."\n    return h * w'


def output(kind: str = "display_data", **data) -> dict:
    """A code cell with one output."""
    return {"cell_type": "code", "source": "area(1)", "outputs": [{"output_type": kind, **data}]}


def code(*sources: str, name: str = "05_boxes") -> Lesson:
    """A lesson of code cells."""
    return make_lesson(name, *[("code", source) for source in sources])


def exported(body: str, name: str = "05_boxes") -> Lesson:
    """A lesson that exports this code."""
    return code("#| export\n" + body, name=name)


ALT = '#| fig-alt: "A box, and beside it one of twice the area."\n'
HEALTHY = make_lesson(
    "05_boxes", TITLE, ("code", "#| default_exp boxes"),
    ("code", "#| export\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"), ("code", "import sys"),
    ("code", GOOD), {**output(data={"image/jpeg": "", "text/plain": ["see https://example.org/work/x"]}), "source": f"{ALT}area(1)"},
    ("markdown", "## Large"), ("code", "#| slow\narea(1000)"), ("code", "area(3)"),
    ("code", "#| export\ndef lazy():\n    'Later.'\n    import os"),
    END, STUB)
LONG = "def long():\n    'Long.'\n" + "    x = 1\n" * 38

CAM = output(data={"image/jpeg": base64.b64encode((ROOT / "nbs/images/cam.jpg").read_bytes()).decode()})   # a figure that is stored as a picture

BROKEN = [
    (opening, make_lesson("05_boxes", ("code", "1"), TITLE), "must open"),
    (opening, make_lesson("05_boxes", ("markdown", "# Boxes")), "must open"),
    (opening, make_lesson("05_boxes", ("markdown", "# Boxes\n\n> Boxes have numbers.")), "must open"),
    (opening, make_lesson("05_boxes", ("markdown", TITLE[1] + "\n\nMore text.")), "must open"),
    (saved_errors, make_lesson("05_boxes", output("error", ename="ValueError")), "error"),
    (saved_outputs, exported("x = 1"), "no output"),
    (stderr_outputs, make_lesson("05_boxes", output("stream", name="stderr", text=["100%"])), "stderr"),
    (lost_prints, code("print(1)\nx.plot();"), "semicolon"),
    (import_cells, code("import sys\nprint(1)"), "imports and does"),
    (import_cells, code("def f():\n    import sys"), "imports and does"),
    (import_cells, exported("import sys\nx = 1"), "imports and does"),
    (import_cells, code("if TYPE_CHECKING:\n    import sys\n    x = 1"), "imports and does"),
    (flagged_cells, code("#| slow\narea(1000)", "other(1)"), "never run"),
    (flagged_cells, code("#| eval: false\narea(1000)"), "never run"),
    (flagged_cells, code("#| cuda\nx = 1", "x = 1"), "never run"),
    (flagged_cells, make_lesson("05_boxes", ("code", "#| data\narea(9)"), ("markdown", "## Next"), ("code", "area(1)")), "never run"),
    (flagged_cells, make_lesson("05_boxes", ("raw", "---\nskip_exec: true\n---")), "skip_exec"),
    (figures, make_lesson("05_boxes", output(data={"image/png": ""})), "PNG"),
    (figure_words, make_lesson("05_boxes", output(data={"image/jpeg": ""})), "without words"),
    (figure_words, make_lesson("05_boxes", {**output(data={"image/jpeg": ""}), "source": "area(1)\n" + ALT}), "without words"),
    (figure_words, make_lesson("05_boxes", {**output(data={"image/svg+xml": ""}), "source": "#| fig-alt: A box.\narea(1)"}), "without words"),
    (opening_pictures, make_lesson("05_boxes", {**CAM, "source": "#| opening: cam.jpg"}), "does not open"),
    (opening_pictures, make_lesson("05_boxes", ("markdown", "![Maps.](images/cam.jpg)"), {**output(data={"image/jpeg": "AAAA"}), "source": "#| opening: cam.jpg"}), "is not what"),
    (opening_pictures, make_lesson("05_boxes", ("markdown", "![Maps.](images/cam.jpg)"), {**CAM, "outputs": [], "source": "#| opening: cam.jpg"}), "is not what"),
    (size, code(*["x = 1"] * 81), "81 cells"),
    (size, exported("x = 1\n" * 221), "221 exported lines"),
    (size, Lesson("05_boxes", (), 1_000_001), "1000001 bytes"),
    (signatures, exported("def f(a, b: int):\n    'Short.'"), "no type for a"),
    (signatures, exported("def f(*a, **k: int):\n    'Short.'"), "no type for a"),
    (signatures, exported("class A:\n    'An A.'\n    def f(self, *, k=1):\n        'Short.'"), "no type for k"),
    (signatures, exported("def f(): return 1"), "no docstring"),
    (signatures, exported("def f():\n    '''Two\n    lines.'''"), "more than one line"),
    (signatures, exported("@cache\ndef command():\n    '''Two\n    lines.'''"), "more than one line"),
    (signatures, exported(LONG + "    return x"), "41 lines"),
    (magic_numbers, exported("def f(n: int = 21): 'Short.'"), "number 21"),
    (magic_numbers, exported("x = [20, 2, 3]", "04_show"), "number 20"),
    (magic_numbers, exported("x = S == 255", "21_losses"), "number 255"),
    (magic_numbers, exported("x = train(epochs=5, classes=20)", "21_losses"), "number 20"),
    (machine_paths, code("open('/" + "root/x')"), "one machine"),
    (machine_paths, make_lesson("05_boxes", output("stream", text=["saved /" + "home/me/x.png"])), "one machine"),
    (machine_paths, make_lesson("05_boxes", output(data={"text/plain": "PosixPath('/tmp/abc')"})), "one machine"),
    (ending, make_lesson("05_boxes", TITLE, STUB, ("markdown", "## Where it fails")), "does not end"),
    (ending, make_lesson("05_boxes", TITLE, END), "does not end"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_healthy_example_passes(rule):
    """No rule complains of a good lesson."""
    assert rule(HEALTHY) == []


@pytest.mark.parametrize("rule, lesson, words", BROKEN, ids=[f"{rule.__name__}-{words}" for rule, _, words in BROKEN])
def test_broken_example_is_refused(rule, lesson, words):
    """One fault each, and the rule names it."""
    faults = rule(lesson)
    assert len(faults) == 1 and words in faults[0]


def test_what_is_allowed():
    """Bounds themselves pass; core and data sets may write 255; 40 lines are the end; private and special functions need no docstring."""
    assert signatures(exported(LONG)) == []
    assert signatures(exported("class A:\n    'An A.'\n    def __len__(self): return 1\ndef _f(): return 1")) == []
    assert signatures(exported("@app.command('go')\ndef go():\n    '''Two\n    lines.'''")) == []
    assert magic_numbers(exported("IGNORE = 255", "00_core")) == magic_numbers(exported("x = 22, True, 255.5")) == magic_numbers(exported("x = train(epochs=20, batch_size=20)", "21_losses")) == []
    assert size(code(*["x = 1"] * 80)) == size(exported("x = 1\n\n" * 220)) == []
    assert ending(make_lesson("index", TITLE)) == []
    assert exported_lines(code("#| export\nx = 1\n\n\ny = 2", "z = 3")) == 2
    assert [f.name for f in functions(ast.parse("def f():\n    def inner(): ...\nclass A:\n    def g(self): ..."))] == ["f", "g"]


def test_machine_path_in_a_file_is_found(tmp_path):
    """A text file with a path is named with its line; a picture is passed over."""
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "good.md").write_text("see https://example.org/root/x and tests/home/x\n")
    (tmp_path / "bad.py").write_text("x = 1\nfolder = '/" + "work/data'\n")
    assert named_machines(sorted(tmp_path.iterdir())) == ["bad.py:2: folder = '/" + "work/data'"]


def test_settings_know_the_flags():
    """The flags that tests pass over are the five the course uses."""
    assert FLAGS == {"notest", "slow", "cuda", "data", "exercise"}
    assert Cell(0, "code", "#| slow\n#| code-fold: true\nx = 1").directives == {"slow": "", "code-fold": "true"}
    assert not Cell(0, "code", "#| eval: true\nx = 1").skipped(FLAGS) and Path(ROOT / "settings.ini").is_file()
