"""What `accelerate launch --config_file` would start and hand on, without starting anything."""

from __future__ import annotations

import argparse
import os
from unittest import mock

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    _filter_args,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import LaunchConfig

from dsteer_tl.training.launching import launch_configuration_path


def _prepared(name: str, flags: tuple[str, ...]) -> tuple[argparse.Namespace, dict[str, str]]:
    command = ["--config_file", str(launch_configuration_path(name)), *flags]
    command += ["-m", "dsteer_tl", "train"]
    with mock.patch.dict(os.environ, clear=True):
        found, file, _ = _validate_launch_command(launch_command_parser().parse_args(command))
        if not found.use_deepspeed:
            return found, prepare_multi_gpu_env(found)
        found.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        other_launcher, environment = prepare_deepspeed_cmd_env(found)
        assert not other_launcher  # torch's own on each machine, no ssh
        return found, environment


def launch_environment(name: str, *flags: str) -> dict[str, str]:
    """Environment variables that accelerate sets for every process."""
    return dict(_prepared(name, flags)[1])


def launch_plan(name: str, *flags: str) -> LaunchConfig:
    """How many processes torch's launcher would start here, and where they would meet."""
    prepared, _ = _prepared(name, flags)
    script = ["--training_script", "dsteer_tl", "--training_script_args", ["train"]]
    arguments = _filter_args(prepared, torchrun.get_args_parser(), script)
    return torchrun.config_from_args(arguments)[0]
