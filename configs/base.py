"""All configuration fields, with meaning, unit and source. The values are the published ones (see configs/a2d.py).

lbdt_jax/config.py knows the type and the range of each.

Not run by itself: the other files of this folder build on it, and each opens with its command, cost and result.
Sources: [P] the LBDT paper (Ding et al., CVPR 2022, arXiv 2206.03789), [R] its released code.
"""

from collections.abc import Collection

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The published recipe for LBDT-4 on A2D-Sentences; other configurations override what differs."""
    config = ConfigDict()
    config.seed = 3407  # [R]

    # -- data
    config.dataset = "a2d_sentences"
    # Several datasets in one training: (dataset, share of the samples) each, as in configs/joint.py; () for
    # config.dataset alone. config.dataset is one of them: an epoch is a pass through it, and raw, frame_interval,
    # frame_rate and published are its own.
    config.training_datasets = ()
    config.data_dir = "data"  # the TFRecords are in DATA_DIR/<dataset>/
    config.raw = ""  # folder of the unpacked dataset; "" for DATA_DIR/raw/<dataset>
    config.frame_interval = 6  # distance of the earlier frame, in frames [R]
    # Train on sentences without a target, with empty masks, in datasets that have them. Not in the published loaders.
    config.no_target_sentences = False
    config.frame_rate = 30.0  # frames per second of the dataset's videos; prediction keeps the interval in seconds
    config.image_size = (320, 320)  # height and width in pixels, multiples of 32 [P 4.1]
    config.max_words = 25  # longer sentences are cut to this many tokens [R]
    # "glove_lstm", the published LSTM over word vectors, or a pretrained BERT, RoBERTa or XLM-RoBERTa: the name of an
    # installed package with such a model, or a local folder with config.json, tokenizer.json and model.safetensors.
    config.text_encoder = "glove_lstm"
    config.tokenizer = ""  # SHA-256 of the transformer's tokenizer; filled in by training
    # Word vectors for "glove_lstm": a GloVe text file, or the name of an installed package with word vectors.
    config.word_vectors = "data/glove.840B.300d.txt"  # [P 4.1]

    # -- model (widths in channels)
    config.model = ConfigDict()
    # Of both streams: "resnet" as published, "convnext_tiny", "convnext_small" or "convnext_base".
    config.model.encoder = "resnet"
    config.model.resnet_depth = 50  # 18, 34, 50 or 101 [P 3.1]; without effect on ConvNeXt
    # Of a ResNet's stem; res5 is 8 times (depth 18, 34) or 32 times (50, 101) as wide. A ConvNeXt has its published
    # channels at 64, and they are proportional to it.
    config.model.stream_width = 64
    config.model.transfer_layers = 4  # LBDT-1 or LBDT-4; 0 removes the language-bridged transfer [P table 3]
    config.model.transfer_width = 512  # of the transfer, the LSTM and the sentence feature [P 4.1]
    config.model.attention_heads = 8  # [R]
    config.model.dropout = 0.1  # in the transfer [R], and in a transformer that is fine-tuned
    config.model.decoder_width = 128  # [R]
    config.model.channel_gates = True  # bilateral channel activation; False only fuses the two decoders [P table 3]
    # False: the temporal stream reads the earlier frame itself, not how far the frame differs from it [P 3.1].
    config.model.frame_difference = True
    config.model.transformer = ConfigDict()  # sizes of the transformer; filled in by training
    # For large images on GPUs and TPUs: the backward pass recomputes activations inside residual blocks and transfers
    # instead of keeping them. Has no effect on CPUs, where XLA keeps them anyway.
    config.model.rematerialise = False
    config.model.dtype = "float32"  # of the computation; "bfloat16" for TPUs and GPUs. Parameters stay float32

    # -- training
    # "" for random ones, an ImageNet ResNet for both streams (torchvision's .pth, a .safetensors file or a local folder
    # of a Hugging Face repository), or a complete LBDT (.ckpt, or a folder with a checkpoint of ours). Instead of a
    # folder also OWNER/NAME, a repository of the Hugging Face Hub.
    config.initial_weights = ""
    config.batch_size = 16  # samples on all devices together; published: 8 on each of 2 GPUs [R]
    config.sentences_per_frame = 1  # samples of a batch that share a frame pair, which is encoded only once
    config.epochs = 15.0  # [R]
    config.learning_rate = 1e-4  # [P 4.1]
    config.text_encoder_learning_rate = 0.0  # of a transformer, with the same schedule; 0.0 freezes it
    # Of both streams, relative to the rest; 0.0 keeps their weights, but not their running statistics. Published: 1.0.
    config.encoder_learning_rate_factor = 1.0
    config.warmup_steps = 0  # linear from 0; none in the published code
    config.learning_rate_drops = (10.0, 12.0, 14.0)  # in epochs; the learning rate is halved at each [R]
    config.weight_decay = 5e-4  # on all parameters, norms and biases included [R]
    config.bce_weight = 0.5  # of the binary cross-entropy [P 3.5]
    config.bce_positive_weight = 1.5  # of object pixels in the binary cross-entropy [R]
    config.dice_weight = 0.5  # of the dice loss [P 3.5]
    config.cpu_devices = 1  # virtual devices if there is no accelerator; small networks run faster with one per core
    config.global_batch_norm = False  # True for statistics over all devices; published: per device
    # Number of groups of sentences_per_frame samples over which those of a frame pair are spread. Until all are used,
    # the frame pair is kept encoded: about 60 kB for A2D-Sentences.
    config.shuffle_buffer = 4096
    config.decoded_cache = 0  # frames, and masks, kept decoded at the model's size; for small datasets

    # -- augmentation of training samples: none in the published code
    config.augment_flip = 0.0  # probability of mirroring, with "left" and "right" swapped in the sentences
    # Smallest and largest scale of the objects, uniform in its logarithm. Above 1, a part of the frame is cropped;
    # below 1, the frame is surrounded by gray. Crops, and decoded_cache then keeps, frames of the original size.
    config.augment_scale = (1.0, 1.0)
    config.augment_min_visible = 0.25  # share of every object that a crop keeps; 0.0 lets objects disappear
    # Largest change of each factor: 0.4 for factors from 0.6 to 1.4, as torchvision's ColorJitter.
    config.augment_brightness = 0.0
    config.augment_contrast = 0.0
    config.augment_saturation = 0.0
    config.augment_hue = 0.0  # largest shift in turns of the color wheel; above 0.05, names of colors become wrong
    config.sentences_per_epoch = 0  # of each frame pair, drawn anew in every epoch; 0 for all of them

    # -- logging and checkpoints
    config.log_every_steps = 20  # metrics, to TensorBoard and the progress bar
    config.picture_every_steps = 500  # predictions, to WORKDIR/pictures and TensorBoard
    config.checkpoint_every_steps = 500
    config.checkpoint_every_minutes = 10.0  # additionally, checked whenever metrics are logged; 0.0 to turn off
    config.keep_checkpoints = 2  # the newest ones; those with a validation score before those without

    # -- training: validation during training, and the best checkpoint
    # At most one of these two is above 0; the last step is validated, too. Published: every epoch [R], as in a2d.py.
    config.validation_every_epochs = 0.0
    config.validation_every_steps = 0
    config.validation_split = ""  # of all datasets of the training; "" to validate on what is evaluated
    config.validation_datasets = ()  # (dataset, split) each, instead of config.validation_split
    # The checkpoint that is best by this measure, PROTOCOL/MEASURE as in the json of an evaluation, is kept beside the
    # newest ones; "" for none. With several datasets by its mean over them, or DATASET-SPLIT/PROTOCOL/MEASURE for one.
    config.best_measure = "paper/mean_iou"

    # -- training: options beyond the published recipe, off by default
    # Of the exponential moving average of the weights, such as 0.999 (MDETR, arXiv 2104.12763); 0.0 for none.
    config.ema_decay = 0.0
    # Which weights are validated, evaluated, predicted with and exported: "trained", "ema" for their average, or "" for
    # the average where there is one.
    config.evaluated_weights = ""
    # "adamw" as published, or "muon" (arXiv 2502.16982), which makes steps of the same size at the same learning rate.
    config.optimizer = "adamw"
    config.clip_gradient_norm = 0.0  # largest norm of all gradients together (ReferFormer: 0.1); 0.0 for no limit
    # "drops", or "cosine" for a half cosine that ends at 0 (arXiv 1608.03983) and does not use learning_rate_drops.
    config.learning_rate_schedule = "drops"
    config.focal_weight = 0.0  # of the focal loss (MTTR: 2, beside 5 for dice and 0 for the cross-entropy)
    config.focal_alpha = 0.25  # weight of object pixels in the focal loss; others weigh 1 - alpha (arXiv 1708.02002)
    config.focal_gamma = 2.0  # how little pixels weigh that are right already, in the focal loss (arXiv 1708.02002)

    # -- evaluation
    # To evaluate: a checkpoint's folder, the workdir of a training for its newest one, DIR/best for the best one of the
    # workdir DIR, or OWNER/NAME on the Hugging Face Hub; "" for the newest one in WORKDIR.
    config.checkpoint = ""
    config.evaluation_split = "test"
    # What to evaluate, (dataset, split) each; () for config.evaluation_split of all datasets of the training.
    config.evaluation_datasets = ()
    config.evaluation_frames = 8  # frame pairs encoded at once on each device
    config.evaluation_sentences = 16  # sentences segmented at once on each device
    config.published = ()  # (protocol, measure, score) to print below our scores
    config.contact_sheet_samples = 8  # samples on each sheet: best, worst and random ones; 0 for no sheets
    config.evaluation_attention_sheets = 3  # number of random samples whose attention is drawn
    return config


def check_variant(file: str, variant: str, variants: Collection[str]) -> None:
    """Raises ValueError, with those that there are, for a FILE:VARIANT that is not among VARIANTS of the file."""
    if variant not in variants:
        choices = " or ".join(f"{file}:{name}" for name in variants)
        raise ValueError(f"configs/{file}:{variant} is unknown; choose {choices}.")
