"""Packaging: every fact is read from settings.ini, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser()
config.read(HERE / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

extras = {key.removesuffix("_requirements"): value.split()
          for key, value in settings.items() if key.endswith("_requirements")}
# developers get every optional part: the tests use each of them
extras["dev"] = [requirement for requirements in extras.values() for requirement in requirements]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    packages=find_packages(include=["wsss_nb", "wsss_nb.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split(),
                  "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"]},
    zip_safe=False,
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Science/Research",
                 "Topic :: Scientific/Engineering :: Image Recognition"],
)
