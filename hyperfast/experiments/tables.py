"""Numbers beside the figures: CSV and JSON, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One line per row, with the first row's columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return _write(path, text.getvalue())


def write_json(path: Path, values: Any) -> Path:
    """Indented."""
    return _write(path, json.dumps(values, indent=1) + "\n")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    scratch.write_text(text, newline="")
    os.replace(scratch, path)
    return path
