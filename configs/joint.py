"""LBDT-4 on videos and images together: Refer-YouTube-VOS and RefCOCO, three samples to one.

    python -m lbdt_jax.main --config=configs/joint.py                     joint.py:lbdt1 for LBDT-1

An epoch is a pass through Refer-YouTube-VOS, with a third as many samples of RefCOCO beside it. Both are evaluated:
"valid" as in configs/refer_youtube_vos.py, and "val" as in configs/refcoco.py. Others, with shares of your choice:

    --config.training_datasets="(('refer_youtube_vos', 3.0), ('refcoco', 1.0), ('refcocog', 1.0))"

Cost: four thirds of configs/refer_youtube_vos.py, about 27 times configs/a2d.py. Estimated, not measured.
Result: not measured. The recipe is ours; the shares are a starting point.

Requires both datasets, in data/raw/refer_youtube_vos and data/raw/refcoco, and otherwise what configs/a2d.py requires.
"""

from ml_collections import ConfigDict

from configs import refer_youtube_vos

VARIANTS = refer_youtube_vos.VARIANTS


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The recipe of Refer-YouTube-VOS. Raises ValueError for a model that is not in VARIANTS."""
    config = refer_youtube_vos.get_config(model)
    config.training_datasets = (("refer_youtube_vos", 3.0), ("refcoco", 1.0))
    config.evaluation_datasets = (("refer_youtube_vos", "valid"), ("refcoco", "val"))
    config.validation_datasets = (("refcoco", "val"),)  # if it is turned on; the masks of "valid" are not public
    config.published = ()  # trained on Refer-YouTube-VOS alone
    return config
