"""The map in docs/architecture.md, kept true: imports go down only, and files stay small."""

import ast
import re
from pathlib import Path

import pytest

import sktorch_linreg

PACKAGE = Path(sktorch_linreg.__file__).parent
MAP = Path(__file__).parents[1] / "docs" / "architecture.md"
# only these may import the package named
PRIVILEGED = {"skorch": {"_net"}, "matplotlib": {"_figures"}}


def layers_of_the_map():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", MAP.read_text(), flags=re.M)
    return {name: int(layer) for layer, cell in rows for name in re.findall(r"`(\w+)\.py`", cell)}


LAYERS = layers_of_the_map()
FILES = sorted(p.stem for p in PACKAGE.glob("*.py"))


def imported(stem):
    """Names of own modules, and of top-level packages, that a file imports anywhere."""
    own, other = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{stem}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            own |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


def test_the_map_lists_every_file():
    assert sorted(LAYERS) == FILES


@pytest.mark.parametrize("stem", FILES)
def test_imports_go_down_only(stem):
    own, _ = imported(stem)
    assert {name: LAYERS[name] for name in own if LAYERS[name] >= LAYERS[stem]} == {}


@pytest.mark.parametrize("stem", FILES)
def test_only_the_named_files_import_optional_or_wrapped_packages(stem):
    _, other = imported(stem)
    for package, allowed in PRIVILEGED.items():
        assert package not in other or stem in allowed


@pytest.mark.parametrize("stem", FILES)
def test_private_scikit_learn_helpers_stay_in_one_file(stem):
    text = (PACKAGE / f"{stem}.py").read_text()
    private = re.findall(
        r"^from sklearn[\w.]*\._?\w* import .*\b_\w+|^from sklearn\S*\._\w+", text, re.M
    )
    assert private == [] or stem == "_compat"


@pytest.mark.parametrize("stem", FILES)
def test_files_and_functions_stay_small(stem):
    text = (PACKAGE / f"{stem}.py").read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""
            assert node.end_lineno - node.lineno - doc.count("\n") <= 60, node.name
