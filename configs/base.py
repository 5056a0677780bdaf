"""Every field of a configuration, once: its meaning, unit and source. The values are the published ones.

Sources: [P] the LBDT paper (Ding et al., CVPR 2022, arXiv 2206.03789), [R] its released code.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The published recipe for LBDT-4 on A2D-Sentences; the other configurations change what differs."""
    config = ConfigDict()
    config.seed = 3407  # [R]

    # -- data
    config.dataset = "a2d_sentences"
    config.data_dir = "data"  # TFRecords go to DATA_DIR/<dataset>/
    config.raw = ""  # the unpacked data set; "" means DATA_DIR/raw/<dataset>
    config.frame_interval = 6  # frames from the earlier frame to the frame [R]
    config.frame_rate = 30.0  # of the data set's videos, frames per second; prediction keeps the interval in seconds
    config.image_size = (320, 320)  # height and width in pixels, multiples of 32 [P 4.1]
    config.max_words = 25  # tokens kept of a sentence [R]
    # What reads the sentences: "glove_lstm", the LSTM over word vectors as published, or a pretrained BERT, RoBERTa or
    # XLM-RoBERTa: the name of an installed package that holds one, or a local folder with config.json, tokenizer.json
    # and model.safetensors.
    config.text_encoder = "glove_lstm"
    config.tokenizer = ""  # SHA-256 of the transformer's tokenizer; training fills it in
    # Word vectors of "glove_lstm": a GloVe text file, or the name of an installed package that holds some.
    config.word_vectors = "data/glove.840B.300d.txt"  # [P 4.1]

    # -- model (widths in channels)
    config.model = ConfigDict()
    config.model.resnet_depth = 50  # 18, 34, 50 or 101, both streams [P 3.1]
    config.model.stream_width = 64  # of the stem; res5 is 8 times (18, 34) or 32 times (50, 101) as wide
    config.model.transfer_layers = 4  # LBDT-1 or LBDT-4; 0 removes the language-bridged transfer [P table 3]
    config.model.transfer_width = 512  # of the transfer, the LSTM and the sentence [P 4.1]
    config.model.attention_heads = 8  # [R]
    config.model.dropout = 0.1  # inside the transfer [R], and in a transformer that is trained
    config.model.decoder_width = 128  # [R]
    config.model.channel_gates = True  # of the bilateral channel activation; False only fuses the decoders [P table 3]
    config.model.transformer = ConfigDict()  # sizes of the transformer; training fills them in
    # For big pictures on GPUs and TPUs: training keeps what enters residual blocks and bridges, and computes what is
    # inside them twice. XLA:CPU notices that, and keeps it all the same.
    config.model.rematerialise = False
    config.model.dtype = "float32"  # of the computation; "bfloat16" on TPUs and GPUs. Parameters stay float32

    # -- training
    # Weights to start from, "" for random ones: an ImageNet ResNet for both streams (torchvision's .pth, a .safetensors
    # file or a local folder of a Hugging Face repository), or a whole LBDT (.ckpt, or a folder with our checkpoint).
    config.initial_weights = ""
    config.batch_size = 16  # samples over all devices: 2 GPUs with 8 each [R]
    config.sentences_per_frame = 1  # samples of a batch that share a frame pair, which is then encoded once
    config.epochs = 15.0  # [R]
    config.learning_rate = 1e-4  # [P 4.1]
    config.text_encoder_learning_rate = 0.0  # of a transformer, with the same course as the other; 0.0: it is frozen
    config.warmup_steps = 0  # linear from 0; the published code has none
    config.learning_rate_drops = (10.0, 12.0, 14.0)  # in epochs: the rate is halved at each [R]
    config.weight_decay = 5e-4  # on every parameter, norms and biases too [R]
    config.bce_weight = 0.5  # of the binary cross-entropy [P 3.5]
    config.bce_positive_weight = 1.5  # of object pixels inside it [R]
    config.dice_weight = 0.5  # of the dice loss [P 3.5]
    config.cpu_devices = 1  # virtual devices, where JAX finds no others; small networks run faster with one per core
    config.global_batch_norm = False  # True: statistics over all devices; published: per device
    config.shuffle_buffer = 4096  # encoded samples, about 60 kB each at A2D's size
    config.decoded_cache = 0  # frames, and masks, that stay decoded at the model's size; for small data sets
    config.log_every_steps = 20
    config.picture_every_steps = 500
    config.checkpoint_every_steps = 500
    config.checkpoint_every_minutes = 10.0  # and also so often, looked at when the loss is logged; 0: by steps alone
    config.keep_checkpoints = 2

    # -- evaluation
    config.checkpoint = ""  # the folder to evaluate; "" means the newest one in WORKDIR
    config.evaluation_split = "test"
    config.evaluation_frames = 8  # frame pairs encoded at once, on each device
    config.evaluation_sentences = 16  # sentences answered at once, on each device
    config.published = ()  # (protocol, name in the json, score), to print below ours
    config.contact_sheet_samples = 8  # best, worst and random samples on each sheet
    config.evaluation_attention_sheets = 3  # of the random samples, those whose attention is drawn
    return config
