"""The inspector: sliders move theta, picture and verdict follow; also in a real browser."""

import base64
import html
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import psutil
import pytest
import torch
from ipykernel.kernelspec import write_kernel_spec
from torch.testing import assert_close

from s2dlib.apps.inspector import SLIDERS, Inspector, find_csv, find_runs
from s2dlib.data.synthetic import class_names
from s2dlib.model import build_model

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "08_inspector.ipynb"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
TOKEN = "inspector"
ARGUMENTS = (  # no sandbox, since CI is root in a container; no calls home
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture
def inspector(runs):
    return Inspector(runs, clip=3)


def theta_of(inspector):
    return {name: getattr(inspector.out.theta, name)[0] for name in SLIDERS}


def test_inspector_starts_with_the_models_output(inspector, runs):
    assert [Path(path).name for path in inspector.run.options.values()] == [
        "synthetic-a0-0",
        "synthetic-b3-0",
    ]
    with torch.no_grad():
        out = inspector.model(inspector.dataset[3]["frames"][None])
    assert torch.equal(inspector.out.scores, out.scores)
    for name, value in theta_of(inspector).items():
        assert inspector.sliders[name].value == pytest.approx(value.mean().item())
        assert not inspector.sliders[name].continuous_update
    state = json.loads(json.dumps(inspector.state))
    assert (state["run"], state["clip"]) == ("runs/synthetic-a0-0", 3)
    assert state["verdict"] == state["own"] == class_names()[int(out.scores.argmax())]
    assert len(state["scores"]) == 5
    for image in (inspector.picture, inspector.frame):
        assert bytes(image.value).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name,value", [("mu_t", 0.2), ("delta_t", 1.5), ("mu_x", 0.7), ("delta_y", 1.25)]
)
def test_slider_moves_theta_and_dnet_follows(inspector, name, value):
    own, picture, frame = theta_of(inspector), inspector.picture.value, inspector.frame.value
    inspector.sliders[name].value = value
    theta = theta_of(inspector)
    assert theta[name].mean().item() == pytest.approx(value)
    assert all(torch.equal(theta[other], own[other]) for other in SLIDERS if other != name)
    with torch.no_grad():
        out = inspector.model(inspector.frames, theta=inspector.out.theta)
    assert torch.equal(inspector.out.scores, out.scores)
    assert torch.equal(inspector.out.detail_volume, out.detail_volume)
    assert inspector.picture.value != picture and inspector.frame.value != frame
    assert f"with SNet's own theta: {inspector.state['own']}" in html.unescape(
        inspector.verdict.value
    )


def test_sliders_in_space_move_all_detail_frames_alike(inspector):
    inspector.own.theta.mu_y[0] = torch.linspace(0.3, 0.6, 8)
    inspector.own.theta.delta_x[0] = torch.linspace(1.0, 2.0, 8)
    inspector.move(mu_y=0.7, delta_x=3.0)
    theta = theta_of(inspector)
    assert_close(theta["mu_y"], torch.linspace(0.55, 0.85, 8))
    assert_close(theta["delta_x"], torch.linspace(2.0, 4.0, 8))


def test_pictures_are_described_for_a_screen_reader(inspector):
    inspector.move(mu_t=0.25, delta_t=2.0, mu_y=0.5, delta_y=1.0, mu_x=0.25, delta_x=2.0)
    assert inspector.caption.value == (
        "Fig. 4 of clip 3: 8 detail frames around frame 12.0 of 48, 2.0 frames apart; each shows "
        "20 x 40 pixels around row 32 of 64 and column 16 of 64"
    )


def test_reset_button_restores_theta(inspector):
    own, state, picture = theta_of(inspector), inspector.state, inspector.picture.value
    inspector.move(mu_t=0.9, delta_t=1.0, mu_y=0.1, delta_x=2.0)
    assert inspector.state != state
    inspector.reset_button.click()
    assert all(torch.equal(value, own[name]) for name, value in theta_of(inspector).items())
    assert inspector.state == state and inspector.picture.value == picture
    assert inspector.sliders["mu_y"].value == pytest.approx(own["mu_y"].mean().item())


def test_truth_button_draws(inspector):
    t = inspector.dataset[3]["truth"][0].item()
    inspector.move(mu_t=t / 48)
    picture, frame = inspector.picture.value, inspector.frame.value
    assert not inspector.truth.disabled
    inspector.z.value = 3  # half a stride from the middle
    inspector.truth.value = True
    assert inspector.picture.value != picture and inspector.frame.value != frame
    inspector.truth.value = False
    assert inspector.picture.value == picture


