r"""Pre-training of the small network of configs/shapes.py on made-up still images in RefCOCO's format.

    python -m input_pipeline.moving_shapes.stills --output=data/stills/raw/refcoco
    python -m lbdt_jax.main --config=configs/shapes_stills.py
    python -m lbdt_jax.main --config=configs/shapes.py:adamw --workdir=runs/both \
        --config.initial_weights=runs/shapes_stills

The small counterpart of configs/refcoco.py: 3,000 images of other scenes than those of Moving Shapes, with sentences
about colors, kinds, sizes and positions, none about motion.

Cost: 2,868 steps, six minutes on one core of Zen 4.
Result: see docs/experiments.md, "Pre-training on made-up images".
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """The recipe of configs/shapes.py:adamw for fewer steps."""
    config = shapes.get_config("adamw")
    config.dataset = "refcoco"
    config.data_dir = "data/stills"
    config.frame_interval = 1  # has no meaning
    config.evaluation_split = "val"
    config.epochs = 4.0
    config.learning_rate_drops = (2.26, 2.784, 3.26, 3.608, 3.828)
    config.keep_checkpoints = 1
    return config
