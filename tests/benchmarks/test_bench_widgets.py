"""How long after a slider is let go does the new picture stand? Asserts no time.

    pytest -n 0 -s tests/benchmarks/test_bench_widgets.py
    python tests/benchmarks/test_bench_widgets.py 14a_cues 30_growing

Every lesson is run to its widgets. Each widget then gets settings drawn between the ends of its sliders, and what it draws is
rendered as JupyterLab's inline figures are. What the browser and the wire take comes on top.
"""
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooks import NBS, read_lesson, settings  # noqa: E402

LESSONS = ("13e_crf", "14a_cues", "30_growing", "31_graphcut", "32_wst", "34c_assignment")   # those of the design with a slider
DRAWS = 12


def ends(slider) -> tuple[float, float, bool]:
    "Smallest and largest value, and whether only whole numbers are meant; of a widget, or of interact's short form."
    low, high = (slider[0], slider[1]) if isinstance(slider, tuple) else (slider.min, slider.max)
    return low, high, isinstance(low, int) and isinstance(high, int)


def draw_time(function, values: dict) -> float:
    "Seconds of one answer, rendered."
    import matplotlib.pyplot as plt

    start = time.perf_counter()
    function(**values)
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), format="png", bbox_inches="tight")
    plt.close("all")
    return time.perf_counter() - start


def time_widget(function, sliders: dict) -> np.ndarray: # (DRAWS,) seconds
    "Settings drawn evenly; the first answer, which compiles and fills caches, is not counted."
    rng = np.random.default_rng(0)
    bounds = {name: ends(slider) for name, slider in sliders.items()}
    drawn = [{name: int(rng.integers(low, high + 1)) if whole else float(rng.uniform(low, high)) for name, (low, high, whole) in bounds.items()} for _ in range(DRAWS + 1)]
    return np.array([draw_time(function, values) for values in drawn])[1:]


def widgets_of(name: str) -> list[tuple[str, np.ndarray]]: # name of the function -> seconds
    "Run a lesson as far as its last widget."
    import ipywidgets
    import matplotlib
    from IPython.core.interactiveshell import InteractiveShell

    matplotlib.use("Agg")
    found, flags = [], set(settings()["tst_flags"].split()) - {"notest"}   # cells that tests leave out because they wait for a hand
    shown = lambda function, **sliders: found.append((function.__name__, time_widget(function, sliders)))
    ipywidgets.interact = shown
    os.chdir(NBS)
    shell, cells = InteractiveShell(), [cell for cell in read_lesson(NBS / f"{name}.ipynb").code if not cell.skipped(flags)]
    last = max(k for k, cell in enumerate(cells) if "interact(" in cell.source)
    for cell in cells[:last + 1]:
        shell.run_cell(cell.source).raise_error()
    return found


@pytest.mark.parametrize("name", LESSONS)
def test_widget_answers(name):
    """Every lesson of the list has a widget that draws; the times are printed."""
    found = widgets_of(name)
    assert found
    for title, seconds in found:
        print(f"\n{name:16}{title:16}median {1000 * np.median(seconds):5.0f} ms, slowest of {DRAWS} {1000 * seconds.max():5.0f} ms")


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-s", "-n", "0", __file__, "-k", " or ".join(sys.argv[1:]) or "widget"]))
