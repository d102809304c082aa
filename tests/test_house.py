"""The house around the code: style, packaging, and one command that does everything."""
import re
import subprocess
import sys
import tomllib

import pytest
from notebooks import ROOT, settings

COMMAND = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev]' && nbdev_test && pytest"


def bash_lines(markdown: str) -> list[str]:
    """The lines of a text's bash blocks."""
    return [line for block in re.findall(r"^```bash\n(.*?)^```", markdown, re.M | re.S) for line in block.splitlines()]


def ruff(*paths) -> subprocess.CompletedProcess:
    """`ruff check` with the rules of pyproject.toml."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "--config", ROOT / "pyproject.toml", *paths]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_ci_runs_the_command_of_the_readme():
    """The line a newcomer copies is the line CI runs, character for character, and CI's verdict is that line's."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()
    assert bash_lines((ROOT / "README.md").read_text(encoding="utf-8")).count(COMMAND) == 1
    assert script[-1] == COMMAND and script.count(COMMAND) == 1
    assert "set -euo pipefail" in script


def test_bash_lines_are_read_from_blocks_only():
    """Prose and other blocks do not count."""
    assert bash_lines("pytest\n```bash\na\nb\n```\n```python\nc\n```\n```bash\nd\n```\n") == ["a", "b", "d"]


def test_scripts_are_valid_bash():
    """Every shell script parses."""
    for path in [ROOT / ".ci" / "run", *(ROOT / "data_scripts").glob("*")]:
        if path.is_file() and re.match(r"#!.*\bbash\b", path.read_text(encoding="utf-8").split("\n", 1)[0]):
            assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


def test_code_style():
    """ruff finds nothing."""
    result = ruff("tests", "data_scripts", "setup.py", "wsss_nb")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("source, rule", [("import os\n", "F401"), ("def f():\n    return missing\n", "F821"), ("x = = 1\n", "syntax")])
def test_code_style_can_fail(tmp_path, source, rule):
    """An unused import, a name that does not exist and a syntax error are found."""
    (tmp_path / "broken.py").write_text(source)
    result = ruff(tmp_path / "broken.py")
    assert result.returncode == 1 and rule in result.stdout


def test_package_facts_have_one_source():
    """pyproject.toml configures tools; name, version and requirements stand in settings.ini alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in project and set(project["tool"]) == {"pytest", "ruff"}
    assert settings()["update_pyproject"] == "False"      # nbdev would write a [project] table


def test_developers_get_every_extra():
    """`pip install '.[dev]'` brings what all the other extras bring, as the installed package's own metadata says."""
    from importlib.metadata import requires
    extras = {key.removesuffix("_requirements"): value.split() for key, value in settings().items() if key.endswith("_requirements")}
    brought = {re.split(r"[<>=~! ;]", line)[0].lower() for line in requires("wsss_nb") if re.search(r"extra == ['\"]dev['\"]", line)}
    assert {re.split(r"[<>=~!]", r)[0].lower() for requirements in extras.values() for r in requirements} <= brought
