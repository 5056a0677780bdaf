"""LBDT-4 on Refer-YouTube-VOS, as published.

    python -m lbdt_jax.main --config=configs/refer_youtube_vos.py         refer_youtube_vos.py:lbdt1 for LBDT-1

Trains on "train" and evaluates on "valid": J, boundary F and J&F if its masks are available, and in any case one zip
per protocol for the evaluation server, WORKDIR/evaluation/refer_youtube_vos-valid-*.zip.

Cost: 15 epochs of 12,913 sentences on all listed frames of their videos, about twenty times configs/a2d.py. Not
measured.
Result: published for LBDT-4, protocol "paper", from the server: J&F 49.4. Our own scores: not measured.

Requires the dataset in data/raw/refer_youtube_vos, and otherwise what configs/a2d.py requires.
"""

from ml_collections import ConfigDict

from configs import a2d

VARIANTS = a2d.VARIANTS
PUBLISHED = (("j", 0.4818), ("f", 0.5057), ("j_and_f", 0.4938))  # LBDT-4 [R]


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The published recipe, the same as for A2D-Sentences. Raises ValueError for a model that is not in VARIANTS."""
    config = a2d.get_config(model)
    config.dataset = "refer_youtube_vos"
    config.frame_interval = 5  # only every fifth frame has a file [R]
    config.evaluation_split = "valid"
    config.validation_every_epochs = 0.0  # the masks of "valid" are not public
    config.keep_checkpoints = 2
    config.published = tuple(("paper", *row) for row in PUBLISHED) if model == "lbdt4" else ()
    config.shuffle_buffer = 1024  # a frame pair takes about 300 kB
    return config
