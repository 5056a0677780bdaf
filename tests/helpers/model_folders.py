"""Changes of the files in a folder with config.json and model.safetensors, to break it on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


def edit_json(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """What changes a json file of a folder: `edit` returns the new content, or changes the old one in place."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(edit(content) or content))

    return change


def edit_arrays(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """What changes the arrays in the model.safetensors of a folder: `edit` does so in place."""

    def change(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        edit(arrays)
        save_file(arrays, folder / "model.safetensors")

    return change
