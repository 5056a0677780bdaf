"""Fine-tuning on your own clips: any checkpoint, a folder of videos, masks of a few frames, a text file of sentences.

    python -m lbdt_jax.main --config=configs/own.py --config.raw=DIR --config.initial_weights=CHECKPOINT

DIR is described in docs/data.md, "Your own clips". The network, image size and text encoder must be those of the
checkpoint: here they are those of lbdt_jax/pretrained, the default of CHECKPOINT. For a checkpoint of configs/a2d.py
use --config=configs/own.py:lbdt4.

Evaluates on the frames held out ("val"): J, boundary F and mean IoU. Neighboring frames of a clip look alike, so that
these scores say how the model does on these clips, and not how it does on others.

Cost: 20 passes over the labelled frames with their sentences; 1,180 steps of the small network and the evaluation took
11 minutes on one busy CPU core.
Result: depends on your clips. docs/data.md has an example, five real videos.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import a2d, base, shapes

VARIANTS = ("small", *a2d.VARIANTS)
PRETRAINED = str(Path(__file__).parent.parent / "lbdt_jax" / "pretrained")


def get_config(model: str = "small") -> ConfigDict:
    """The recipe of a network for a few frames. Raises ValueError for one that is not in VARIANTS."""
    base.check_variant("own.py", model, VARIANTS)
    if model == "small":
        config = shapes.get_config("adamw")
        config.initial_weights = PRETRAINED
        config.learning_rate = 5e-4
        config.frame_rate = 30.0
    else:
        config = a2d.get_config(model)
        config.published = ()
        config.validation_every_epochs = 0.0  # short epochs
        config.keep_checkpoints = 2
        config.initial_weights = "runs/a2d"
        config.learning_rate = 1e-5
    config.dataset = "own"
    config.evaluation_split = "val"
    config.batch_size = 8
    config.sentences_per_frame = 1
    config.epochs = 20.0
    config.learning_rate_drops = (10.0, 15.0)
    config.warmup_steps = 0
    config.shuffle_buffer = 1024
    config.decoded_cache = 256
    config.checkpoint_every_steps = 100
    return config
