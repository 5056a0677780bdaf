#!/usr/bin/env bash
# One machine. One process uses all of its devices; this is the normal way to train:
#
#   launch/local.sh [--dry-run] --config=configs/a2d.py --workdir=DIR [--config.FIELD=VALUE ...]
#
# With --processes=N as first argument, N processes share the work as on N machines, to test a distributed run before
# renting machines. On a CPU each process has --config.cpu_devices devices:
#
#   launch/local.sh --processes=2 --config=configs/shapes.py --config.cpu_devices=4 --workdir=DIR
#
# On SIGTERM, Ctrl-C or a closed terminal the processes save a checkpoint and exit with status 143. If one fails, the
# others are killed and its status is returned. --dry-run prints the commands. Tested on a CPU with 1 and 2 processes.
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
if ((processes > 1)); then # at a free port, so that several runs on one machine keep apart
  find_port='import socket; print(socket.create_server(("localhost", 0)).getsockname()[1])'
  address=localhost:${PORT:-$(python -c "$find_port")}
fi
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
# The terminal sends SIGINT and SIGHUP to the children too. They ignore those and get SIGTERM, on which they save.
trap 'stopping=true; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT HUP
for ((process = 0; process < processes; process++)); do
  (
    trap '' INT HUP
    JAX_PROCESS_ID=$process exec "${command[@]}"
  ) &
  children+=($!)
  if $stopping; then kill -TERM $! 2>/dev/null || true; fi # the signal came before this process was among the children
done
while [[ -n $(jobs -rp) ]]; do
  if ! wait -n && ! $stopping; then # one failed, so the others can't continue
    sleep 5 || true # time for them to report the failure
    kill -KILL "${children[@]}" 2>/dev/null || true
  fi
done
status=0
for child in "${children[@]}"; do
  child_status=0
  wait "$child" || child_status=$?
  # 137 is our own SIGKILL; report the failure that caused it.
  if ((status == 0 || status == 137)) && ((child_status != 0)); then status=$child_status; fi
done
exit "$status"
