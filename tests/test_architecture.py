"""The three rules of docs/architecture.md, read off the folders."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sktorch_linreg

PACKAGE = Path(sktorch_linreg.__file__).parent
MAP = Path(__file__).parents[1] / "docs" / "architecture.md"
# the only file that may import a package
WRAPPED = {"skorch": "_training/skorch_net.py", "matplotlib": "displays/axes.py"}
SKLEARN_PRIVATE = "_runtime/sklearn_private.py"

FILES = sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py"))


def entries_of_the_map():
    """What the table of the map names, by its row, the lowest first."""
    rows = re.findall(r"^\| (`[^|]*?) \|", MAP.read_text(), flags=re.M)
    return {
        name: level
        for level, cell in enumerate(reversed(rows))
        for name in re.findall(r"`(\w+)(?:\.py|/)`", cell)
    }


LEVELS = entries_of_the_map()


def entry_of(file):
    """The package or module of a file, as in the map."""
    return Path(file).parts[0].removesuffix(".py")


def as_file(module):
    """The file of a dotted module of this package, None where there is no such module."""
    path = module.replace(".", "/")
    known = [f for f in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if f in FILES]
    return known[0] if known else None


def imported(file):
    """Files of this package, and statements on other packages, that a file imports anywhere."""
    own, others = set(), []
    here = Path(file).parts[:-1]
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            others += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1]
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                # a module of the folder, or a name in a module
                own.add(as_file(f"{module}.{alias.name}".lstrip(".")) or as_file(module))
    return own, others


def test_the_map_names_what_is_in_the_folder():
    found = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    }
    assert found - {"__init__"} == set(LEVELS)


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_the_map(file):
    mine = entry_of(file)
    # the public names stand above all
    top = len(LEVELS)
    upwards = {
        other
        for other in imported(file)[0]
        if (entry := entry_of(other)) != mine and LEVELS.get(entry, top) >= LEVELS.get(mine, top)
    }
    assert upwards == set()


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter({file: imported(file)[0] - {file} for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"These files import each other in a circle: {error.args[1]}")


@pytest.mark.parametrize("file", FILES)
def test_some_packages_are_imported_in_one_file_only(file):
    packages = {name.split(".")[0] for name in imported(file)[1]}
    assert {name for name, home in WRAPPED.items() if name in packages and file != home} == set()


@pytest.mark.parametrize("file", FILES)
def test_what_scikit_learn_keeps_private_is_imported_in_one_file_only(file):
    private = [name for name in imported(file)[1] if name.startswith("sklearn.") and "._" in name]
    assert private == [] or file == SKLEARN_PRIVATE
