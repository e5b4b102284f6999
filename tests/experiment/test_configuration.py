from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.command_settings import parse_settings
from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.configuration import (
    ExperimentConfiguration,
    build_configuration,
    file_settings,
    merge,
    preset_names,
    preset_settings,
    to_yaml,
    validate,
)


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_say_what_they_take(name: str) -> None:
    found = build_configuration(preset_settings(name))
    assert found.name == name
    assert found.description.endswith(".")
    assert found.expectation.hardware
    assert found.expectation.memory
    assert found.expectation.minutes > 0
    assert build_configuration(yaml.safe_load(to_yaml(found))) == found


def test_the_embedded_preset_is_there() -> None:
    assert "tales" in preset_names()
    assert build_configuration(preset_settings("tales")).preferences.sources == ("on-policy",)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no preset 'talse': expected one of .*tales"):
        preset_settings("talse")


def test_flag_wins_over_file_and_file_over_preset(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("training:\n  beta: 0.3\n  epochs: 7\n", "utf-8")
    found = build_configuration(
        preset_settings("tales"), file_settings(path), parse_settings(["training.beta=0.2"])
    )
    assert found.training.beta == 0.2
    assert found.training.epochs == 7
    preset = build_configuration(preset_settings("tales"))
    assert found.training.learning_rate == preset.training.learning_rate
    assert found.preferences == preset.preferences


def test_merging_leaves_its_layers_as_they_are() -> None:
    first, second = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merge(first, second) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert first == {"a": {"b": 1, "c": 2}}


@settings(deadline=None, max_examples=30)
@given(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=6
    ).filter(lambda value: isinstance(value, dict))
)
def test_merging_with_nothing_or_with_itself_changes_nothing(layer: dict[str, object]) -> None:
    assert merge(layer) == merge(layer, {}) == merge({}, layer) == merge(layer, layer) == layer


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (["training.betta=1"], "unknown setting 'training.betta': did you mean training.beta?"),
        (["measurment.draws=5"], "unknown setting 'measurment': did you mean measurement?"),
        (
            ["preferences.sampling.prompt=5"],
            "unknown setting 'preferences.sampling.prompt': did you mean "
            "preferences.sampling.prompts?",
        ),
        (["model.qqq=1"], "unknown setting 'model.qqq': known: backend, device"),
        (["training=5"], "setting 'training' is 5, expected a mapping of settings"),
        (["training.batch_size=many"], "setting 'training.batch_size' is 'many': input should be"),
        (["training.batch_size=2.5"], "setting 'training.batch_size' is 2.5: input should be"),
        (["model.dtype=int8"], "setting 'model.dtype' is 'int8': input should be 'float32'"),
        (["model.backend=tlens"], "setting 'model.backend' is 'tlens'"),
        (["preferences.sources=pairs.jsonl"], "setting 'preferences.sources' is 'pairs.jsonl'"),
        (["preferences.held_out_share=1.5"], "held_out_share is 1.5, expected between 0 and 1"),
        (["training.beta=0"], "training.beta is 0.0, expected above 0"),
        (["training.beta=.nan"], "training.beta is nan, expected above 0"),
        (["training.learning_rate=-1"], "training.learning_rate is -1.0, expected above 0"),
        (["training.batch_size=0"], "training.batch_size is 0, expected at least 1"),
        (["preferences.sources=[]"], "nothing to measure on"),
        (["preferences.prompts=x.txt"], "no responses to train on: set policy, or give pairs"),
        (["measurement.draws=0"], "measurement.draws is 0, expected at least 1"),
        (["measurement.ranks=[]"], "measurement.ranks is empty"),
        (["measurement.coefficients=[]"], "measurement.coefficients is empty"),
        (
            ["measurement.position_kinds=[last_token]"],
            "unknown position kind 'last_token' for preference pairs: expected one of last_prompt",
        ),
        (["preferences.sampling.top_p=0"], "top_p is 0.0; expected above 0 and at most 1"),
    ],
)
def test_wrong_settings_say_which_and_why(given_settings: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_configuration(parse_settings(given_settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1,", "is not YAML"),
        ("- a\n- b\n", "holds list, expected a mapping"),
        ("", "holds NoneType, expected a mapping"),
    ],
)
def test_files_that_are_no_settings(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match=message) as caught:
        file_settings(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Müller".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="cannot be read as UTF-8"):
        file_settings(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no configuration file"):
        file_settings(tmp_path / "none.yaml")


def test_yaml_and_back_is_the_same_configuration() -> None:
    found = build_configuration(
        parse_settings(
            [
                "name=ä",
                "policy=some/where",
                "measurement.coefficients=[0, 1e-3]",
                "model.device=cpu",
            ]
        )
    )
    assert found.measurement.coefficients == (0.0, 0.001)
    text = to_yaml(found)
    assert "name: ä" in text
    assert build_configuration(yaml.safe_load(text)) == found
    assert validate(found) == found


def test_yaml_keeps_the_order_of_the_settings() -> None:
    keys = list(yaml.safe_load(to_yaml(ExperimentConfiguration())))
    assert keys == [item.name for item in dataclasses.fields(ExperimentConfiguration)]
