#!/usr/bin/env bash
# The jobs in small, without SLURM: shards of an invented sample, pretraining by two CPU processes through torchrun,
# stopped at its time limit and started again until it is done. Some minutes on two cores.
# Usage: bash examples/cluster/try_small.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
mkdir -p "${1:-cluster-small}"
cd "${1:-cluster-small}"
if [ ! -e shards ]; then
    "$python" -m croplem_hf.cli data sample sen12ms --scenes 2 --patches 8 --size 64 > sample.log
    "$python" -m croplem_hf.cli data build sen12ms shards --workers 1 --quiet
fi
. "$here/until_done.sh"
again=1
REQUEUE=true
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
until finished run; do
    [ "$again" -le 20 ] || { echo "not done after 20 starts" >&2; exit 1; }
    echo "start $((again++))"
    run_and_requeue "$here/try_small.yaml" "$python" -m torch.distributed.run --standalone --nproc_per_node 2 \
        -m croplem_hf.training --config "$here/try_small.yaml"
done
echo "finished: $PWD/run/model"
