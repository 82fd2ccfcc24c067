"""The book: `make book` turns README, docs/, the executed notebooks and the docstrings into a site.

The source folder is the repository's root, so that every page has the address of its file and
every relative link holds. Nothing is executed and nothing is loaded from the network.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # extension.py

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "s2dlib"
EXECUTED, STRIPPED = ROOT / "results" / "notebooks", ROOT / "notebooks"

project = author = "S2DNet notebooks"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
html_title = f"{project} {version}"
root_doc = "docs/index"
extensions = [f"sphinx.ext.{name}" for name in ("autodoc", "napoleon", "viewcode")]
extensions += ["myst_nb", "extension"]

# A notebook is its executed copy where there is one. Of other data sets than the built-in one only
# what shows no frame of a video: some videos are their owners'.
executed = list(EXECUTED.glob("*.ipynb"))
names = {path.name for path in executed}
others = [p for name in ("04_table2", "09_looking") for p in EXECUTED.glob(f"*/{name}.ipynb")]
notebooks = executed + [p for p in STRIPPED.glob("*.ipynb") if p.name not in names]
pages = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
pages += [*(ROOT / "docs").rglob("*.md"), *notebooks, *others]
pages += [p / "README.md" for p in (ROOT / "data", ROOT / "results", STRIPPED)]
include_patterns = [path.relative_to(ROOT).as_posix() for path in pages]
walked = {"docs", "notebooks", "results", "results/notebooks", "data"}  # videos lie in the others
exclude_patterns = [
    name
    for top in (ROOT, ROOT / "results", ROOT / "data")
    for name in (path.relative_to(ROOT).as_posix() for path in top.iterdir() if path.is_dir())
    if name not in walked
]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from another host, and no kernel answers here
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True  # as written: a value may hold a path of this machine
autodoc_mock_imports = [] if importlib.util.find_spec("triton") else ["triton"]
maximum_signature_line_length = 80

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False


def find_targets() -> dict[str, tuple[str, str, str]]:
    """What a text may call a page or a module, and the domain, role and target of its link."""
    named = {path: path.relative_to(ROOT).as_posix() for path in pages}
    targets = {name: ("std", "doc", f"/{name.rpartition('.')[0]}") for name in named.values()}
    for path in notebooks:
        page = targets[named[path]]
        targets |= {path.stem: page, f"notebooks/{path.name}": page}
    for path in (ROOT / "results" / "tables").glob("table[1-4]*.md"):
        page = f"/docs/paper/{path.stem[:6]}"
        targets[path.relative_to(ROOT).as_posix()] = ("std", "doc", page)
    modules = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    files = [path.name for path in modules]
    for path in modules:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for base in (ROOT, PACKAGE, *([path.parent] if files.count(path.name) == 1 else [])):
            targets[path.relative_to(base).as_posix()] = ("py", "mod", module)
    return targets


link_targets = find_targets()


def write_parts(app: Sphinx, docname: str, source: list[str]) -> None:
    """What files say of themselves: lists of notebooks and of modules, and a notebook's data."""
    folder = PACKAGE / docname.removeprefix("docs/api/")
    if docname == root_doc:
        found = [*sorted(notebooks, key=lambda path: path.stem), *sorted(others)]
        lines = [f"/{path.relative_to(ROOT).with_suffix('')}" for path in found]
        source[0] = source[0].replace("(every notebook)", "\n".join(lines))
    elif docname.startswith("docs/api/") and folder.is_dir():
        for path in sorted(folder.glob("[!_]*.py")):
            module = f"s2dlib.{folder.name}.{path.stem}"
            source[0] += f"\n## {folder.name}.{path.stem}\n\n"
            source[0] += f"```{{eval-rst}}\n.. automodule:: {module}\n```\n"
    elif ROOT / f"{docname}.ipynb" in others:
        preset = docname.split("/")[-2]
        source[0] = re.sub(r'("# [^"\\]*)', rf"\1 ({preset})", source[0], count=1)


def write_entry(app: Sphinx, error: Exception | None) -> None:
    """A host shows index.html of the top folder: it leads to the front page."""
    page = f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
    page += f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
    (Path(app.outdir) / "index.html").write_text(page + f'<a href="{root_doc}.html">{project}</a>')


def setup(app: Sphinx) -> None:
    app.connect("source-read", write_parts)
    app.connect("build-finished", write_entry)
