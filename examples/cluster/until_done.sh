# Sourced by the jobs: run_and_requeue CONFIG COMMAND... runs the command and, if the run stopped at its time limit,
# puts the job into the queue again. A command that failed is not tried again: it would fail for ever.
finished() { [ -e "$1/model/model.safetensors" ]; }

out_of() { sed -n 's/^out: *\([^ #]*\).*/\1/p' "$1"; }

run_and_requeue() {
    local config=$1 out
    shift
    out=$(out_of "$config")
    if finished "$out"; then
        echo "$out/model is there already"
        return
    fi
    "$@"
    finished "$out" || ${REQUEUE:-scontrol requeue "$SLURM_JOB_ID"}
}
