#!/usr/bin/env bash
# Starts a training, or the demonstration, on one process, all GPUs of a machine, or several machines: see usage.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<END
usage: bash train.sh                                 the demonstration
       bash train.sh ENTRY CONFIG [key=value ...]    a training

  bash train.sh train configs/train/smoke.yaml run.max_steps=8

ENTRY is one of: $(entries)
The same command again goes on from the newest checkpoint. What is missing is
installed into .venv first, unless the active Python environment has it.

Settings, from the environment:
  NPROC         processes on this machine (default: one per visible GPU)
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
                several machines: the same command on each of them; under
                srun the first two are known
  PYTHON        use this python, and skip the set-up
  OMP_NUM_THREADS
                threads of each of several processes (default: a fair share)

Exit codes: 0 done, 1 a bug, 2 wrong input, 3 the machine failed, 75 stopped by
a signal after saving. Several processes: 1 for every failure in training; the
run folder then has PREEMPTED if it was stopped, DONE if it is finished.
END
}

entries() {  # train, then what the files *_train.py and scripts/baseline.py are called here
    local file names=train
    for file in "$root"/*_train.py; do
        [ ! -f "$file" ] || names+=", $(basename "$file" _train.py)"
    done
    [ ! -f "$root/scripts/baseline.py" ] || names+=", baseline"
    echo "$names"
}

wrong() { echo "error: $*" >&2; exit 2; }

if [ $# = 0 ]; then
    PYTHON=${PYTHON:-$(bash "$root/scripts/setup.sh")}
    exec "$PYTHON" "$root/scripts/demo.py"
fi
case $1 in
    -h | --help) usage; exit ;;
    train) script=train.py ;;
    baseline) script=scripts/baseline.py ;;
    *) script=${1}_train.py ;;
esac
[ -f "$root/$script" ] || wrong "unknown entry '$1'; expected one of: $(entries). See bash train.sh --help"
shift
PYTHON=${PYTHON:-$(bash "$root/scripts/setup.sh")}

# torch counts: it knows CUDA_VISIBLE_DEVICES, and whether the driver is new enough for it
gpus=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")
if [ "$gpus" = 0 ] && nvidia-smi -L >/dev/null 2>&1; then
    echo "warning: nvidia-smi lists GPUs that this torch cannot use (driver too old for it?); training on the CPU" >&2
fi
NPROC=${NPROC:-$((gpus > 1 ? gpus : 1))}
NNODES=${NNODES:-${SLURM_STEP_NUM_NODES:-1}}
[[ $NPROC:$NNODES =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || wrong "NPROC=$NPROC, NNODES=$NNODES: expected numbers from 1"
[ "$gpus" = 0 ] || [ "$NPROC" -le "$gpus" ] || wrong "NPROC=$NPROC processes, but $gpus GPU(s) visible on $(hostname)"

launcher=("$PYTHON")
if [ "$((NPROC * NNODES))" -gt 1 ]; then
    # torchrun hides a config's message under its own traceback, and turns every exit code into 1: look first
    "$PYTHON" "$root/$script" "$@" --print-config >/dev/null
    launcher+=(-m torch.distributed.run --nproc-per-node "$NPROC")
    if [ "$NNODES" = 1 ]; then
        launcher+=(--standalone)
    else
        node=${NODE_RANK:-${SLURM_NODEID:-}}
        [ -n "$node" ] && [ -n "${MASTER_ADDR:-}" ] ||
            wrong "NNODES=$NNODES: set MASTER_ADDR to the host of the first machine, and NODE_RANK=0, 1, ... on each"
        launcher+=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}")
        launcher+=(--rdzv-id "${SLURM_JOB_ID:-sar2opt}" --rdzv-conf "is_host=$((node == 0))")
    fi
    known=$("$PYTHON" -m torch.distributed.run --help)
    # SIGUSR1 comes from SLURM. An unhandled signal would end torchrun and orphan its workers
    [[ $known != *--signals-to-handle* ]] || launcher+=(--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1)
    [[ $known != *--shutdown-timeout* ]] || launcher+=(--shutdown-timeout 120)  # seconds to write a checkpoint
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}
    [ "$gpus" != 0 ] || export ACCELERATE_USE_CPU=true  # else Accelerate starts independent trainings
fi
exec "${launcher[@]}" "$root/$script" "$@"
