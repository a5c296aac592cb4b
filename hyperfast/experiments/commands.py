"""`hyperfast train`, `evaluate`, `sample`, `predict` and `upscale`: options read by tyro, looked up in the registry, run.

Whatever the user can get wrong is a ValueError or an OSError here; the command line prints its message.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor

from .. import ensemble
from . import checkpoint, ranks, torchrun
from .experiment import Experiment, find, names
from .training import ProgressBar

RUNS = Path("runs")
_SAMPLES_AT_ONCE = 256
_IMAGES_AT_ONCE = 512


def train(arguments: list[str]) -> None:
    """hyperfast train EXPERIMENT [--preset P] [--config.field value ...] [--data-root DIR] [--device D] [--resume] [--out DIR]"""
    experiment = _experiment("train", arguments)
    preset = _peek(arguments, "--preset") or "paper"
    if preset not in experiment.presets:
        raise ValueError(f"there is no preset {preset!r} of {experiment.name}; known: {', '.join(experiment.presets)}")
    config = experiment.presets[preset]
    options = _read("train", arguments, experiment, {
        "config": (type(config), config, "settings; the defaults are the preset's"),
        "preset": (Literal[tuple(experiment.presets)], "paper", "where the settings' defaults come from"),
        "data_root": _DATA_ROOT,
        "device": _DEVICE,
        "resume": (bool, False, "go on from the checkpoint in the folder"),
        "out": (Path | None, None, f"folder of checkpoint and metrics; default: {RUNS}/EXPERIMENT"),
    })  # fmt: skip
    name = experiment.name if preset == "paper" else f"{experiment.name}-{preset}"
    out = options.out or RUNS / name

    def on_rank(group: Any, device: torch.device) -> None:
        experiment.train(options.config, out, options.data_root, device, options.resume)

    torchrun.on_ranks(_device(options.device), on_rank)


def evaluate(arguments: list[str]) -> None:
    """hyperfast evaluate EXPERIMENT --checkpoint FILE [--figures all] [--evaluation.field value ...] [--out DIR]"""
    experiment = _experiment("evaluate", arguments)
    path = _peek(arguments, "--checkpoint")
    asks_for_help = {"-h", "--help"} & set(arguments)
    # The settings' defaults are the checkpoint's, so that it is read before the other options are.
    kind = type(experiment.presets["paper"].evaluation)
    settings = kind() if path is None or asks_for_help else experiment.evaluation(Path(path))
    options = _read("evaluate", arguments, experiment, {
        "checkpoint": _CHECKPOINT,
        "evaluation": (kind, settings, "settings; the defaults are the checkpoint's"),
        "figures": (str, "all", f"all, none, or some of {','.join(experiment.figures)}"),
        "data_root": _DATA_ROOT,
        "device": _DEVICE,
        "out": (Path | None, None, "folder of tables and figures; default: the checkpoint's"),
    })  # fmt: skip
    figures = {"all": experiment.figures, "none": ()}.get(options.figures, tuple(options.figures.split(",")))
    _check_names("--figures", figures, experiment.figures)
    out = options.out or options.checkpoint.parent
    experiment.evaluate(
        options.evaluation, options.checkpoint, out, options.data_root, _device(options.device), figures
    )


def sample(arguments: list[str]) -> None:
    """hyperfast sample EXPERIMENT --checkpoint FILE --members 1000 --out theta.safetensors [--seed 0] [--device D]"""
    experiment = _experiment("sample", arguments)
    options = _read("sample", arguments, experiment, {
        "checkpoint": _CHECKPOINT,
        "members": (int, _REQUIRED, "networks to generate"),
        "out": (Path, _REQUIRED, "safetensors file to write: theta [members, weights]"),
        "seed": _SEED,
        "device": _DEVICE,
    })  # fmt: skip
    _check_members(options.members)
    if experiment.load is None:
        raise ValueError(f"{experiment.name} generates no networks: there is nothing to sample")
    trained = experiment.load(options.checkpoint, _device(options.device), options.seed)
    _check_members(options.members, trained.members)
    theta = torch.empty(options.members, trained.net.num_weights)
    with ProgressBar("sampling", options.members) as bar, torch.no_grad():
        for start in range(0, options.members, _SAMPLES_AT_ONCE):
            stop = min(start + _SAMPLES_AT_ONCE, options.members)
            theta[start:stop] = trained.sampler(torch.arange(start, stop))
            bar.update(stop)
    layout = [[name, list(shape)] for name, shape, _ in trained.net.layout]
    about = {"sampled_from": experiment.name, "step": trained.step, "seed": options.seed, "layout": layout}
    checkpoint.save(options.out, {"theta": theta}, about)
    print(f"{options.members} networks of {trained.net.num_weights} weights: {options.out}")


def predict(arguments: list[str]) -> None:
    """hyperfast predict --checkpoint FILE --members 10000 --data FILE --reduce mean_prob,entropy --out FILE [--resume]"""
    known = tuple(name for name in ensemble.REDUCTIONS if name != "member_accuracy")  # which needs labels
    options = _read("predict", arguments, None, {
        "checkpoint": _CHECKPOINT,
        "members": (int, _REQUIRED, "networks in the ensemble"),
        "data": (Path, _REQUIRED, "inputs: an idx file, gzipped or not, or a .npy"),
        "reduce": (str, "mean_prob", f"some of {','.join(known)}"),
        "out": (Path, _REQUIRED, "file to write, .npz or .safetensors: one array for each name in --reduce"),
        "seed": _SEED,
        "device": _DEVICE,
        "resume": (bool, False, "go on with what was interrupted, from OUT.partial"),
    }, "Run an ensemble of generated networks on data.")  # fmt: skip
    _check_members(options.members)
    reduce = tuple(options.reduce.split(","))
    _check_names("--reduce", reduce, known)
    if options.out.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"--out must end in .npz or .safetensors; got {options.out}")
    _, about = checkpoint.load(options.checkpoint)
    if about.get("experiment") not in names():
        raise ValueError(f"{options.checkpoint} is no checkpoint of an experiment; known: {', '.join(names())}")
    experiment = find(about["experiment"])
    if experiment.load is None or experiment.read_inputs is None:
        raise ValueError(f"{experiment.name} generates no networks of images: nothing predicts from {options.data}")
    inputs = experiment.read_inputs(options.data)
    if not len(inputs):
        raise ValueError(f"{options.data} has no inputs; at least one was expected")
    partial = options.out.with_name(options.out.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    load = experiment.load

    def on_rank(group: Any, device: torch.device) -> None:
        first = ranks.is_first()
        if first and not options.resume:
            for left in partial.parent.glob(f"{partial.name}*"):
                left.unlink()
        if group is not None:
            dist.barrier(group)
        trained = load(options.checkpoint, device, options.seed)
        _check_members(options.members, trained.members)
        batches = [batch.to(device) for batch in inputs.split(_IMAGES_AT_ONCE)]
        own = len(ensemble.Ranks(group).members(options.members))
        with ProgressBar("predicting", own * len(batches), visible=first) as bar:
            r = ensemble.predict(
                trained.net, batches, (trained.sampler, options.members), reduce, group=group, partial=partial,
                progress=lambda done, total: bar.update(done),
            )  # fmt: skip
        if first:
            _write_arrays(options.out, {name: getattr(r, name).cpu() for name in reduce})
            print(f"{options.members} networks on {len(inputs)} inputs: {', '.join(reduce)} in {options.out}")

    torchrun.on_ranks(_device(options.device), on_rank)


def upscale(arguments: list[str]) -> None:
    """hyperfast upscale IN.png OUT.png --scale 2.5 --checkpoint FILE [--device D]"""
    options = _read("upscale", arguments, None, {
        "source": (tyro.conf.Positional[Path], _REQUIRED, "picture to read"),
        "target": (tyro.conf.Positional[Path], _REQUIRED, "picture to write"),
        "scale": (tuple[float, ...], _REQUIRED, "a number, or two: of rows and of columns"),
        "checkpoint": (Path, _REQUIRED, "a checkpoint of functional_images/super_resolution"),
        "device": _DEVICE,
    }, "Enlarge a picture by a function that a trained hypernetwork generates of each of its patches.")  # fmt: skip
    from .functional_images.super_resolution.upscale import run as upscale_file

    upscale_file(options.source, options.target, options.scale, options.checkpoint, _device(options.device))


# ---- options ----------------------------------------------------------------------------------------

_REQUIRED: Any = object()
_DATA_ROOT = (Path | None, None, "folder of the data sets; default: the environment variable HYPERFAST_DATA")
_DEVICE = (str, "auto", "auto, cpu, cuda, cuda:1, ...")
_CHECKPOINT = (Path, _REQUIRED, "a checkpoint that `hyperfast train` wrote")
_SEED = (int, 0, "of the networks' noise: network i depends on seed and i alone")


def _experiment(command: str, arguments: list[str]) -> Experiment:
    """The experiment that the first argument names; with none, usage."""
    if not arguments or arguments[0].startswith("-"):
        doc = _COMMANDS[command].__doc__
        listing = "\n".join(f"  {name}  {find(name).summary}" for name in names())
        if {"-h", "--help"} & set(arguments):
            print(f"usage: {doc}\n\nexperiments:\n{listing}\n\nhyperfast {command} EXPERIMENT --help lists the options")
            raise SystemExit(0)
        raise ValueError(f"usage: {doc}\nname an experiment first:\n{listing}")
    return find(arguments[0])


def _peek(arguments: list[str], option: str) -> str | None:
    """The value of one option, on which the others' defaults depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(option, dest="value", nargs="?")
    return parser.parse_known_args(arguments)[0].value


