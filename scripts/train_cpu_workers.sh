#!/usr/bin/env bash
# fairseq-train in several processes on the CPUs of one machine, which share every update:
#   bash scripts/train_cpu_workers.sh DATA-BIN --user-dir mist_fairseq --task mist ...    what fairseq-train takes
# WORKERS=N starts N (default: 2), OMP_NUM_THREADS=N gives each N threads (default: 1). --batch-size is each worker's.
# The first worker prints here, the others to SAVE-DIR/worker1.log, ... If one dies, all end, with its exit status.
set -euo pipefail

workers=${WORKERS:-2} logs=checkpoints
[[ $workers =~ ^[1-9][0-9]*$ ]] || { echo "error: WORKERS is $workers, expected a number from 1" >&2; exit 2; }
[ $# -gt 0 ] || { sed -n "2,5s/^# \{0,1\}//p" "$0" >&2; exit 2; }
for ((i = 1; i <= $#; i++)); do
    case "${!i}" in
        --save-dir) next=$((i + 1)); logs=${!next:-$logs} ;;
        --save-dir=*) logs=${!i#*=} ;;
    esac
done
mkdir -p "$logs"
export CUDA_VISIBLE_DEVICES= # with --cpu fairseq fails where it sees a GPU
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# fairseq's default, pytorch_ddp, hands GPU numbers to PyTorch.
shared=(--cpu --distributed-backend gloo --ddp-backend legacy_ddp --distributed-no-spawn)
shared+=(--distributed-init-method "tcp://127.0.0.1:$port" --distributed-world-size "$workers")

ranks=()
end_all() { # politely, then not
    trap - EXIT
    kill -TERM "${ranks[@]}" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
        kill -0 "${ranks[@]}" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "${ranks[@]}" 2>/dev/null || true
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

fairseq-train "$@" "${shared[@]}" --distributed-rank 0 &
ranks+=($!)
for ((rank = 1; rank < workers; rank++)); do
    fairseq-train "$@" "${shared[@]}" --distributed-rank "$rank" > "$logs/worker$rank.log" 2>&1 &
    ranks+=($!)
done
left=("${ranks[@]}")
while [ ${#left[@]} -gt 0 ]; do
    status=0 going=()
    wait -n -p ended "${left[@]}" || status=$?
    for rank in "${!ranks[@]}"; do
        [ "$status" = 0 ] || [ "${ranks[rank]}" != "$ended" ] ||
            echo "error: worker $rank ended with status $status: ending all (logs: $logs/worker*.log)" >&2
    done
    [ "$status" = 0 ] || exit "$status"
    for pid in "${left[@]}"; do [ "$pid" = "$ended" ] || going+=("$pid"); done
    left=("${going[@]}")
done
trap - EXIT
