"""Trains and evaluates.

    python -m lbdt_jax.main --config=configs/shapes.py [--workdir=DIR] [--mode=MODE] [--config.FIELD=VALUE]

Modes: "train", which ends with an evaluation of the newest checkpoint; "evaluate"; and "augmentations", which draws
training samples before and after augmentation to WORKDIR/augmentations.png. --config.checkpoint=WORKDIR/best evaluates
the best checkpoint of a training that was validated. To resume a run that was stopped, give the same command
again: it continues from the newest checkpoint. With several processes (see launch/), they train and evaluate together.

Exit status: 0 on success, 2 for an error that the user must fix, 130 after Ctrl-C, 143 (128 + 15) after SIGTERM, which
tells a scheduler that the job was interrupted by its signal and should be restarted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from input_pipeline.errors import exit_on_error, fail, say
from lbdt_jax.cli import define_config_flag, exit_on_help, explain_flags, parse_flags
from lbdt_jax.config import check_config

#: No space left on the disk, in the user's quota or under the process's file size limit. These errors name no file.
NO_SPACE_LEFT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: After an error, a process stays as long for others to report theirs: without the first one, JAX aborts them.
GRACE_SECONDS = 5

USAGE = __doc__.splitlines()[2].strip()
CONFIG = define_config_flag(None, "The experiment: a file of configs/.", USAGE)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all results; default: runs/<name of the config>.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "augmentations"],
    "Train and then evaluate, or evaluate only, or draw augmented training samples.",
)


def run(config: ConfigDict, workdir: Path, mode: str) -> None:
    """Trains if `mode` is "train", then evaluates; or only draws augmented samples."""
    if mode == "augmentations":
        from lbdt_jax.visualization.augmentations import save_augmentations

        save_augmentations(config, workdir / "augmentations.png")
        return
    from lbdt_jax.checkpoint import load_checkpoint
    from lbdt_jax.checkpoint_folder import BEST, find_checkpoint
    from lbdt_jax.evaluate import evaluate
    from lbdt_jax.hub import locate_checkpoint
    from lbdt_jax.parallel import exit_on_sigterm
    from lbdt_jax.train import train

    if mode == "train":
        validates = config.validation_every_epochs or config.validation_every_steps
        own_best = (
            validates and config.best_measure and Path(config.checkpoint).absolute() == (workdir / BEST).absolute()
        )
        if config.checkpoint and not own_best:  # it is evaluated after training
            find_checkpoint(locate_checkpoint(config.checkpoint))
        train(config, workdir)
    exit_on_sigterm()  # an evaluation has nothing to save
    path = locate_checkpoint(config.checkpoint) if config.checkpoint else workdir
    evaluate(load_checkpoint(path, config.evaluated_weights), config, workdir)


def start_jax(config: ConfigDict, workdir: Path) -> None:
    """Configures JAX and connects the processes of this run; all but the first one are silenced."""
    import jax

    from lbdt_jax.cpu import onednn
    from lbdt_jax.parallel import initialize_distributed, is_first_process, set_cpu_devices, warm_up_collectives

    if onednn.enabled():  # XLA can't serialize such programs
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.values["jax_compilation_cache_dir"]:  # set JAX_COMPILATION_CACHE_DIR to share one
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    initialize_distributed()
    set_cpu_devices(config.cpu_devices)
    # tqdm, not imported yet, reads these.
    if sys.stderr and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; log files would grow by 60 MB a day
    if not is_first_process():
        os.environ["TQDM_DISABLE"] = "1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # gloo doesn't print through sys.stdout
    warm_up_collectives()


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends this process at once if the context ends with an error, and other processes are connected.

    At exit JAX waits for the others, which may be waiting for this one: after five minutes it would give up, and abort
    with another status. After SIGTERM, all processes leave together.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        jax = sys.modules.get("jax")
        if jax is None or not jax.distributed.is_initialized() or status in (None, 0, 128 + signal.SIGTERM):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
            say("If another process of this run has failed, its message says why.", sys.stderr)
        try:
            if sys.stdout:
                sys.stdout.flush()
            time.sleep(GRACE_SECONDS)
        finally:
            os._exit(status if isinstance(status, int) else 1)


def main(arguments: list[str]) -> None:
    """Parses the command line and trains or evaluates."""
    try:
        exit_on_help(arguments, __doc__)
        parse_flags(arguments)
        if CONFIG.value is None:
            raise flags.Error("--config is missing. Begin with --config=configs/shapes.py.")
        # Errors of the config file are raised here, not when the flags are parsed.
        if not hasattr(CONFIG.value, "to_dict"):
            raise flags.Error("get_config() in the file of --config must return a ConfigDict, as in configs/base.py.")
        check_config(CONFIG.value)
    except Exception as error:  # a configuration file is code
        fail(explain_flags(error, USAGE))
    config_file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = Path(WORKDIR.value or Path("runs") / config_file.name.replace(".py", "").replace(":", "-"))
    logging.set_verbosity(logging.FATAL)  # orbax also logs a traceback of every error that it raises

    def describe_os_error(error: OSError) -> str | None:
        if error.filename is None and error.errno not in NO_SPACE_LEFT:
            return None  # not about a file, so it is a bug
        return f"{error.filename or workdir}: {error.strerror}."

    after_interrupt = f" The same command resumes from the newest checkpoint in {workdir}."
    stopped = f"\nStopped.{after_interrupt if MODE.value == 'train' else ''}"
    with ending_at_once(), exit_on_error(stopped, describe_os_error):
        start_jax(CONFIG.value, workdir)

        # Imported late, so that wrong flags are reported at once.
        from lbdt_jax.checkpoint import hide_abandoned_writes
        from lbdt_jax.parallel import Stopped

        hide_abandoned_writes()
        try:
            run(CONFIG.value, workdir, MODE.value)
        except Stopped as error:
            fail(f"\n{error}", status=128 + signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv)
