"""What the documentation promises about itself: examples that run, figures that agree."""

import inspect
import re
from pathlib import Path

import pytest

import sktorch_linreg
from sktorch_linreg import distributed, interop

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# blocks that are not run: no Python, or code for packages that the tests do not install
OTHER = {"sh", "{toctree}", "text", "py"}


def public_objects():
    """Classes, functions and methods that are ours and that a user may call."""
    spaces = [(sktorch_linreg, sktorch_linreg.__all__)]
    spaces += [
        (interop, ["to_onnx", "register_onnx_converters"]),
        (distributed, distributed.__all__),
    ]
    for space, names in spaces:
        for name in names:
            found = getattr(space, name)
            if not callable(found):
                continue
            yield name, found
            if not inspect.isclass(found):
                continue
            for method, _ in inspect.getmembers(found, callable):
                owners = [c for c in found.__mro__ if method in vars(c)]
                ours = owners[0].__module__.startswith("sktorch_linreg")
                if ours and not method.startswith("_") and not method.startswith("set_"):
                    yield f"{name}.{method}", getattr(found, method)


OBJECTS = dict(public_objects())


@pytest.mark.parametrize("name", OBJECTS)
def test_everything_public_has_an_example(name):
    doc = inspect.getdoc(OBJECTS[name]) or ""
    if ".from_" in name:
        # what a display is made by is shown where it is described
        cls, _, method = name.partition(".")
        assert f"{cls}.{method}(" in inspect.getdoc(OBJECTS[cls])
        return
    assert re.search(r"^Examples\n-+\n(.*\n)*>>> ", doc, flags=re.M), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_python_is_a_doctest(page):
    text = page.read_text()
    for language, body in re.findall(r"^```(\S*)\n(.*?)^```$", text, flags=re.M | re.S):
        if language not in OTHER:
            assert language == "python", (language, body)
            assert body.startswith(">>> "), body


def rows(page):
    return {
        re.sub(r"\[([\d.]+)\]\([^)]*\)", r"\1", line)
        for line in page.read_text().splitlines()
        if line.startswith("| ") and "times faster" not in line
    }


def test_figures_of_the_readme_are_those_of_the_benchmarks_page():
    text = (ROOT / "README.md").read_text()
    begin = text.index("## Measured")
    table = text[begin : text.index("## Limitations", begin)]
    lines = [re.sub(r"\[([\d.]+)\]\([^)]*\)", r"\1", line) for line in table.splitlines()]
    figures = [line for line in lines if line.startswith("| ") and "times faster" not in line]
    assert len(figures) >= 6
    assert set(figures) <= rows(ROOT / "docs" / "benchmarks.md")


def test_every_page_is_reached_from_the_index():
    reached, left = set(), {"index"}
    while left:
        page = left.pop()
        reached.add(page)
        text = (ROOT / "docs" / f"{page}.md").read_text()
        for tree in re.findall(r"^```{toctree}\n(.*?)^```$", text, flags=re.M | re.S):
            names = re.findall(r"^(?:.*<)?(\w+)>?$", tree, flags=re.M)
            left |= {n for n in names if (ROOT / "docs" / f"{n}.md").exists()} - reached
    assert reached == {p.stem for p in (ROOT / "docs").glob("*.md")}
