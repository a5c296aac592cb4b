"""Checkpoints: tensors as safetensors with a JSON header, written atomically."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

C = TypeVar("C")
M = TypeVar("M", bound=torch.nn.Module)


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes the file under another name and renames it: whoever reads `path` sees the old file or the new one."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, scratch, {"hyperfast": json.dumps(about)})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the data
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, about). Raises ValueError that names the file where it is truncated or foreign."""
    with _opened(path) as (file, about):
        return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118  (not a dict)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(the safetensors file, about), no tensor read yet; errors inside are load's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("hyperfast")
            if about is None:
                raise ValueError(f"{path} is a safetensors file, but not a checkpoint of hyperfast")
            yield file, json.loads(about)
    except FileNotFoundError as problem:
        raise FileNotFoundError(f"there is no checkpoint {path}") from problem
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} is not a readable safetensors checkpoint: {problem}") from problem


# ---- the state of a training ------------------------------------------------------------------------


def save_training(
    path: Path, experiment: str, config: Any, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """A checkpoint of everything that the next step depends on; draws depend on (config.seed, step)."""
    save(path, training_state(model, optimizer), {"experiment": experiment, "step": step, "config": plain(config)})


def resume(
    path: Path,
    experiment: str,
    config: Any,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    may_differ: Sequence[str] = (),
) -> int:
    """Restores model and optimizer from the checkpoint and returns its step.

    may_differ: fields of the config (and those nested in them) that the steps taken so far do not depend on.
    Raises ValueError that names the file and the differing fields where another config made it.
    """
    state, about = load_training(path, experiment)
    different = differences(about["config"], plain(config), may_differ)
    if different:
        raise ValueError(
            f"{path} was made by another configuration: {'; '.join(different)}. "
            f"Use it with the configuration that made it, or write elsewhere"
        )
    restore(model, optimizer, state)
    return about["step"]


def load_training(path: Path, experiment: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state, about) of a checkpoint of that experiment; ValueError where it is of something else."""
    state, about = load(path)
    _check_experiment(path, about, experiment)
    return state, about


def load_config(kind: type[C], path: Path, experiment: str) -> C:
    """The config, a `kind`, of a checkpoint of that experiment, without reading its tensors; errors as load_training."""
    with _opened(path) as (_, about):
        _check_experiment(path, about, experiment)
        return config_from(kind, about["config"], path)


def _check_experiment(path: Path, about: Mapping[str, Any], experiment: str) -> None:
    if about.get("experiment") != experiment or not {"step", "config"} <= about.keys():
        raise ValueError(
            f"{path} is no checkpoint of {experiment}, but of {about.get('experiment') or 'no experiment'}"
        )


def load_with_config(kind: type[C], path: Path, experiment: str) -> tuple[dict[str, Tensor], C, int]:
    """(state, config, step) of a checkpoint of that experiment, whose config is a `kind`; ValueError as load_training."""
    state, about = load_training(path, experiment)
    return state, config_from(kind, about["config"], path), about["step"]


def load_model(
    kind: type[C], path: Path, experiment: str, build: Callable[[C], tuple[M, torch.optim.Optimizer]]
) -> tuple[M, C, int]:
    """The model that build(config) makes, as the checkpoint has it and in eval mode, its config and its step."""
    state, config, step = load_with_config(kind, path, experiment)
    model, _ = build(config)
    restore(model, None, state)
    return model.eval().requires_grad_(False), config, step


def training_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Model and optimizer as flat tensors; a tensor that the model has under several names is there under the first."""
    first = _first_names(model)
    state = {f"model.{name}": value for name, value in model.state_dict().items() if first[name] == name}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return state


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Every name of the state_dict -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in model.state_dict(keep_vars=True).items()}


def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Tensor]) -> None:
    """The inverse of training_state. Raises ValueError where the model is another one."""
    given = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    tied = {name: given[first] for name, first in _first_names(model).items() if first in given}
    try:
        model.load_state_dict(given | tied)
    except RuntimeError as problem:
        raise ValueError(f"the checkpoint's model is another one: {problem}") from problem
    if optimizer is None:
        return
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            values.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})


# ---- configs ----------------------------------------------------------------------------------------


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(asdict(config)))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], may_differ: Sequence[str] = ()) -> list[str]:
    """ "field: A in the checkpoint, B here" for every field that differs, nested ones by their dotted names."""
    found = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name in may_differ or (name in ours and name in theirs and ours[name] == theirs[name]):
            continue
        here, there = ours.get(name, "absent"), theirs.get(name, "absent")
        if isinstance(here, dict) and isinstance(there, dict):
            found += [f"{name}.{inner}" for inner in differences(there, here)]
        else:
            found.append(f"{name}: {there} in the checkpoint, {here} here")
    return found


def config_from(kind: type[C], values: Mapping[str, Any], path: Path) -> C:
    """The config dataclass that plain() made `values` of. Raises ValueError where its fields are others.

    Of what is measured, the "evaluation", fields that came later have their defaults.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    missing = set() if kind.__name__ == "Evaluation" else names - set(values)
    if missing or set(values) - names:
        odd = ", ".join(sorted(missing | (set(values) - names)))
        raise ValueError(f"{path} was made by another version of hyperfast: its configuration differs in {odd}")
    hints = get_type_hints(kind)
    given = {
        name: config_from(hints[name], value, path)
        if is_dataclass(hints[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return kind(**given)
