"""LBDT-4 on MeViS, version 1 or 2.

    python -m lbdt_jax.main --config=configs/mevis.py                     mevis.py:lbdt1 for LBDT-1

Trains on "train" and evaluates on "valid_u", which has public masks: J, boundary F and J&F of each expression, and for
version 2 N-acc., T-acc. and the mean of the three. The zips for the benchmark's server, which alone can score "valid":

    python -m lbdt_jax.main --config=configs/mevis.py --mode=evaluate --config.evaluation_split=valid

Cost: 2 epochs of about 1.5 million samples, about 12 times configs/a2d.py. Estimated, not measured.
Result: published for LBDT (MeViS paper, table 5), on "valid" of version 1: J&F 29.3, J 27.8, F 30.8. Its recipe is not
published, this one is ours. Our own scores: not measured.

Requires the dataset in data/raw/mevis, and otherwise what configs/a2d.py requires.
"""

from ml_collections import ConfigDict

from configs import a2d

VARIANTS = a2d.VARIANTS
PUBLISHED = (("j", 0.278), ("f", 0.308), ("j_and_f", 0.293))  # split "valid", which is not "valid_u"


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The recipe of A2D-Sentences for fewer epochs. Raises ValueError for a model that is not in VARIANTS."""
    config = a2d.get_config(model)
    config.dataset = "mevis"
    config.frame_interval = 5
    config.evaluation_split = "valid_u"
    config.published = tuple(("standard", *row) for row in PUBLISHED) if model == "lbdt4" else ()
    config.sentences_per_frame = 4  # a frame has about 14 sentences
    config.epochs = 2.0
    config.learning_rate_drops = (1.0, 1.5)
    config.shuffle_buffer = 1024  # a frame pair takes about 200 kB
    return config
