"""Fixtures every test may ask for."""
import os
from pathlib import Path

import pytest
from hypothesis import settings

# no test asserts a time, and CI tries the same examples each time
settings.register_profile("course", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("course")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with small pieces of the real data sets; the test is skipped where nobody named one."""
    folder = os.environ.get("WSSS_NB_DATA")
    if not folder:
        pytest.skip("WSSS_NB_DATA is not set: it names the folder with voc12/, coco_sample/ and coco14/ (see CONTRIBUTING.md)")
    if not Path(folder).is_dir():
        pytest.fail(f"WSSS_NB_DATA names {folder}, which is no folder; unset it to skip the tests on real data")
    return Path(folder)


@pytest.fixture(scope="session")
def toyvoc(tmp_path_factory) -> Path:
    """A small ToyVOC, drawn once for all tests: read it, never write into it."""
    from wsss_nb.toyvoc import make_toyvoc
    folder = tmp_path_factory.mktemp("data") / "toyvoc"
    make_toyvoc(folder, n_train=24, n_val=12, seed=0)
    return folder


@pytest.fixture(scope="session")
def few(toyvoc, tmp_path_factory) -> Path:
    """The same with sixteen pictures to learn from, a batch of the classifier, and three to be scored on: for methods whose cues take time."""
    import shutil
    folder = Path(shutil.copytree(toyvoc, tmp_path_factory.mktemp("data") / "few"))
    for split, n in (("train", 16), ("val", 3)):
        path = folder / f"ImageSets/Segmentation/{split}.txt"
        path.write_text("\n".join(path.read_text().split()[:n]) + "\n")
    return folder


@pytest.fixture(scope="session")
def wst_run(few, tmp_path_factory) -> Path:
    """A tiny run of WST, twelve seeds a picture, made once: read it; copy it where a test changes it."""
    from run_toy import WST, light_up, tiny

    from wsss_nb.stages import classify, prepare, run_all
    config, run = tiny(few, "wst/toy", *WST), tmp_path_factory.mktemp("runs") / "wst"
    prepare(config, run)
    classify(config, run)
    light_up(run)
    run_all(config, run)
    return run


@pytest.fixture(scope="session")
def finished_run(toyvoc, tmp_path_factory) -> Path:
    """A tiny run of DSRG with all its stages done, made once for all tests: read it; copy it where a test changes it."""
    from run_toy import tiny

    from wsss_nb.stages import run_all
    run = tmp_path_factory.mktemp("runs") / "finished"
    run_all(tiny(toyvoc), run)
    return run


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine that is told what to do; where a proxy is set, it is not behind it."""
    from file_server import file_server
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with file_server() as opened:
        yield opened