def test_truth_known_in_time_alone_is_drawn_on_the_axis_of_time_alone(inspector):
    picture, frame = inspector.picture.value, inspector.frame.value
    inspector.truth.value = True
    with_place = inspector.picture.value
    inspector._truth = inspector._truth[:2]
    inspector.truth.value = False
    inspector.truth.value = True
    assert inspector.picture.value not in (picture, with_place) and inspector.frame.value == frame


def test_truth_button_is_off_without_truth(runs, csv, tmp_path):
    lines = Path(csv).read_text().splitlines()
    plain = [",".join(line.split(",")[:4]) for line in lines]
    folder = Path(csv).parent
    rows = [f"{folder}/{line}" if n else line for n, line in enumerate(plain)]
    (tmp_path / "plain.csv").write_text("\n".join(rows))
    inspector = Inspector([runs], str(tmp_path / "plain.csv"), split="val")
    assert inspector.truth.disabled and inspector.state["true"] in class_names()


def test_detail_frames_are_shown_one_by_one(inspector):
    assert (inspector.z.max, inspector.play.max) == (7, 7)
    state, pictures = inspector.state, set()
    for z in range(8):
        inspector.z.value = z
        pictures.add(bytes(inspector.frame.value))
    assert len(pictures) == 8 and inspector.state == state


def test_another_clip_and_another_run_start_at_their_own_theta(inspector):
    inspector.move(mu_t=0.1)
    inspector.clip.value = 5
    assert inspector.state["clip"] == 5 and inspector.state["theta"]["mu_t"] != 0.1
    inspector.run.value = inspector.run.options["runs/synthetic-b3-0"]
    assert inspector.state["run"] == "runs/synthetic-b3-0" and inspector.state["clip"] == 5
    assert inspector.state["theta"]["mu_t"] == 0.5  # frozen
    inspector.move(mu_t=0.3)
    assert inspector.state["theta"]["mu_t"] == pytest.approx(0.3)


def test_no_figure_stays_open(inspector):
    plt.close("all")
    inspector.move(mu_t=0.3)
    inspector.z.value = 1
    assert plt.get_fignums() == []
    inspector.figure()  # for a notebook's cell, which shows it
    assert len(plt.get_fignums()) == 1
    plt.close("all")


def test_clip_that_cannot_be_read_is_told(inspector, monkeypatch):
    paths = list(inspector.dataset._paths)
    paths[4] = "/nowhere/gone.mp4"
    monkeypatch.setattr(inspector.dataset, "_paths", paths)
    state = inspector.state
    inspector.clip.value = 4
    assert "gone.mp4" in inspector.verdict.value
    assert inspector.state == state and inspector.clip.value == 3


def test_move_and_clip_errors(inspector, runs):
    with pytest.raises(ValueError, match="theta has no 'mu_z'; it has mu_t, delta_t"):
        inspector.move(mu_z=0.5)
    with pytest.raises(ValueError, match=r"mu_t must lie in \[0.00, 1.00\], got 1.5"):
        inspector.move(mu_t=1.5)
    with pytest.raises(ValueError, match=r"clip must lie in \[0, 19\], got 20"):
        Inspector([runs], clip=20)


def test_find_runs_leaves_out_incomplete_runs(runs, csv, tmp_path):
    build_model("synthetic").save_pretrained(tmp_path / "runs" / "shared")
    for source, name in (("a0", "whole"), ("a0", "bare"), ("b3", "alone"), ("b3", "lost")):
        shutil.copytree(runs / f"synthetic-{source}-0", tmp_path / "runs" / name)
    (tmp_path / "runs" / "bare" / "model.safetensors").unlink()
    for name, part, changes in (("alone", "model", {"snet": None}), ("lost", "data", {"csv": "x"})):
        path = tmp_path / "runs" / name / "config.json"
        record = json.loads(path.read_text())
        record[part] |= changes
        path.write_text(json.dumps(record))
    assert list(find_runs([tmp_path / "nowhere", tmp_path / "runs"])) == ["runs/whole"]
    assert list(find_runs(str(tmp_path / "runs"), csv)) == ["runs/lost", "runs/whole"]
    shutil.rmtree(tmp_path / "runs" / "whole")
    with pytest.raises(FileNotFoundError) as error:
        find_runs([tmp_path / "runs"])
    for words in ("1 with no clips that", "1 with no config.json and", "1 with one network only"):
        assert words in str(error.value)
    assert "1 with no clips here" in str(error.value) and "make reproduce" in str(error.value)
    assert "s2d synthetic --share 0.01 --out data/demo" in str(error.value)


