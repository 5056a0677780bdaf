"""J-HMDB-Sentences, evaluated with a model that was trained on A2D-Sentences and never saw it.

    python -m lbdt_jax.main --config=configs/jhmdb.py --mode=evaluate --config.checkpoint=DIR

DIR is the workdir or checkpoint of configs/a2d.py, which also decides between LBDT-1 and LBDT-4. Time: not measured.

Published (928 sentences on three frames each, protocol "paper"), in percent:

    model    P@.5    P@.6    P@.7    P@.8    P@.9    mean precision    overall IoU    mean IoU
    LBDT-1   86.4    75.1    50.7    11.6     0.1              40.3           64.6        65.2
    LBDT-4   86.4    74.4    53.3    12.2     0.0              41.1           64.5        65.8

It needs the data set in data/raw/jhmdb_sentences (the command tells what to download) and the word vectors that the
model was trained with. There is nothing to train on: the data set has the split "test" only.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The evaluation as published; the network and its input's preparation come from the checkpoint."""
    config = base.get_config()
    config.dataset = "jhmdb_sentences"
    config.frame_interval = 5
    config.evaluation_split = "test"
    return config
