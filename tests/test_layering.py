"""A lesson uses only what an earlier lesson has taught, and every module has one lesson."""
import pytest
from notebooks import LIBRARY, Lesson, imported_modules, lessons, make_lesson

METHODS = range(30, 35)      # growing, graph cut, several seeds, instances, assignment: rivals, not layers (33b may stand on 33)


def layer_faults(course: list[Lesson]) -> list[str]:
    """Imports that reach upward, sideways among the methods, or to nowhere."""
    order = {lesson.module: lesson.order for lesson in course if lesson.module}
    faults = []
    for lesson in course:
        for cell in lesson.code:
            for module in sorted(imported_modules(cell.tree)):
                if module not in order:
                    faults.append(f"{lesson.name}, {cell}: wsss_nb.{module} comes from no lesson")
                elif order[module] >= lesson.order:
                    faults.append(f"{lesson.name}, {cell}: wsss_nb.{module} is not from an earlier lesson")
                elif order[module][0] in METHODS and lesson.order[0] in METHODS and order[module][0] != lesson.order[0]:
                    faults.append(f"{lesson.name}, {cell}: the methods 30–34 must not import each other ({module})")
    return faults


def source_faults(course: list[Lesson], modules: set[str]) -> list[str]:
    """Modules without exactly one lesson, and lessons that export to more than their own module."""
    exports = [lesson.module for lesson in course if lesson.module]
    faults = [f"wsss_nb/{module}.py comes from {exports.count(module)} lessons" for module in sorted(modules | set(exports))
              if exports.count(module) != 1]
    faults += [f"{module} has a lesson and no file: run nbdev_export" for module in sorted(set(exports) - modules)]
    for lesson in course:
        faults += [f"{lesson.name}, {cell}: exports to another module than its own" for cell in lesson.exported
                   if any(cell.directives.get(name) for name in ("export", "exporti", "exports"))]
        faults += [f"{lesson.name} exports cells and has no default_exp"] if lesson.exported and not lesson.module else []
    return faults


def lesson(name: str, module: str | None, *sources: str) -> Lesson:
    """A lesson with code cells only."""
    first = (f"#| default_exp {module}",) if module else ()
    return make_lesson(name, *[("code", source) for source in first + sources])


def test_lessons_import_only_earlier_lessons():
    """Every import of the library in every cell goes downward."""
    assert layer_faults(lessons()) == []


def test_every_module_comes_from_one_lesson():
    """No module is written by hand, and none has two sources."""
    modules = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "_modidx"}
    assert source_faults(lessons(), modules) == []


def test_order_is_number_then_letter():
    """00 < 00b < 01a < 01c < 02 < 02b < 53 < index."""
    names = ["index", "53_cli", "02b_voc", "01d_toyvoc", "02_tagged", "00b_files", "01a_drawing", "00_core"]
    ordered = sorted(names, key=lambda name: Lesson(name, ()).order)
    assert ordered == ["00_core", "00b_files", "01a_drawing", "01d_toyvoc", "02_tagged", "02b_voc", "53_cli", "index"]


@pytest.mark.parametrize("source", [
    "from wsss_nb.show import overlay", "import wsss_nb.show", "from wsss_nb import show", "from .show import overlay",
    "from . import show", "import wsss_nb.show as s, os", "#| export\ndef f():\n    from wsss_nb.show import overlay",
    "%time from wsss_nb.show import overlay\n!ls",
    "%%timeit -n 3 -r1\nfrom wsss_nb.show import overlay", "%matplotlib inline\nfrom wsss_nb.show import overlay",
    "import importlib\nimportlib.import_module('wsss_nb.show')",
    "__import__('wsss_nb.show')", "import wsss_nb.show.deeper"])
def test_upward_import_is_found(source):
    """However it is written, exported or not, at the top or inside a function."""
    course = [lesson("02_tagged", "tagged", source), lesson("04_show", "show")]
    assert ["not from an earlier lesson" in fault for fault in layer_faults(course)] == [True]
    course = [lesson("05_evaluation", "evaluation", source), lesson("04_show", "show")]
    assert layer_faults(course) == []


def test_other_layer_faults_are_found():
    """A lesson's own module, a letter out of order, an unknown module, and two methods."""
    def faults(*course):
        return " ".join(layer_faults(list(course)))
    assert "not from an earlier" in faults(lesson("02_tagged", "tagged", "from wsss_nb.tagged import f"))
    assert "not from an earlier" in faults(lesson("01a_x", "x", "import wsss_nb.y"), lesson("01b_y", "y"))
    assert "comes from no lesson" in faults(lesson("02_tagged", "tagged", "from wsss_nb.gone import f"))
    assert "methods" in faults(lesson("30_growing", "growing"), lesson("31_graphcut", "graphcut", "import wsss_nb.growing"))
    assert faults(lesson("00_core", "core"), lesson("31_graphcut", "graphcut", "import wsss_nb, wsss_nb.core\nfrom wsss_nb import __version__")) == ""


def test_source_faults_are_found():
    """A module by hand, one with two lessons, one not exported, a cell that exports elsewhere or nowhere."""
    core = lesson("00_core", "core")
    assert source_faults([core], {"core"}) == []
    assert "by_hand.py comes from 0" in source_faults([core], {"core", "by_hand"})[0]
    assert "core.py comes from 2" in source_faults([core, lesson("00b_core", "core")], {"core"})[0]
    assert "no file" in source_faults([core], set())[0]
    assert "another module" in source_faults([lesson("00_core", "core", "#| export show\nx = 1")], {"core"})[0]
    assert "no default_exp" in source_faults([lesson("00_core", None, "#| export\nx = 1")], set())[0]
