"""LBDT-4 on A2D-Sentences, as published.

    python -m lbdt_jax.main --config=configs/a2d.py            LBDT-4; a2d.py:lbdt1 for LBDT-1

Cost: 15 epochs of about 16,000 samples, 5.1e16 floating-point operations: 17 minutes at 50 TFLOP/s, and a validation on
the test split after each. Not measured.
Result: published, protocol "paper": mean precision 47.2, overall IoU 70.4, mean IoU 62.1 (LBDT-1: 46.1, 70.1, 61.2);
the evaluation prints them below its own scores. Our own scores: not measured.

Requires the dataset in data/raw/a2d_sentences, GloVe 840B in data/glove.840B.300d.txt and torchvision's ResNet-50 in
data/resnet50.pth, which needs PyTorch to load (requirements-torch.txt); the command says what to download.
"""

from ml_collections import ConfigDict

from configs import base

#: For each network the number of bridges in a duplex transfer.
VARIANTS = {"lbdt1": 1, "lbdt4": 4}
MEASURES = (*(f"precision@0.{tenth}" for tenth in range(5, 10)), "mean_precision", "overall_iou", "mean_iou")
#: Scores on the test split, protocol "paper" [R]; sources as in base.py.
PUBLISHED = {
    "lbdt1": (0.711, 0.661, 0.578, 0.416, 0.120, 0.461, 0.701, 0.612),
    "lbdt4": (0.730, 0.674, 0.590, 0.421, 0.132, 0.472, 0.704, 0.621),
}


def get_config(model: str = "lbdt4") -> ConfigDict:
    """The published recipe. Raises ValueError for a model that is not in VARIANTS."""
    base.check_variant("a2d.py", model, VARIANTS)
    config = base.get_config()
    config.model.transfer_layers = VARIANTS[model]
    config.published = tuple(("paper", *row) for row in zip(MEASURES, PUBLISHED[model], strict=True))
    # Validated on "test" after every epoch, and the checkpoints of the last six epochs kept [R]
    config.validation_every_epochs = 1.0
    config.keep_checkpoints = 6
    # ImageNet weights (IMAGENET1K_V1): https://download.pytorch.org/models/resnet50-0676ba61.pth [R]
    config.initial_weights = "data/resnet50.pth"
    return config
