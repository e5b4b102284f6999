"""What settings may be: ranges, and settings that depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.measurements.settings import MeasurementConfiguration
from dsteer_tl.positions import check_kinds
from dsteer_tl.stress.settings import STRESS_TESTS, StressConfiguration
from dsteer_tl.toxicity.settings import ToxicityConfiguration

if TYPE_CHECKING:
    from dsteer_tl.experiment.configuration import ExperimentConfiguration


def check_ranges(found: ExperimentConfiguration) -> None:
    """Refuse settings that are out of range or contradict each other.

    Raises:
        ConfigurationError: Names the setting, the value found and what was expected.
    """
    share = found.preferences.held_out_share
    rules = (
        (0 < share < 1, f"preferences.held_out_share is {share}, expected between 0 and 1"),
        (found.training.beta > 0, f"training.beta is {found.training.beta}, expected above 0"),
        (
            found.training.learning_rate > 0,
            f"training.learning_rate is {found.training.learning_rate}, expected above 0",
        ),
        (
            found.training.batch_size > 0,
            f"training.batch_size is {found.training.batch_size}, expected at least 1",
        ),
        (
            bool(found.preferences.sources) or bool(found.preferences.prompts),
            "there are neither preferences.sources nor preferences.prompts: nothing to measure on",
        ),
        (
            not found.preferences.prompts or bool(found.policy),
            "preferences.prompts has no responses to train on: set policy, or give pairs",
        ),
        (bool(found.measurement.ranks), "measurement.ranks is empty, expected at least one rank"),
        (
            bool(found.measurement.coefficients),
            "measurement.coefficients is empty, expected at least one λ",
        ),
        *_of_the_model(found),
        *_of_the_measurement(found.measurement),
        *_of_the_study(found.toxicity),
        *_of_the_stress_tests(found.stress),
        *_at_least_one(found.audit, "audit", ("unrelated_prompts",)),
    )
    for holds, message in rules:
        if not holds:
            raise ConfigurationError(message)
    # Now, not after an hour of training.
    check_kinds(found.measurement.position_kinds, pairs=not found.preferences.prompts)


def _of_the_model(found: ExperimentConfiguration) -> list[tuple[bool, str]]:
    model = found.model
    rules = [
        (
            not model.device_map or model.device in ("cpu", "cuda"),
            f"model.device is {model.device!r} and model.device_map {model.device_map!r}: a device "
            "map chooses the devices itself, so leave model.device out",
        ),
        (
            model.backend == "bridge" or not (model.device_map or model.quantization),
            f"model.backend is {model.backend!r}, which copies the weights onto one device: "
            "model.device_map and model.quantization need 'bridge'",
        ),
    ]
    if not model.quantization:
        return rules
    what = f"model.quantization is {model.quantization!r}"
    return [
        *rules,
        (
            bool(model.device_map) or model.device.startswith("cuda"),
            f"{what} and model.device {model.device!r}: bitsandbytes needs a GPU, so set "
            "model.device=cuda or model.device_map=auto",
        ),
        (
            model.dtype != "float32",
            f"{what} and model.dtype 'float32': the matrices are multiplied in half precision, so "
            "set model.dtype to bfloat16 or float16",
        ),
        (
            bool(found.policy),
            f"{what} and there is no policy: quantized weights cannot be trained, so train without "
            "(or give policy) and measure with it",
        ),
        (
            not found.measurement.random_weights,
            f"{what}: noise cannot be added to quantized weights, so set "
            "measurement.random_weights=false",
        ),
        (
            not found.audit.attribution and not found.toxicity.enabled,
            f"{what}: attribution and the toxicity study read the weights themselves, so set "
            "audit.attribution=false and toxicity.enabled=false",
        ),
    ]


def _of_the_measurement(found: MeasurementConfiguration) -> list[tuple[bool, str]]:
    names = (
        "response_limit",
        "token_budget",
        "draws",
        "null_draws",
        "gradient_pairs",
        "patching_pairs",
        "components",
    )
    return _at_least_one(found, "measurement", names)


def _of_the_study(found: ToxicityConfiguration) -> list[tuple[bool, str]]:
    names = (
        "label_texts",
        "prompt_limit",
        "windows",
        "window_prompt",
        "vectors",
        "neurons",
        "max_new_tokens",
        "token_budget",
        "draws",
    )
    return [
        *_at_least_one(found, "toxicity", names),
        (
            0 < found.held_out_share < 1,
            f"toxicity.held_out_share is {found.held_out_share}, expected between 0 and 1",
        ),
        (
            0 <= found.label_margin < 0.5,
            f"toxicity.label_margin is {found.label_margin}, expected from 0 to below 0.5",
        ),
        (
            found.window_prompt < found.window_tokens,
            f"toxicity.window_prompt is {found.window_prompt}, expected fewer than the "
            f"{found.window_tokens} of toxicity.window_tokens",
        ),
        (
            1.0 in found.scales,
            f"toxicity.scales are {found.scales}, expected 1 among them: what the others are "
            "compared with",
        ),
        (
            found.temperature >= 0,
            f"toxicity.temperature is {found.temperature}, expected 0 (greedy) or more",
        ),
    ]


def _of_the_stress_tests(found: StressConfiguration) -> list[tuple[bool, str]]:
    unknown = [name for name in found.tests if name not in STRESS_TESTS]
    return [
        *_at_least_one(found, "stress", ("prompts", "turns", "max_new_tokens")),
        (
            not unknown,
            f"stress.tests names {', '.join(map(repr, unknown))}, expected some of "
            f"{', '.join(STRESS_TESTS)}",
        ),
        (
            all(axes >= 1 for axes in found.axes) and len(set(found.axes)) >= 2,
            f"stress.axes are {found.axes}, expected at least two numbers of axes, from 1",
        ),
        (
            all(beta > 0 for beta in found.betas),
            f"stress.betas are {found.betas}, expected all above 0",
        ),
        (
            all(0 < share <= 1 for share in found.shares),
            f"stress.shares are {found.shares}, expected all above 0 and at most 1",
        ),
        (
            found.temperature >= 0,
            f"stress.temperature is {found.temperature}, expected 0 (greedy) or more",
        ),
    ]


def _at_least_one(found: Any, section: str, names: Sequence[str]) -> list[tuple[bool, str]]:
    return [
        (
            getattr(found, name) >= 1,
            f"{section}.{name} is {getattr(found, name)}, expected at least 1",
        )
        for name in names
    ]
