"""The package's folders import in one direction, and it shows its public names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import s2dlib

PACKAGE = Path(s2dlib.__file__).parent
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
# What each folder may import from, besides itself; "" is the top, the method.
BELOW = {
    "kernels": set(),
    "backbones": set(),
    "hub": {"", "backbones"},
    "": {"kernels", "backbones", "hub"},
    "data": {""},
    "training": {"", "kernels", "backbones", "data"},
    "report": {"", "kernels", "backbones", "data", "training"},
    "apps": {"", "kernels", "backbones", "data", "training", "report"},
}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s2dlib":
            base = node.module.removeprefix("s2dlib").lstrip(".")
            inner = {f"{base}.{a.name}".lstrip(".") for a in node.names}
            found |= {name if name in MODULES else base for name in inner}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("s2dlib.") for a in node.names if "s2dlib." in a.name}
    return found


def folder(module: str) -> str:
    return module.rpartition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__init__", "__main__"}))
def test_imports_run_in_one_direction(module):
    for other in imports(MODULES[module]) & MODULES.keys():
        allowed = BELOW[folder(module)] | {folder(module)}
        assert folder(other) in allowed, f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    arrows = {m: imports(p) & MODULES.keys() - {m} for m, p in MODULES.items()}
    while leaves := [m for m, to in arrows.items() if not to & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, f"among these is a circle: {sorted(arrows)}"


def test_public_names_are_shown_and_each_is_there():
    assert set(s2dlib.__all__) <= set(dir(s2dlib))
    names = {
        *("S2DNet", "SNet", "DNet", "DetailSampler", "UniformSampler", "Theta", "Output"),
        *("ModelConfig", "PRESETS", "VARIANTS", "build_model", "s2d_loss", "evaluate", "fit"),
        *("load_clip", "VideoDataset", "load_views"),
    }
    assert names == set(s2dlib.__all__)
    assert all(getattr(s2dlib, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        s2dlib.nothing  # noqa: B018


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_keep_to_their_limits_of_length(module):
    text = MODULES[module].read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert len(text.splitlines()) <= 350
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: n for name, n in lengths.items() if n > 50} == {}


def test_the_method_keeps_to_its_limit_of_length():
    top = [path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert sum(len(path.read_text().splitlines()) for path in top) <= 1300
