"""Pre-training of LBDT-4 on still images: RefCOCO, RefCOCO+, RefCOCOg or gRefCOCO.

    python -m lbdt_jax.main --config=configs/refcoco.py             or refcoco.py:refcoco_plus, :refcocog, :grefcoco

The earlier frame of an image is a small warp of it. Evaluates on "val": overall and mean IoU, precision@K, and for
gRefCOCO the scores of GRES. The result goes on to video with

    python -m lbdt_jax.main --config=configs/a2d.py --config.initial_weights=runs/refcoco

Cost: 10 epochs of about 120,000 samples, about five times configs/a2d.py. Estimated, not measured.
Result: not measured. In the literature such pre-training lifts A2D-Sentences' mean IoU from 64.1 to 69.6 (ReferFormer,
Video-Swin-T). The recipe is ours.

Requires the dataset in data/raw/refcoco (or the other name), with COCO's train2014 images in it, and otherwise what
configs/a2d.py requires.
"""

from ml_collections import ConfigDict

from configs import a2d, base

VARIANTS = ("refcoco", "refcoco_plus", "refcocog", "grefcoco")


def get_config(dataset: str = "refcoco") -> ConfigDict:
    """The recipe of A2D-Sentences for fewer epochs. Raises ValueError for a dataset that is not in VARIANTS."""
    base.check_variant("refcoco.py", dataset, VARIANTS)
    config = a2d.get_config()
    config.dataset = dataset
    config.frame_interval = 1  # has no meaning
    config.evaluation_split = "val"
    config.published = ()
    config.sentences_per_frame = 2  # an image has about 7 sentences
    config.epochs = 10.0
    config.learning_rate_drops = (6.0, 8.0, 9.0)
    return config
