#!/usr/bin/env bash
# Reproduces a row of the paper's tables from a released checkpoint: converts it, evaluates it in both protocols and
# prints the scores, the published ones and the difference.
#
#   launch/published.sh a2d|jhmdb|mevis lbdt1|lbdt4 released.ckpt [--config.FIELD=VALUE ...]
#
#   A2D-Sentences      launch/published.sh a2d lbdt1 lbdt1.ckpt       launch/published.sh a2d lbdt4 lbdt4.ckpt
#   J-HMDB-Sentences   launch/published.sh jhmdb lbdt1 lbdt1.ckpt     launch/published.sh jhmdb lbdt4 lbdt4.ckpt
#   MeViS              launch/published.sh mevis lbdt4 trained.ckpt   split "valid", which only the benchmark's server can
#                      score: writes the zips to upload. MeViS' authors trained LBDT on MeViS and released no weights.
#
# Needs requirements-torch.txt, the dataset in data/raw and GloVe 840B, see docs/data.md. The output is in
# runs/published-<model>-<checksum of the file>; the same file is converted only once for both tables.
set -euo pipefail
if [[ $# -lt 3 || ! $1 =~ ^(a2d|jhmdb|mevis)$ || ! $2 =~ ^lbdt[14]$ ]]; then
  echo "usage: launch/published.sh a2d|jhmdb|mevis lbdt1|lbdt4 released.ckpt [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
table=$1 model=$2 released=$3
shift 3
if [[ ! -f $released ]]; then
  echo "There is no file $released." >&2
  exit 2
fi
workdir=runs/published-$model-$(cksum <"$released" | cut -d " " -f 1)
if [[ ! -e $workdir/checkpoints ]]; then
  python -m lbdt_jax.convert --from="$released" --to="$workdir"
fi
if [[ $table == mevis ]]; then
  set -- --config.evaluation_split=valid "$@"
fi
python -m lbdt_jax.main --config="configs/$table.py:$model" --mode=evaluate --workdir="$workdir" "$@"
