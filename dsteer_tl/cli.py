"""The ``dsteer`` command: reproduce, train, analyze, sweep, toxicity, stress, report, verify, ….

Flags are in `command_flags`, what the commands do in `commands`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import tyro

from dsteer_tl.command_flags import Command
from dsteer_tl.commands import COMMANDS, SHARED
from dsteer_tl.errors import DsteerError
from dsteer_tl.processes import launched_rank

logger = logging.getLogger("dsteer_tl")

# Threads that wait for each other by spinning slow small models fifteenfold as soon as anything
# else runs on the machine. Read when torch is loaded, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The spectra are of matrices so small that numpy's threads cost three times what they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

#: Flags that take several values, and may be given several times.
_LIST_FLAGS = ("--set", "--suite", "--test", "--preferences", "--sites")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for errors, 130 for Ctrl-C."""
    command = tyro.cli(
        Command,
        prog="dsteer",
        description="Measures how much of preference tuning is a steering vector.",
        args=_merged_flags(sys.argv[1:] if arguments is None else arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    rank = launched_rank()
    if rank and not isinstance(command, SHARED):
        return 0
    _configure_logging(logging.ERROR if rank else logging.INFO)
    try:
        COMMANDS[type(command)](command)
    except DsteerError as error:
        if not error.told:
            _say(f"dsteer: {error}")
        return EXIT_ERROR
    except OSError as error:  # as a full disk, where no module could say more
        place = f"{error.filename}: " if error.filename else ""
        _say(f"dsteer: {place}{error.strerror or error}; finished work is kept")
        return EXIT_ERROR
    except KeyboardInterrupt:
        _say("dsteer: interrupted; finished work is kept, the same command continues")
        return EXIT_INTERRUPTED
    return 0


def _merged_flags(arguments: Sequence[str]) -> list[str]:
    """``--set a=1 --set b=2`` as ``--set a=1 b=2``: the parser keeps the last of two."""
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    into = rest
    for word in arguments:
        if word in _LIST_FLAGS:
            into = values.setdefault(word, [])
        elif word.startswith("--"):
            into = rest
            rest.append(word)
        else:
            into.append(word)
    return [*rest, *(part for flag, own in values.items() for part in (flag, *own))]


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _configure_logging(level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(level)
    # Notices of other packages that no user of this command can act on.
    warnings.simplefilter("ignore")
    for name in ("transformers", "datasets", "httpx", "huggingface_hub", "accelerate", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
