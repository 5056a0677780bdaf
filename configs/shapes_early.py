"""Ours, not the paper's: LBDT-1 with a third transfer after res3, on Moving Shapes, to compare with configs/shapes.py.

python -m lbdt_jax.main --config=configs/shapes_early.py
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """The recipe of configs/shapes.py, with language one stage earlier."""
    config = shapes.get_config()
    config.model.early_transfer_layers = 1
    return config
