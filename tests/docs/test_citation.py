"""CITATION.cff: what the format (1.2.0) demands, and the same facts as the package and the README give."""

from __future__ import annotations

import re

import yaml
from fenced import ROOT

from unidetox_ray import __version__


def test_it_names_this_version_and_its_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["message"]
    assert cited["version"] == __version__ and cited["title"] and cited["authors"]
    assert (
        cited["license"] == re.search(r'^license = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    )


def test_the_paper_is_cited_as_in_the_readme():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    entry = (ROOT / "README.md").read_text(encoding="utf-8").partition("@inproceedings")[2]
    assert f"{{{paper['title']}}}" in entry and f"{{{paper['year']}}}" in entry
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"{{{authors}}}" in entry
    assert paper["identifiers"][0]["value"] in entry and paper["type"] == "conference-paper"
