#!/bin/sh
# Serves a model with a plan at http://127.0.0.1:8000/v1. Without arguments: the built-in model, on CPUs.
# Usage: serve.sh [MODEL PLAN [further options of vllm serve]]
# PLAN is a file, a folder, a Hub id or preset:NAME@BUDGET. Without arguments plan.yaml is taken, and made if there is none: half of
# the visual tokens from layer 2 on, a quarter from layer 4 on, none from 6 on. Its stages have equal lengths, so that vLLM needs a
# block table for each and no more.
set -eu
if [ $# -eq 1 ]; then
    echo "Usage: $0 [MODEL PLAN [further options of vllm serve]]" >&2
    exit 2
fi
if [ $# -eq 0 ]; then
    export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind HF_HUB_OFFLINE=1
    model=$(python -c 'from tpcal.calibrate.embedded import FOLDER; print(FOLDER)')
    [ -e plan.yaml ] || python -c '
import tpcal
cuts = tpcal.Cut(2, 0.5, "diversity"), tpcal.Cut(4, 0.25, "diversity"), tpcal.Cut(6, 0.0)
tpcal.save_plan(tpcal.Plan(name="example", cuts=cuts, scope="image"), "plan.yaml")'
    set -- "$model" plan.yaml --dtype float32 --enforce-eager --max-model-len 512 --max-num-seqs 8
fi
model=$1 plan=$2
shift 2
exec vllm serve "$model" --served-model-name pruned --host 127.0.0.1 \
    --additional-config "{\"tpcal\": {\"plan\": \"$plan\"}}" "$@"
