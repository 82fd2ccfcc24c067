"""A model shared as a folder or by a hub: the same outputs, its record, no pickle; fine-tuning."""

import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch.testing import assert_close

from s2dlib.config import CONFIG_FILE, WEIGHTS, DataConfig, ModelConfig
from s2dlib.model import S2DNet, build_model
from s2dlib.presets import PRESETS
from s2dlib.training.initialise import initialise_from, with_networks_of

SMALL = ModelConfig(
    n_classes=6,
    snet="tiny-s",
    dnet="tiny-d",
    synopsis_size=(4, 12, 12),
    detail_size=(3, 10, 10),
    context_dim=8,
    theta_dim=6,
)
NAMES = ["run", "walk", "sit", "stand", "jump", "wave"]
DATA = DataConfig(
    csv="/home/someone/secret/mine.csv", n_frames=9, crop=20, short_side=24, gray=True
)


def trained(classes=NAMES, variant="a0", **changes):
    """A model as after a training, with its record and no two weights alike."""
    model = build_model(replace(SMALL, **changes), variant, n_classes=len(classes))
    with torch.no_grad():
        for weight in model.state_dict().values():
            if weight.is_floating_point():
                weight.uniform_(0.1, 0.9)
    model.record = {"preset": "videos", "variant": variant, "seed": 3, "test_split": "test"}
    model.record |= {"classes": list(classes), "data": asdict(DATA)}
    model.record |= {"val_data": {"csv": "/home/someone/secret/val.csv"}}
    model.record |= {"recipe": "joint", "recipes": {"joint": {"epochs": 7, "lr": 2e-3}}}
    command = "run a.ipynb -p csv /a/secret/mine.csv -p overrides '{cache: /a/secret/b}' -p x ../y"
    source = {"command": command, "commit": "abc", "data": "mine", "versions": {"torch": "2"}}
    model.record |= {"provenance": source, "metrics": {"top1": 71.25, "n_clips": 40}}
    return model.eval()


def clips():
    return torch.randint(0, 256, (2, 1, 9, 20, 24), dtype=torch.uint8)


@pytest.mark.parametrize("variant", ["a0", "a1", "a2", "b2"])
def test_from_pretrained_gives_model_and_record_back(tmp_path, variant):
    model, frames = trained(variant=variant), clips()
    model.save_pretrained(tmp_path / "shared")
    back = S2DNet.from_pretrained(tmp_path / "shared")
    assert_close(back(frames).scores, model(frames).scores, rtol=0, atol=0)
    assert not back.training and back.config == model.config and back.classes == NAMES
    assert back.record["provenance"]["commit"] == model.record["provenance"]["commit"]
    assert replace(back.data, csv=DATA.csv) == DATA


def test_from_pretrained_takes_a_runs_folder(runs):
    model = S2DNet.from_pretrained(runs / "synthetic-a0-0")
    assert model.record["metrics"]["top1"] == 5.0
    assert model.classes[0] == "upright tall bar>pole" and model.data.n_frames == 48


def test_save_pretrained_holds_no_path_and_no_pickle(tmp_path):
    trained().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS]
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes(), path.name
    record = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert (record["data"]["csv"], record["data"]["cache"]) == ("mine.csv", None)
    shown = "run a.ipynb -p csv mine.csv -p overrides '{cache: b}' -p x ../y"
    assert record["provenance"]["command"] == shown


def test_from_pretrained_refuses_a_pickle(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    trained().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        S2DNet.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()  # nor is a pickle beside it taken in its place
    with pytest.raises(FileNotFoundError, match="expected the weights"):
        S2DNet.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_model_card_tells_training_and_metrics(
    tmp_path,
):
    trained().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 0.7125
    assert card.data.eval_results[0].dataset_name == "mine"
    for line in ("| top-1 (%) | 71.25 |", "| top-5 (%) | - |", "| epochs | 7 |", "| seed | 3 |"):
        assert line in card.text
    assert "-p csv mine.csv" in card.text and "run; walk; sit" in card.text


def test_model_card_of_an_untrained_model(tmp_path):
    model = build_model(SMALL)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "| top-1 (%) | - |" in card.text
    assert "\n# S2DNet\n" in card.text
    with pytest.raises(ValueError, match="expected a trained model"):
        _ = S2DNet.from_pretrained(tmp_path).data


def test_from_pretrained_names_another_architecture(tmp_path):
    trained().save_pretrained(tmp_path)
    record = json.loads((tmp_path / CONFIG_FILE).read_text())
    record["model"] |= {"fuse_context": False, "context_dim": 4}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(record))
    what = r"unexpected: dnet.fusions.res3.bn.*dnet.classifier.weight .6, 72. .6, 68."
    with pytest.raises(ValueError, match=what):
        S2DNet.from_pretrained(tmp_path)


def test_from_pretrained_names_another_version(tmp_path):
    trained().save_pretrained(tmp_path)
    record = json.loads((tmp_path / CONFIG_FILE).read_text())
    record["model"]["telescope"] = True
    (tmp_path / CONFIG_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="not of this version.*telescope"):
        S2DNet.from_pretrained(tmp_path)


