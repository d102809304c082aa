#!/usr/bin/env bash
#SBATCH --job-name wsss_nb
#SBATCH --nodes 1
#SBATCH --ntasks 1
#SBATCH --cpus-per-task 16
#SBATCH --time 24:00:00
#SBATCH --signal B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output %x-%j.log
#
# A whole run on one node, on as many GPUs as the job has; it puts itself back into the queue when its time is up:
#
#     sbatch --gpus 4 data_scripts/slurm.sh dsrg/voc-resnet101 data/VOC2012 runs/dsrg
#     sbatch --gpus 4 data_scripts/slurm.sh dsrg/voc-resnet101 data/VOC2012 runs/dsrg --set train.workers=6
#
# Slurm sends TERM five minutes before the end: training writes a checkpoint and leaves, and the same command goes on from
# there. Stages without a checkpoint of their own keep each picture that is done.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: sbatch --gpus N $0 RECIPE DATA RUN [option …]"; exit 2; }
recipe=$1 data=$2 run=$3
shift 3

torchrun --standalone --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" -m -- \
    wsss_nb run --recipe "$recipe" --data "$data" --run "$run" "$@" &
work=$!

# TERM goes to torchrun, which hands it to every process; then the job is put back into the queue and goes on later
again() {
    kill -TERM "$work" 2>/dev/null || true
    wait "$work" || true
    [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again TERM
wait "$work"
