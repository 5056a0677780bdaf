"""Measures speed and memory; needs neither a dataset nor TensorFlow.

    python -m lbdt_jax.benchmark [--config=configs/a2d.py [--config.FIELD=VALUE]] [--output=FILE.json]
    python -m lbdt_jax.benchmark --topology=v5e:2x2 [--config=...] [--batch_sizes=32] [--output=FILE.json]
    python -m lbdt_jax.benchmark --compare=A.json,B.json

On random inputs, over all devices: a training step and the forward pass for every batch size, and the forward pass for
several sentences per frame pair, which is encoded once. If TensorFlow and the records of config.dataset are available,
also the input pipeline, and training fed by it. FILE.png, next to FILE.json, plots the throughput. More flags:
--batch_sizes=8,16, --sentences=1,2,4,8, and --minutes=10, the time budget.

--topology compiles for TPUs that need not be there, with libtpu (pip install -r requirements-tpu.txt), and prints what
the compiler estimates: time, memory, traffic, collectives and the costliest parts. LBDT-4 takes minutes per program.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from configs import a2d
from input_pipeline.errors import exit_on_error, fail
from lbdt_jax.cli import atomic_write, define_config_flag, exit_on_help, explain_flags, parse_flags, write_json
from lbdt_jax.config import check_config

USAGE = "\n".join(line.strip() for line in __doc__.splitlines()[2:5])
#: Largest batch size that a flag accepts.
MAX_SAMPLES = 1_000_000
CONFIG = define_config_flag(None, "A file of configs/; default: LBDT-4 as published.", USAGE)
OUTPUT = flags.DEFINE_string("output", None, "A json file for the result; an existing one is replaced.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", "8,16", "Samples per batch, over all devices.")
SENTENCES = flags.DEFINE_list("sentences", "1,2,4,8", "Sentences per frame, on as many frames as the first batch size.")
MINUTES = flags.DEFINE_float(
    "minutes", 10.0, "Time budget; rows that would probably exceed it are skipped.", lower_bound=0.0
)
TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs to compile for instead of measuring, such as v5e:2x2.")
COMPARE = flags.DEFINE_list("compare", None, "Two results; prints the second one's speed relative to the first one's.")


def run(
    config: ConfigDict,
    batch_sizes: Sequence[int],
    sentences: Sequence[int],
    minutes: float,
    topology: str | None,
    output: Path | None,
) -> None:
    """Measures, or compiles for a topology, and prints the table row by row.

    The output is rewritten after every row, in case of an interruption.

    Raises:
      UserError: as `benchmark` and `estimate_all` do.
    """
    from lbdt_jax.benchmark.measure import benchmark
    from lbdt_jax.benchmark.report import COLUMNS, describe, plot, table_line
    from lbdt_jax.benchmark.topology import details, estimate_all

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurements if it can't be created
    if topology:
        print(f"Compiling for {topology} ...", flush=True)
        results = estimate_all(config, topology, batch_sizes, sentences, minutes)
    else:
        print("Measuring matrix products ...", flush=True)
        results = benchmark(config, batch_sizes, sentences, minutes)
    for result in results:
        if not result["rows"]:
            print(f"{describe(result)}\n\n{COLUMNS}")
            continue
        row = result["rows"][-1]
        print(table_line(row), flush=True)
        if "operations" in row:
            print(details(row, result["device"]["count"]), flush=True)
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
    if not values or not all(value.strip().isdecimal() and 1 <= int(value) <= MAX_SAMPLES for value in values):
        raise flags.Error(f"--{name}={','.join(values)}: expected positive integers up to {MAX_SAMPLES}, such as 8,16.")
    return [int(value) for value in values]


def main(arguments: list[str]) -> None:
    """Parses the command line and measures or compares."""
    try:
        exit_on_help(arguments, __doc__)
        parse_flags(arguments)
        config = a2d.get_config() if CONFIG.value is None else CONFIG.value
        config.to_dict()  # errors of the config file are raised here, not when the flags are parsed
        check_config(config)
        batch_sizes = positive_integers("batch_sizes", BATCH_SIZES.value)
        sentences = positive_integers("sentences", SENTENCES.value)
        if COMPARE.value is not None and len(COMPARE.value) != 2:
            raise flags.Error("--compare takes two results: --compare=A.json,B.json.")
        if not math.isfinite(MINUTES.value):
            raise flags.Error(f"--minutes={MINUTES.value}: expected a number of minutes, such as 10.")
        output = Path(OUTPUT.value) if OUTPUT.value else None
        if output and output.suffix != ".json":
            raise flags.Error(f"--output={output}: the name must end in .json.")
    except Exception as error:  # a configuration file is code
        fail(explain_flags(error, USAGE))

    # Imported late, so that wrong flags are reported at once.
    import jax

    from lbdt_jax.benchmark.report import compare, load
    from lbdt_jax.parallel import set_cpu_devices

    # Compilation is measured too: the cache of earlier runs must not shorten it.
    jax.config.update("jax_enable_compilation_cache", False)
    if TOPOLOGY.value:
        jax.config.update("jax_platforms", "cpu")  # leaves a TPU that is there to others
    set_cpu_devices(config.cpu_devices)
    with exit_on_error(f"\nStopped.{f' What was measured so far is in {output}.' if output else ''}"):
        if COMPARE.value:
            print(compare(*(load(Path(name)) for name in COMPARE.value)))
        else:
            run(config, batch_sizes, sentences, MINUTES.value, TOPOLOGY.value, output)


if __name__ == "__main__":
    main(sys.argv)
