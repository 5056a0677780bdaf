#!/usr/bin/env bash
# One machine. All of its devices work for one process, which is what to use:
#
#   launch/local.sh [--dry-run] --config=configs/a2d.py --workdir=DIR [--config.FIELD=VALUE ...]
#
# With --processes=N first, N processes share the work as those of several machines would, to see that it works before
# machines are paid for; on a CPU each has --config.cpu_devices devices:
#
#   launch/local.sh --processes=2 --config=configs/shapes.py --config.cpu_devices=4 --workdir=DIR
#
# SIGTERM, Ctrl-C and the end of the terminal have them save and end with 143. When one fails the others are ended, and
# its status is given back. --dry-run prints what would be run. Run on a CPU, with 1 and 2 processes.
set -euo pipefail
dry_run=false processes=1
while [[ ${1:-} =~ ^--(dry-run|processes=[1-9][0-9]*)$ ]]; do
  if [[ $1 == --dry-run ]]; then dry_run=true; else processes=${1#*=}; fi
  shift
done
if [[ " $*" != *" --config="* || " $*" != *" --workdir="* ]]; then
  echo "usage: launch/local.sh [--dry-run] [--processes=N] --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
command=(python -m lbdt_jax.main "$@")
address=localhost:${PORT:-12355}
if $dry_run; then
  for ((process = 0; process < processes; process++)); do
    if ((processes > 1)); then
      printf "JAX_COORDINATOR_ADDRESS=%s JAX_NUM_PROCESSES=%d JAX_PROCESS_ID=%d " "$address" "$processes" "$process"
    fi
    printf "%q " "${command[@]}" && echo
  done
  exit
fi
if ((processes == 1)); then
  exec "${command[@]}"
fi
export JAX_COORDINATOR_ADDRESS=$address JAX_NUM_PROCESSES=$processes
children=() stopping=false
# Of Ctrl-C and the end of the terminal, which reach them, too, they are told in this way alone: else they would not save.
trap 'stopping=true; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT HUP
for ((process = 0; process < processes; process++)); do
  (
    trap '' INT HUP
    JAX_PROCESS_ID=$process exec "${command[@]}"
  ) &
  children+=($!)
done
while [[ -n $(jobs -rp) ]]; do
  if ! wait -n && ! $stopping; then # a failure, for the others to see and tell; they can't go on
    sleep 5 || true
    kill -KILL "${children[@]}" 2>/dev/null || true
  fi
done
status=0
for child in "${children[@]}"; do
  ended=0
  wait "$child" || ended=$?
  if ((status == 0 || status == 137)) && ((ended != 0)); then status=$ended; fi
done
exit "$status"