def test_save_pretrained_keeps_a_runs_record(runs):
    before = (runs / "synthetic-a0-0" / CONFIG_FILE).read_bytes()
    with pytest.raises(ValueError, match="the folder of a run"):
        trained().save_pretrained(runs / "synthetic-a0-0")
    assert (runs / "synthetic-a0-0" / CONFIG_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "files",
    [
        {WEIGHTS: "someone's"},
        {CONFIG_FILE: '{"model": "bert"}', WEIGHTS: "someone's"},
        {CONFIG_FILE: "no JSON"},
        {CONFIG_FILE: '{"architectures": ["Bert"]}'},
    ],
)
def test_save_pretrained_replaces_no_other_model(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="but no model of this package"):
        trained().save_pretrained(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_save_pretrained_replaces_an_older_model_whole_or_not_at_all(tmp_path, monkeypatch):
    trained().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("my words")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model, write_text = trained(NAMES[:4]), Path.write_text

    def full(path, *words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(Path, "write_text", write_text)
    model.save_pretrained(tmp_path)
    assert S2DNet.from_pretrained(tmp_path).classes == NAMES[:4]
    assert (tmp_path / "README.md").read_text() == "my words"
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 4


def test_save_pretrained_pushes_by_the_name_of_the_folder(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(S2DNet, "push_to_hub", lambda model, name, **more: pushed.append(name))
    monkeypatch.chdir(tmp_path)
    trained().save_pretrained("mine", push_to_hub=True, repo_id=None)
    trained().save_pretrained("mine", push_to_hub=True, repo_id="me/other")
    assert pushed == ["mine", "me/other"]


def test_from_pretrained_source_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with config.json"):
        S2DNet.from_pretrained("results/models/no-such/model")
    with pytest.raises(FileNotFoundError, match="no such folder in"):  # and no hub is asked
        S2DNet.from_pretrained(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="expected config.json"):
        S2DNet.from_pretrained(tmp_path)


class Hub(SimpleHTTPRequestHandler):
    """The two routes of a hub that a download takes, over a folder <owner>/<model>/<file>."""

    def send_head(self):
        owner, model, _, _, name = self.path.strip("/").split("/")
        path = Path(self.directory) / owner / model / name
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("ETag", f'"{name}-{path.stat().st_size}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        return path.open("rb")

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_from_pretrained_takes_a_hub_id(tmp_path):
    model, frames = trained(), torch.arange(9 * 20 * 24).view(1, 1, 9, 20, 24) % 256
    model.save_pretrained(tmp_path / "hub" / "someone" / "s2dnet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path / "hub")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (  # a process of its own: the address of the hub is read when its library is imported
        "import torch; from s2dlib import S2DNet; m = S2DNet.from_pretrained('someone/s2dnet');"
        "f = (torch.arange(9 * 20 * 24).view(1, 1, 9, 20, 24) % 256).byte();"
        "print(m.classes[0], *m(f).scores[0].tolist())"
    )
    address = f"http://127.0.0.1:{server.server_port}"
    env = dict(os.environ, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "cache"), NO_PROXY="*")
    env["HF_HUB_DISABLE_XET"] = "1"
    try:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    name, *scores = done.stdout.split()
    assert name == "run"
    assert_close(torch.tensor([*map(float, scores)]), model(frames.byte()).scores[0])


def test_initialise_takes_classes_by_name():
    start, classes = trained(), ["stand", "fly", "run"]
    model = build_model(SMALL, n_classes=3)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    initialise_from(model, start, classes)
    own, old = model.state_dict(), start.state_dict()
    for net in ("snet", "dnet"):
        rows, theirs = own[f"{net}.classifier.weight"], old[f"{net}.classifier.weight"]
        assert_close(rows[0], theirs[3])
        assert_close(rows[1], fresh[f"{net}.classifier.weight"][1])
        assert_close(rows[2], theirs[0])
    for name in ("snet.theta_head.convolutions.0.weight", "snet.context_head.fc.weight"):
        C = own[name].shape[1] - 3
        assert_close(own[name][:, :C], old[name][:, :C])
        assert_close(own[name][:, C], old[name][:, C + 3])
        assert_close(own[name][:, C + 1], fresh[name][:, C + 1])
        assert_close(own[name][:, C + 2], old[name][:, C])
    rest = [k for k in own if "classifier" not in k and own[k].shape == old[k].shape]
    assert len(rest) > 40 and all(own[k].equal(old[k]) for k in rest)


def test_initialise_with_classes_in_another_order():
    start, frames = trained(), clips()
    model = build_model(SMALL).eval()
    initialise_from(model, start, NAMES[::-1])
    assert_close(model(frames).scores.flip(1), start(frames).scores)


@pytest.mark.parametrize("changes", [{"theta_head": "attention"}, {"context_dim": 4}])
def test_initialise_refuses_other_networks(changes):
    what = "branches.space_score.weight" if "theta_head" in changes else r"\(8,\) \(4,\)"
    with pytest.raises(ValueError, match=f"another architecture.*{what}"):
        initialise_from(build_model(replace(SMALL, **changes)), trained(), NAMES)


def test_with_networks_of_takes_networks_and_clips():
    preset = with_networks_of(PRESETS["videos"], SMALL, DATA)
    assert preset.model == replace(SMALL, n_classes=10, k=5)
    assert (preset.data.n_frames, preset.data.crop, preset.data.gray) == (9, 20, True)
    assert (preset.data.csv, preset.data.flip) == ("data/videos/videos.csv", True)
    assert preset.recipes == PRESETS["videos"].recipes
