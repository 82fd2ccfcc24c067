"""The book: it builds without a warning, its links lead somewhere, and a browser shows it whole."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from bs4 import BeautifulSoup
from test_inspector import ARGUMENTS, CHROMIUM
from test_layout import MODULES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
FRONT = "docs/index.html"
EQUATIONS = (  # of the paper, 1 to 12
    *("synopsis.SNet.forward", "synopsis.topk_mask", "losses.synopsis_loss"),
    *("synopsis.ThetaHead", "synopsis.ContextHead", "sampler.grid_centres"),
    *("sampler.gaussian_filters", "detail.DNet.forward", "detail.LateralFusion"),
    *("detail.DNet.forward", "losses.detail_loss", "losses.s2d_loss"),
)
PAPER = [f"docs/paper/{kind}{n}.html" for kind in ("figure", "table") for n in range(1, 5)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    command += ["--conf-dir", "docs", "--doctree-dir", folder / "doctrees", ".", folder / "html"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    """Each page of the site by its path, parsed; not the listings of modules."""
    paths = [path for path in site.rglob("*.html") if "_modules" not in path.parts]
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(), "html.parser")
        for path in paths
    }


def links(page, tag="a", attribute="href"):
    """What a page names: paths seen from the top of the site, with their anchors; addresses."""
    name, soup = page
    for element in soup.find_all(tag, attrs={attribute: True}):
        target, anchor = urldefrag(element[attribute].split("?v=")[0])
        if urlparse(target).scheme or target.startswith("//"):
            yield target, ""
        elif target or anchor:
            path = os.path.normpath(os.path.join(os.path.dirname(name), unquote(target)))
            yield path if target else name, unquote(anchor)


def content_links(pages, name):
    """Of the page itself, not of the menus around it."""
    return set(links((name, pages[name].find("article"))))


def test_every_link_leads_to_a_file_and_every_anchor_to_its_place(site, pages):
    anchors = {
        name: {element["id"] for element in soup.find_all(id=True)} for name, soup in pages.items()
    }
    n_links = 0
    for page in pages.items():
        for target, anchor in {*links(page), *links(page, "img", "src")}:
            if not urlparse(target).scheme:
                assert (site / target).is_file(), (page[0], target)
                known = not anchor or target not in pages or anchor in anchors[target]
                assert known, (page[0], target, anchor)
                n_links += 1
    assert n_links > 1000


def test_nothing_is_loaded_from_another_host(site, pages):
    for page in pages.items():
        for target, _ in (*links(page, "link"), *links(page, tag=True, attribute="src")):
            assert (site / target).is_file() or target.startswith("data:"), (page[0], target)
    for path in site.rglob("*.css"):
        style = path.read_text().replace(" ", "")
        assert "url(http" not in style and "url(//" not in style and "@import" not in style, path


def test_no_page_names_a_folder_of_this_machine(site):
    folders = (str(ROOT), str(site.parent), sys.prefix)
    files = [*site.rglob("*.html"), *site.rglob("*.js")]
    assert len(files) > 100
    for path in files:
        text = path.read_text()
        assert not any(folder in text for folder in folders), path


def test_front_page_leads_to_each_equation_figure_and_table_in_two_steps(pages):
    first = content_links(pages, FRONT)
    second = first.union(*(content_links(pages, name) for name, _ in first if name in pages))
    anchors = {anchor for _, anchor in second}
    for number, name in enumerate(EQUATIONS, start=1):
        assert f"s2dlib.{name}" in anchors, f"Eq. {number}"
    assert {(name, "") for name in PAPER} <= first


@pytest.mark.parametrize("name", PAPER)
def test_page_of_a_figure_or_table_leads_to_notebook_code_and_result(pages, name):
    found = content_links(pages, name)
    assert any(target.split("/")[-2:-1] == ["notebooks"] for target, _ in found)
    assert any(target.startswith("docs/api/") and anchor for target, anchor in found)
    results = set(links((name, pages[name].find("article")), "img", "src"))
    results |= {(target, "") for target, _ in found if target.endswith(".csv")}
    assert results and ("figure" in name or pages[name].find("article").find("table"))


def test_every_module_and_every_notebook_has_its_page(site, pages):
    text = {name: soup.find("article") for name, soup in pages.items() if "/api/" in name}
    places = {e["id"] for article in text.values() for e in article.find_all(id=True)}
    modules = {name for name in MODULES if not name.split(".")[-1].startswith("__")}
    assert {f"module-s2dlib.{name}" for name in modules} <= places
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        executed = site / "results" / "notebooks" / f"{path.stem}.html"
        assert executed.is_file() != (site / "notebooks" / f"{path.stem}.html").is_file()
        assert executed.is_file() == (ROOT / "results" / "notebooks" / path.name).is_file()
    inspector = pages["results/notebooks/08_inspector.html"].find("article")
    assert len(inspector.find_all("img")) >= 2


@pytest.fixture(scope="module")
def address(site):
    """The site as any static host shows it."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this system")
def test_pages_fit_a_phone_and_a_desk_and_search_finds_the_sampler(address):
    sync_api = pytest.importorskip("playwright.sync_api")
    shown = (FRONT, "results/notebooks/04_table2.html", "docs/api/method.html", PAPER[-1])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            for name in shown:
                page.goto(f"{address}/{name}")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.goto(address)
        page.wait_for_url(f"{address}/{FRONT}")  # where index.html leads
        page.goto(f"{address}/search.html?q=gaussian_filters")
        page.get_by_role("link", name="s2dlib.sampler.gaussian_filters").click()
        assert page.url.endswith("docs/api/method.html#s2dlib.sampler.gaussian_filters")
        assert all(url.startswith((address, "data:")) for url in requests)
        browser.close()
