"""The lessons as data: one reader, shared by every test that looks at notebooks."""
from __future__ import annotations

import ast
import configparser
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
LIBRARY = ROOT / "wsss_nb"


def settings() -> configparser.SectionProxy:
    """The facts of settings.ini."""
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def joined(text: str | list[str]) -> str:
    """Notebooks store long texts as one string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson."""
    index: int
    kind: str
    source: str
    outputs: tuple = ()
    metadata: dict | None = None

    @cached_property
    def directives(self) -> dict[str, str]:
        """The `#| name` and `#| name: value` lines, as a dictionary."""
        found = re.findall(r"^#\|[ \t]*([\w-]+)[ \t]*:?[ \t]*(.*?)[ \t]*$", self.source, re.M) if self.kind == "code" else []
        return dict(found)

    @property
    def exported(self) -> bool:
        """Whether the cell becomes part of the library."""
        return any(name in self.directives for name in ("export", "exporti", "exports"))

    @cached_property
    def tree(self) -> ast.Module:
        """What Python parses; what %time and %%timeit time is code too, other magics become calls."""
        if self.kind != "code":
            return ast.Module(body=[], type_ignores=[])
        timed = re.sub(r"^([ \t]*)%%?time(?:it)?\b(?:[ \t]+-\w+[ \t]*\d*)*[ \t]*", r"\1", self.source, flags=re.M)
        return ast.parse(TransformerManager().transform_cell(timed))

    @property
    def headings(self) -> list[str]:
        """The `##` headings of a markdown cell."""
        return re.findall(r"^##[ \t]+(.+?)[ \t]*$", self.source, re.M) if self.kind == "markdown" else []

    @property
    def called(self) -> set[str]:
        """Names of the functions and methods the cell calls."""
        functions = [node.func for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return {f.id if isinstance(f, ast.Name) else f.attr for f in functions if isinstance(f, (ast.Name, ast.Attribute))}

    def skipped(self, flags: set[str]) -> bool:
        """Whether nbdev_test passes over the cell."""
        return bool(flags & set(self.directives)) or self.directives.get("eval", "").lower() == "false"

    def __str__(self) -> str:
        lines = [line for line in self.source.splitlines() if line.strip() and not line.startswith("#|")]
        return f"cell {self.index} ({(lines or ['empty'])[0].strip()[:60]})"


@dataclass(frozen=True)
class Lesson:
    """One notebook."""
    name: str                # 01d_toyvoc
    cells: tuple[Cell, ...]
    bytes: int = 0           # size of the file

    @property
    def order(self) -> tuple[int, str]:
        """Its place in the course: number, then letter; a page without a number, such as index, comes last."""
        number = re.match(r"(\d+)([a-z]*)_", self.name)
        return (int(number[1]), number[2]) if number else (10**6, self.name)

    @property
    def module(self) -> str | None:
        """The module it exports, if any."""
        return next((cell.directives["default_exp"] for cell in self.cells if "default_exp" in cell.directives), None)

    @property
    def code(self) -> list[Cell]:
        """Its code cells."""
        return [cell for cell in self.cells if cell.kind == "code"]

    @property
    def exported(self) -> list[Cell]:
        """The cells that make its module."""
        return [cell for cell in self.code if cell.exported]

    @property
    def headings(self) -> list[str]:
        """Its `##` headings in order."""
        return [heading for cell in self.cells for heading in cell.headings]


def make_lesson(name: str, *cells: tuple[str, str] | dict) -> Lesson:
    """A lesson from (kind, source) pairs or whole cells in the notebook format; the tests' broken examples are made so."""
    full = [cell if isinstance(cell, dict) else {"cell_type": cell[0], "source": cell[1]} for cell in cells]
    return Lesson(name, tuple(Cell(k, cell["cell_type"], joined(cell["source"]), tuple(cell.get("outputs", ())),
                                   cell.get("metadata", {})) for k, cell in enumerate(full)))


def read_lesson(path: Path) -> Lesson:
    """A notebook file as a Lesson."""
    lesson = make_lesson(path.stem, *json.loads(path.read_text(encoding="utf-8"))["cells"])
    return Lesson(lesson.name, lesson.cells, path.stat().st_size)


def lesson_paths() -> list[Path]:
    """The notebooks of the course in reading order."""
    return sorted(NBS.glob("*.ipynb"), key=lambda path: Lesson(path.stem, ()).order)


def lessons() -> list[Lesson]:
    """All lessons in reading order."""
    return [read_lesson(path) for path in lesson_paths()]


def imported_modules(tree: ast.AST, package: str = "wsss_nb") -> set[str]:
    """Modules of the package that code imports, in any spelling; `import wsss_nb` alone imports none."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == package else {base}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            found |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    modules = {name.split(".")[1] for name in found if name.startswith(package + ".")}
    return {name for name in modules if not name.startswith("__")}     # __version__ is the package's own
