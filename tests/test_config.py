"""Configurations check themselves, and a change to one says so."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from s2dlib.config import DataConfig, ModelConfig, TrainConfig
from s2dlib.presets import PRESETS, SAME_RUN, VARIANTS, variant_of
from s2dlib.training.trials import override


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_classes": 3, "k": 5}, r"\[1, n_classes=3\], got 5"),
        ({"n_classes": 3, "k": 0}, r"\[1, n_classes=3\], got 0"),
        ({"n_classes": 0}, "n_classes: must be greater than or equal to 1, got 0"),
        ({"n_classes": 9, "snet": None, "dnet": None}, "snet and dnet"),
        ({"n_classes": 9, "detail_size": (8, 8)}, r"detail_size.*\(8, 8\)"),
        ({"n_classes": 9, "synopsis_size": (8, 0, 8)}, r"synopsis_size.*\(8, 0, 8\)"),
        ({"n_classes": 9, "theta_head": "mlp"}, "theta_head.*'fc' or 'attention'.*'mlp'"),
        ({"n_classes": 9, "frozen_space": "half"}, "frozen_space.*'crop' or 'full'.*'half'"),
        ({"n_classes": 9, "filters": "cubic"}, "filters.*'gaussian' or 'linear'.*'cubic'"),
    ],
)
def test_an_impossible_model_is_refused_by_its_values(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_frames": 0}, "n_frames: .*greater than or equal to 1, got 0"),
        ({"frame_stride": -1}, "frame_stride: .*greater than or equal to 1, got -1"),
        ({"crop": 300}, "crop=300.*short_side=256"),
        ({"n_frames": 48.5}, "n_frames: must be a valid integer.*fractional part, got 48.5"),
        ({"csv": 20241126}, "csv: must be a valid string, got 20241126"),
        ({"test_crops": 2}, "test_crops: must be 1 or 3, got 2"),
        ({"scales": ()}, r"scales.*\(\)"),
        ({"scales": [1.2]}, r"scales.*less than or equal to 1, got \[1.2\]"),
    ],
)
def test_impossible_data_are_refused_by_their_values(changes, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(**{"csv": "a.csv"} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "lion"}, "optimizer: must be 'adamw' or 'sgd', got 'lion'"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch"),
        ({"masked": "no"}, "masked: must be a valid boolean, got 'no'"),
        ({"lr": "fast"}, "lr: must be a valid number.*'fast'"),
    ],
)
def test_an_impossible_training_is_refused_by_its_values(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)


def test_numbers_that_come_as_text_become_numbers():
    config = TrainConfig(lr="1e-3", epochs="20")  # as YAML 1.1 reads 1e-3
    assert config == TrainConfig(lr=0.001, epochs=20) and isinstance(config.lr, float)
    assert DataConfig(csv="a.csv", scales=[1, 0.5]).scales == (1.0, 0.5)


def test_configs_are_frozen_and_take_keywords_only():
    with pytest.raises(FrozenInstanceError):
        PRESETS["synthetic"].model.k = 3
    with pytest.raises(TypeError):
        ModelConfig(20)


def test_table_2_has_eleven_rows_and_eight_models():
    assert len({*VARIANTS, *SAME_RUN}) == 11
    models = {variant_of(PRESETS["mini-kinetics"].model, row) for row in (*VARIANTS, *SAME_RUN)}
    assert len(models) == 8
    for row, same in SAME_RUN.items():
        full = PRESETS["mini-kinetics"].model
        assert variant_of(full, row) == variant_of(full, same)


def test_an_unknown_row_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'a9'.*a0, a1, a2, b0, b1, b2, b3, c0, c1, c2, c3"):
        variant_of(PRESETS["synthetic"].model, "a9")


def test_the_papers_data_sets_are_cropped_as_it_says():
    for name, preset in PRESETS.items():
        if name.split("-")[0] in ("synthetic", "grid", "egogestar", "videos"):
            continue
        data, kinetics = preset.data, "kinetics400" in preset.data.csv
        assert data.frame_stride == 2 and data.flip == ("ss" not in data.csv)
        assert data.test_crops == (3 if kinetics else 1)
        assert data.crop / data.short_side == pytest.approx(224 / 256, abs=0.002)
        assert data.n_frames == 150 or "ss" in data.csv
        assert len(data.scales) > 1  # random scale


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    preset = PRESETS[name]
    plain = json.loads(json.dumps(asdict(preset)))
    assert ModelConfig(**plain["model"]) == preset.model
    assert DataConfig(**plain["data"]) == preset.data
    assert {k: TrainConfig(**v) for k, v in plain["recipes"].items()} == preset.recipes


def test_an_override_goes_to_the_part_that_holds_the_field():
    changes = {"k": 3, "n_frames": 32, "epochs": 2, "detail_size": [4, 8, 8], "scales": [1.0]}
    preset = override(PRESETS["synthetic"], "joint", changes)
    start = PRESETS["synthetic"]
    assert preset.model == replace(start.model, k=3, detail_size=(4, 8, 8))
    assert preset.data == replace(start.data, n_frames=32, scales=(1.0,))
    assert preset.recipes == {"joint": replace(start.recipes["joint"], epochs=2)}
    assert start == PRESETS["synthetic"] and changes["k"] == 3  # nothing is changed in place


def test_an_override_of_nothing_is_the_preset_with_one_recipe():
    preset = override(PRESETS["synthetic"], "paper", {})
    start = PRESETS["synthetic"]
    assert (preset.model, preset.data) == (start.model, start.data)
    assert preset.recipes == {"paper": start.recipes["paper"]}


def test_an_override_refuses_unknown_fields_recipes_and_values():
    with pytest.raises(ValueError, match=r"\['batchsize', 'kk'\].*batch_size"):
        override(PRESETS["synthetic"], "joint", {"kk": 3, "batchsize": 2, "k": 4})
    with pytest.raises(ValueError, match="'authors'.*joint"):
        override(PRESETS["synthetic"], "authors", {})
    with pytest.raises(ValueError, match="got 50"):
        override(PRESETS["synthetic"], "joint", {"k": 50})
