"""LBDT-4 on Ref-DAVIS17, fine-tuned from Refer-YouTube-VOS.

    python -m lbdt_jax.main --config=configs/ref_davis17.py               ref_davis17.py:lbdt1 for LBDT-1

Starts from the newest checkpoint in runs/refer_youtube_vos, trains on "train" and evaluates on "val": J, boundary F and
J&F, averaged over the four annotators and per expression. The label maps for davis2017-evaluation go to
WORKDIR/evaluation/ref_davis17-val-annotators. Without fine-tuning, as in some papers:

    python -m lbdt_jax.main --config=configs/ref_davis17.py --mode=evaluate --config.checkpoint=runs/refer_youtube_vos

Cost: 2 epochs at a tenth of the learning rate, less than configs/a2d.py. Not measured.
Result: later papers quote 54.1 to 54.3 J&F for LBDT-4. Its recipe is not published, this one is ours. Our own scores:
not measured.

Requires the dataset in data/raw/ref_davis17 and GloVe 840B in data/glove.840B.300d.txt.
"""

from ml_collections import ConfigDict

from configs import a2d

VARIANTS = a2d.VARIANTS
PUBLISHED = (("j_and_f", 0.543),)  # LBDT-4, as quoted by later papers


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The fine-tuning recipe. Raises ValueError for a model that is not in VARIANTS."""
    config = a2d.get_config(model)
    config.dataset = "ref_davis17"
    config.frame_interval = 2
    config.frame_rate = 24.0
    config.initial_weights = f"runs/refer_youtube_vos{'' if model == 'lbdt4' else f'-{model}'}"
    config.evaluation_split = "val"
    config.validation_every_epochs = 0.0  # two short epochs
    config.keep_checkpoints = 2
    config.published = tuple(("standard", *row) for row in PUBLISHED) if model == "lbdt4" else ()
    config.epochs = 2.0
    config.learning_rate = 1e-5
    config.learning_rate_drops = (1.0,)
    config.shuffle_buffer = 1024  # a frame pair takes about 200 kB
    return config
