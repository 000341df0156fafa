#!/usr/bin/env bash
# A recipe on the GPUs of several hosts, under Slurm:
#   sbatch scripts/slurm.sh RECIPE [options of gora run]
#   sbatch --nodes=4 --gpus-per-node=4 scripts/slurm.sh my.yaml --set train.epochs=2
# Submit it from a folder that all hosts share, with gora's environment active; `--resume` goes on after the time limit.
# One host needs no more than `gora run RECIPE`, which takes all of its GPUs.
#SBATCH --job-name=gora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=gora-%j.log
# Two minutes before the time limit gora is told to stop, and saves a checkpoint.
set -euo pipefail

: "${1:?usage: sbatch scripts/slurm.sh RECIPE [options of gora run]}"
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000))

if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then
  exec srun --ntasks-per-node=1 gora run "$@"
fi

# One task per host; each starts the processes of its GPUs. SLURM_NODEID is the task's own.
# shellcheck disable=SC2016
exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  nodes=$1 meeting=$2 recipe=$3
  shift 3
  exec gora run "$recipe" --nodes "$nodes" --node-rank "$SLURM_NODEID" --rendezvous "$meeting" "$@"
' gora "$SLURM_JOB_NUM_NODES" "$first:$port" "$@"