def test_no_runs_at_all_or_no_csv_is_an_error_with_the_command(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to inspect in .*make reproduce"):
        Inspector([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="mine.csv: no such file; a data set is a CSV"):
        Inspector([runs], str(tmp_path / "mine.csv"))


def test_clips_of_other_classes_are_an_error(runs, tmp_path, make_video):
    make_video(tmp_path / "a.mp4", n_frames=60)
    (tmp_path / "mine.csv").write_text("path,label,split\na.mp4,wave,test\n")
    words = "2 with other classes than those of .*mine.csv; choose the run's own data set"
    with pytest.raises(FileNotFoundError, match=words):
        Inspector([runs], str(tmp_path / "mine.csv"))


def test_csv_of_a_synthetic_model(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    record = {"model": {"snet": "tiny-s", "dnet": "tiny-d"}, "data": {"csv": "synthetic.csv"}}
    (tmp_path / "model.safetensors").touch()
    config = tmp_path / "config.json"
    config.write_text(json.dumps(record | {"classes": class_names()}))  # of a shared model
    with pytest.raises(ValueError, match="no clips here"):
        find_csv(tmp_path)
    for name in ("demo", "synthetic"):  # the better one comes later
        path = tmp_path / "data" / name / f"{name}.csv"
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_csv(tmp_path) == f"../data/{name}/{name}.csv"
    config.write_text(json.dumps(record | {"data": {"csv": "mine.csv"}, "classes": ["wave"]}))
    with pytest.raises(ValueError, match="no clips here"):
        find_csv(tmp_path)


@pytest.fixture
def lab(tmp_path, runs):
    """JupyterLab, serving a folder with the notebook and the runs beside it; its address."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOK, tmp_path / "notebooks")
    shutil.copytree(runs, tmp_path / "results" / "runs")
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    homes = {"JUPYTER_PATH": "", "IPYTHONDIR": "", "JUPYTER_CONFIG_DIR": "config"}
    homes |= {"JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    homes = {name: str(tmp_path / "jupyter" / folder) for name, folder in homes.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = os.environ | homes | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "lab.log", "w") as log:
        server = psutil.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api?token={TOKEN}", server, tmp_path / "lab.log")
        yield f"{address}/lab/tree/notebooks/{NOTEBOOK.name}?token={TOKEN}"
    finally:
        own = [server, *server.children(recursive=True)]  # kernels have sessions of their own
        server.terminate()
        _, alive = psutil.wait_procs(own, timeout=15)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive)


def _wait_for(url, server, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()}")


@pytest.fixture
def page():
    """A page of a headless Chromium, and what went wrong in it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; apt-get install chromium, as .ci/run does")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        yield page
        browser.close()
        assert errors == []


FETCH = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
}"""


@pytest.mark.slow
def test_inspector_in_jupyterlab(page, lab):
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("text=| Idle")  # of the status bar: the kernel is there
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    page.wait_for_selector(".s2d-line code")
    last = ".jp-OutputArea-output:has-text('when DNet looks elsewhere')"
    page.wait_for_selector(last, state="attached")  # no cell moves theta any more

    def shown():
        line = page.text_content(".s2d-line code")
        picture, frame = (
            base64.b64decode(page.eval_on_selector(f"img.s2d-{name}", FETCH))
            for name in ("picture", "frame")
        )
        return json.loads(line), picture, frame

    def line_is(state, same):
        page.wait_for_function(
            "([line, same]) => (document.querySelector('.s2d-line code').textContent == line)"
            " == same",
            arg=[json.dumps(state), same],
        )

    own, picture, frame = shown()
    assert picture.startswith(b"\x89PNG") and frame.startswith(b"\x89PNG")
    words = page.text_content(".s2d-caption")
    assert words.startswith("Fig. 4 of clip")
    page.locator(".s2d-mu_t .noUi-handle").press("ArrowLeft")
    line_is(own, False)
    moved, moved_picture, moved_frame = shown()
    assert moved["theta"]["mu_t"] == pytest.approx(own["theta"]["mu_t"] - 0.01, abs=0.006)
    assert moved["scores"] != own["scores"]
    assert picture != moved_picture != b"" and frame != moved_frame
    assert page.text_content(".s2d-caption") != words
    page.click(".s2d-reset_button")
    line_is(own, True)
    assert shown() == (own, picture, frame)
