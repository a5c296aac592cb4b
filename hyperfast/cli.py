"""The command `hyperfast`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from . import __version__

# Commands that experiments/commands.py reads the options of.
_EXPERIMENTS = {
    "train": "train an experiment of the papers (hyperfast train --help lists them)",
    "evaluate": "accuracies and figures of an experiment's checkpoint",
    "sample": "generate networks from a checkpoint",
    "predict": "run an ensemble of generated networks on your data",
    "upscale": "enlarge a picture of yours by any factor",
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who read our output, such as `head`, has enough; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["bench"]:  # these two have parsers of their own
        from .benchmarks import run

        return run.main(arguments[1:])
    if arguments[:1] == ["profile"]:
        from .benchmarks import profile

        return profile.main(arguments[1:])
    if arguments[:1] and arguments[0] in _EXPERIMENTS:
        return _with_extras(arguments[0], lambda: _experiment(arguments[0], arguments[1:]))
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hyperfast", description="Neural networks whose weights are generated.")
    parser.add_argument("--version", action="version", version=f"hyperfast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what is installed, which backend serves which op and why not")
    doctor.add_argument("--json", action="store_true", help="the report as JSON")
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser("demo", help="the main job in about two minutes, on embedded data")
    demo.add_argument("--out", type=Path, default=Path("hyperfast-demo"), help="folder of report and checkpoint")
    demo.add_argument("--steps", type=int, help="training steps")
    demo.add_argument("--members", type=int, help="networks to generate")
    demo.set_defaults(run=_demo)

    for name, words in _EXPERIMENTS.items():
        commands.add_parser(name, help=words)
    commands.add_parser("bench", help="time the kernels against PyTorch (hyperfast bench --help)")
    commands.add_parser("profile", help="where the time of a kernel family goes (hyperfast profile --help)")
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import describe, doctor

    report = doctor()
    print(json.dumps(report, indent=1) if options.json else describe(report))
    return 1 if report["problems"] else 0


def _demo(options: argparse.Namespace) -> int:
    def run_demo() -> None:
        from dataclasses import replace

        from .experiments.demo.config import Config
        from .experiments.demo.run import run

        given = {name: value for name in ("steps", "members") if (value := getattr(options, name)) is not None}
        run(options.out, replace(Config(), **given))

    return _with_extras("demo", run_demo)


def _experiment(command: str, arguments: list[str]) -> None:
    from .experiments.commands import run

    run(command, arguments)


def _with_extras(command: str, work: Callable[[], None]) -> int:
    """Runs what needs the experiments extra; what the user can mend is a message, not a traceback."""
    try:
        work()
    except ModuleNotFoundError as missing:
        print(
            f"hyperfast {command} needs {(missing.name or '').split('.')[0]}: pip install 'hyperfast[experiments]'",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
