"""J-HMDB-Sentences: zero-shot evaluation of a model trained on A2D-Sentences.

    python -m lbdt_jax.main --config=configs/jhmdb.py --mode=evaluate --config.checkpoint=DIR

DIR is the workdir or a checkpoint of configs/a2d.py, or a converted checkpoint (python -m lbdt_jax.convert), which also
determines the network. jhmdb.py:lbdt1 compares with the published LBDT-1 instead of LBDT-4.

Cost: 2,784 samples, 2e14 floating-point operations: minutes on any machine. Not measured.
Result: published, protocol "paper": mean precision 41.1, overall IoU 64.5, mean IoU 65.8 (LBDT-1: 40.3, 64.6, 65.2).
Our own scores: not measured.

Requires the dataset in data/raw/jhmdb_sentences (the command says what to download) and the word vectors that the
model was trained with. The dataset has only the split "test", so there is no training.
"""

from ml_collections import ConfigDict

from configs import a2d

VARIANTS = a2d.VARIANTS
#: Scores of 928 sentences on three frames each, protocol "paper" [R]; sources as in base.py.
PUBLISHED = {
    "lbdt1": (0.864, 0.751, 0.507, 0.116, 0.001, 0.403, 0.646, 0.652),
    "lbdt4": (0.864, 0.744, 0.533, 0.122, 0.000, 0.411, 0.645, 0.658),
}


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The published evaluation. Raises ValueError for a model that is not in VARIANTS."""
    config = a2d.get_config(model)
    config.dataset = "jhmdb_sentences"
    config.frame_interval = 5
    config.evaluation_split = "test"
    config.validation_every_epochs = 0.0  # there is no training
    config.keep_checkpoints = 2
    config.published = tuple(("paper", *row) for row in zip(a2d.MEASURES, PUBLISHED[model], strict=True))
    return config
