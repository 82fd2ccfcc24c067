"""What the book adds to Sphinx: links from file to file, docstrings as they are written here."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
ANNOTATED = re.compile(  # Annotated[a type, a call as FieldInfo(..., metadata=[Ge(ge=1)])]
    r"~?(?:typing\.)?Annotated\[((?:(?!Annotated)[\w\[\]., ~])+?), "
    r"[\w.~]+\((?:[^()]|\([^()]*\))*\)\]"
)


class LinkFiles(SphinxTransform):
    """Links to files, and names as `04_table2` or `sampler.py`, lead to their pages.

    A file that is no page of the book comes along as it is; a link to a folder becomes its text.
    """

    default_priority = 400

    def apply(self) -> None:
        targets = self.config.link_targets
        for node in list(self.document.findall(nodes.literal)):
            inside = isinstance(node.parent, nodes.reference | addnodes.pending_xref)
            if node.astext() in targets and not inside:
                node.replace_self(self.reference(targets[node.astext()], node.deepcopy()))
        for node in list(self.document.findall(self.is_link_to_file)):
            path = self.path(node)
            name = path.relative_to(ROOT).as_posix()
            if name in targets:
                node.replace_self(self.reference(targets[name], *node.children))
            elif path.is_file():
                place = {"refdoc": self.env.docname, "reftarget": f"/{name}"}
                node.replace_self(addnodes.download_reference("", "", *node.children, **place))
            elif path.is_dir():
                node.replace_self(node.children)

    def is_link_to_file(self, node: nodes.Node) -> bool:
        if isinstance(node, addnodes.pending_xref) and node.get("reftype") == "myst":
            target = node["reftarget"]  # without a slash, perhaps a heading: #data
            named = node.get("refdomain") == "doc" or "/" in target
            return named and target not in self.env.found_docs and self.path(node).exists()
        return isinstance(node, addnodes.download_reference)

    def path(self, node: nodes.Element) -> Path:
        if node.get("refdomain") == "doc":  # a page's name, seen from the root
            paths = (ROOT / f"{node['reftarget']}{suffix}" for suffix in (".md", ".ipynb"))
            return next((path for path in paths if path.is_file()), ROOT / node["reftarget"])
        folder = (ROOT / self.env.docname).parent
        if folder.is_relative_to(ROOT / "results" / "notebooks"):  # a copy of one that lies there
            folder = ROOT / "notebooks"
        return folder.joinpath(node["reftarget"]).resolve()

    def reference(self, to: tuple[str, str, str], *shown: nodes.Node) -> nodes.Element:
        place = {"refdoc": self.env.docname, "refexplicit": True, "refwarn": True}
        domain, role, target = to
        return addnodes.pending_xref(
            "", *shown, refdomain=domain, reftype=role, reftarget=target, **place
        )


def escape(text: str) -> str:
    """Letters of formulas, as |a - b| or x_, that would be markup; `code` stays."""
    return re.sub(r"(`[^`]*`)|([*|\\]|_(?!\w))", lambda m: m[1] or f"\\{m[2]}", text)


def escape_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    lines[:] = map(escape, lines)


def add_fields(
    app: Sphinx, what: str, name: str, thing: type, options: object, lines: list[str]
) -> None:
    """A dataclass's fields are told by the comments beside and above them."""
    if what != "class" or not hasattr(thing, "__dataclass_fields__"):
        return
    above: list[str] = []
    for line in inspect.getsource(thing).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
        elif field := re.fullmatch(r"    (\w+): [^#]*(?:# (.*))?", line):
            text = escape(" ".join([*above, field[2] or ""]))
            lines += ["", f":param {field[1]}: {text}"]
            above = []
    lines.append("")


def visit_math(self: HTML5Translator, node: nodes.Element) -> None:
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def plain_types(
    app: Sphinx, what: str, name: str, thing: object, options: object, *signature: str | None
) -> tuple[str | None, ...]:
    """Annotated[int, ...] is int, in arguments and result: its checks would fill the page."""
    plain = []
    for text in signature:
        while text and (inner := ANNOTATED.sub(r"\1", text)) != text:
            text = inner
        plain.append(text)
    return tuple(plain)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("link_targets", {}, "env")  # conf.py
    app.add_transform(LinkFiles)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", add_fields, priority=600)
    app.connect("autodoc-process-signature", plain_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