def _read(
    command: str, arguments: list[str], experiment: Experiment | None, options: dict[str, tuple], summary: str = ""
) -> Any:
    """The options, {name: (type, default, help)}, as a dataclass instance. A wrong one ends with usage, status 2."""
    members = [
        (name, Annotated[kind, tyro.conf.arg(help=words)], *([] if default is _REQUIRED else [field(default=default)]))
        for name, (kind, default, words) in options.items()
    ]
    kind = make_dataclass(command.capitalize(), members, frozen=True, kw_only=True)
    return tyro.cli(
        kind,
        prog=f"hyperfast {command}" + (f" {experiment.name}" if experiment else ""),
        description=experiment.summary if experiment else summary,
        args=arguments[1:] if experiment else arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:  # AssertionError: torch was built without it
        raise ValueError(f"--device {name} is not available: {str(problem).splitlines()[0]}") from problem
    return device


def _check_members(members: int, trained: int | None = None) -> None:
    if members < 1:
        raise ValueError(f"--members must be at least 1; got {members}")
    if trained is not None and members > trained:
        raise ValueError(f"--members must be at most {trained}, the networks in the checkpoint; got {members}")


def _check_names(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{option}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}")


def _write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        checkpoint.save(path, arrays, {"arrays": list(arrays)})
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train, "evaluate": evaluate, "sample": sample, "predict": predict, "upscale": upscale,
}  # fmt: skip


def run(command: str, arguments: list[str]) -> None:
    """Runs one of these commands."""
    _COMMANDS[command](arguments)
