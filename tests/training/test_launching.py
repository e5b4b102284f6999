"""The launch configurations, read by accelerate itself; nothing is started."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.experiment.configuration import preset_names
from dsteer_tl.training.launching import launch_configuration_names, launch_configuration_path
from tests.models import ARCHITECTURES, LAYERS, random_model
from tests.training.launches import launch_environment, launch_plan

NAMES = ("ddp-8", "fsdp-2x8", "fsdp-8", "zero3-2x8", "zero3-8")
TWO_MACHINES = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1")
TWO_MACHINES += ("--main_process_port", "29511")


def flags(name: str) -> tuple[str, ...]:
    return TWO_MACHINES if "2x8" in name else ()


def test_the_names() -> None:
    assert launch_configuration_names() == NAMES
    # They are no presets of experiments.
    assert not set(preset_names()) & set(NAMES)
    with pytest.raises(ConfigurationError, match=r"no launch configuration 'fsdp-9'.*fsdp-8"):
        launch_configuration_path("fsdp-9")


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_them(name: str) -> None:
    found = load_config_from_file(str(launch_configuration_path(name)))
    machines = 2 if "2x8" in name else 1
    assert (found.num_machines, found.num_processes) == (machines, 8 * machines)
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}[name.split("-")[0]]
    assert found.distributed_type.value == kind
    # Nothing of anybody's machines.
    assert found.main_process_ip is None


@pytest.mark.parametrize("name", NAMES)
def test_what_the_launcher_would_start(name: str) -> None:
    """Eight processes on each machine, which meet at the first one."""
    plan = launch_plan(name, *flags(name))
    assert plan.nproc_per_node == 8
    assert plan.max_nodes == plan.min_nodes == (2 if "2x8" in name else 1)
    if "2x8" in name:
        assert (plan.rdzv_backend, plan.rdzv_endpoint) == ("static", "10.0.0.1:29511")
        assert plan.rdzv_configs["rank"] == 1


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_decoder_layer_is_a_unit(architecture: str) -> None:
    """The class is found for each architecture, without being named in the file."""
    with mock.patch.dict(os.environ, launch_environment("fsdp-8"), clear=True):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    model = random_model(architecture)
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert policy is not None
    assert sum(policy(module) for module in model.modules()) == LAYERS


@pytest.mark.parametrize("name", [name for name in NAMES if "zero3" in name])
def test_deepspeed_takes_clipping_and_accumulation_from_the_training(name: str) -> None:
    found = launch_environment(name, *flags(name))
    assert found["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert found["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
    assert found["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    assert found["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert found["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
