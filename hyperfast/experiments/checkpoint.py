"""Checkpoints: tensors as safetensors with a JSON header, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes the file under another name and renames it: whoever reads `path` sees the old file or the new one."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, scratch, {"hyperfast": json.dumps(about)})
    os.replace(scratch, path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, about). Raises ValueError that names the file where it is truncated or foreign."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("hyperfast")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} is not a readable safetensors checkpoint: {problem}") from problem
    if about is None:
        raise ValueError(f"{path} is a safetensors file, but not a checkpoint of hyperfast")
    return tensors, json.loads(about)


def training_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Model and optimizer as flat tensors."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return state


def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Tensor]) -> None:
    """The inverse of training_state."""
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    if optimizer is None:
        return
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            values.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
