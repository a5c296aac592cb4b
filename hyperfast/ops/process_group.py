"""Which ranks work together: what users pass as `group`."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def process_group(group: Any) -> Any:
    """The process group that is meant: `group` itself, or that of a DeviceMesh of one dimension.

    Raises TypeError for anything else (so for a group that this rank is not in), ValueError for a larger mesh.
    """
    mesh = getattr(dist, "device_mesh", None)
    if mesh is not None and isinstance(group, mesh.DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group must be a DeviceMesh of one dimension; got {group.ndim}")
        return group.get_group()
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a process group or a DeviceMesh this rank is in; got {type(group).__name__}")
    return group
