"""Measures speed and memory; needs neither a dataset nor TensorFlow.

    python -m lbdt_jax.benchmark [--config=configs/a2d.py [--config.FIELD=VALUE]] [--output=FILE.json]
    python -m lbdt_jax.benchmark --compare=A.json,B.json

On random inputs, over all devices: a training step and the forward pass for every batch size, and the forward pass for
several sentences per frame pair, which is encoded once. If TensorFlow and the records of config.dataset are available,
also the input pipeline, and training fed by it. FILE.png, next to FILE.json, plots the throughput. More flags:
--batch_sizes=8,16, --sentences=1,2,4,8, and --minutes=10, the time budget.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import a2d
from input_pipeline.errors import exit_on_error, fail
from lbdt_jax.cli import atomic_write, explain_flags, write_json

USAGE = "\n".join(line.strip() for line in __doc__.splitlines()[2:4])
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; default: LBDT-4 as published.", lock_config=True
)
OUTPUT = flags.DEFINE_string("output", None, "A json file for the result; an existing one is replaced.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", "8,16", "Samples per batch, over all devices.")
SENTENCES = flags.DEFINE_list("sentences", "1,2,4,8", "Sentences per frame, on as many frames as the first batch size.")
MINUTES = flags.DEFINE_float(
    "minutes", 10.0, "Time budget; rows that would probably exceed it are skipped.", lower_bound=0.0
)
COMPARE = flags.DEFINE_list("compare", None, "Two results; prints the second one's speed relative to the first one's.")


def run(
    config: ConfigDict, batch_sizes: Sequence[int], sentences: Sequence[int], minutes: float, output: Path | None
) -> None:
    """Measures, prints the table row by row, and rewrites the output after every row, in case it is interrupted.

    Raises:
      UserError: as `benchmark` does.
    """
    from lbdt_jax.benchmark.measure import benchmark
    from lbdt_jax.benchmark.report import COLUMNS, describe, plot, table_line

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurements if it can't be created
    print("Measuring matrix products ...", flush=True)
    for result in benchmark(config, batch_sizes, sentences, minutes):
        if not result["rows"]:
            print(f"{describe(result)}\n\n{COLUMNS}")
            continue
        print(table_line(result["rows"][-1]), flush=True)
        if output:
            write_json(result, output)
    if result.get("peak_bytes"):
        print(f"\nPeak memory of a device: {result['peak_bytes'] / 1e9:.2f} GB.")
    figure = plot(result) if output else None
    if output and figure:
        with atomic_write(output.with_suffix(".png")) as temporary:
            figure.savefig(temporary, format="png")
        print(f"\nResult: {output}; plot: {output.with_suffix('.png')}")


def positive_integers(name: str, values: Sequence[str]) -> list[int]:
    """The values of a flag as integers. Raises flags.Error if there is none, or one is not a positive integer."""
    if not values or not all(value.strip().isdecimal() and int(value) for value in values):
        raise flags.Error(f"--{name}={','.join(values)}: expected positive integers, such as 8,16.")
    return [int(value) for value in values]


def main(arguments: list[str]) -> None:
    """Parses the command line and measures or compares."""
    try:
        rest = flags.FLAGS(arguments)[1:]
        config = a2d.get_config() if CONFIG.value is None else CONFIG.value
        config.to_dict()  # errors of the config file are raised here, not when the flags are parsed
        if rest:
            raise flags.Error(f"{rest[0]}: unexpected argument; only flags are accepted.")
        batch_sizes = positive_integers("batch_sizes", BATCH_SIZES.value)
        sentences = positive_integers("sentences", SENTENCES.value)
        if COMPARE.value is not None and len(COMPARE.value) != 2:
            raise flags.Error("--compare takes two results: --compare=A.json,B.json.")
        output = Path(OUTPUT.value) if OUTPUT.value else None
        if output and output.suffix != ".json":
            raise flags.Error(f"--output={output}: the name must end in .json.")
    except (flags.Error, AttributeError, OSError, TypeError, ValueError) as error:
        fail(explain_flags(error, USAGE))

    # Imported late, so that wrong flags are reported at once.
    import jax

    from lbdt_jax.benchmark.report import compare, load
    from lbdt_jax.parallel import set_cpu_devices

    # Compilation is measured too: the cache of earlier runs must not shorten it.
    jax.config.update("jax_enable_compilation_cache", False)
    set_cpu_devices(config.cpu_devices)
    with exit_on_error(f"\nStopped.{f' What was measured so far is in {output}.' if output else ''}"):
        if COMPARE.value:
            print(compare(*(load(Path(name)) for name in COMPARE.value)))
        else:
            run(config, batch_sizes, sentences, MINUTES.value, output)


if __name__ == "__main__":
    main(sys.argv)
