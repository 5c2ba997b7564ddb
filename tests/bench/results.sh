#!/usr/bin/env bash
# The comparisons of docs/results.md: one JSON and one page per load and engine in the folder that is given.
# usage: results.sh FOLDER [SEEDS]     (traces in ../shared/data/traces; about an hour on two cores)
set -euo pipefail
out=${1:?folder}; seeds=${2:-1}
python=${PYTHON:-.venv/bin/python}
traces=../shared/data/traces
mkdir -p "$out"

# load, source, seconds, flags, splits
loads=(
  "shift|shift-step|180|--part 60|static-4p4d,static-5p3d,static-6p2d,static-7p1d"
  "azure-conv|$traces/azure_llm_2023_conv.csv.gz|120||static-3p5d,static-4p4d,static-5p3d,static-6p2d"
  "burstgpt-like|burstgpt-like|180||static-1p7d,static-2p6d,static-3p5d,static-4p4d"
  "azure-code|$traces/azure_llm_2023_code.csv.gz|120||static-5p3d,static-6p2d,static-7p1d"
  "mooncake-conv|$traces/mooncake_conversation_trace.jsonl.gz|180||static-4p4d,static-5p3d,static-6p2d,static-7p1d"
)
# What a fluid of prompts and answers would let 8 engines bear, as a multiple of the source's rate (docs/results.md).
declare -A fluid=(
  [shift,h100-llama-70b-fp8-tp2]=3.47 [azure-conv,h100-llama-70b-fp8-tp2]=10.7 [burstgpt-like,h100-llama-70b-fp8-tp2]=1850
  [azure-code,h100-llama-70b-fp8-tp2]=16.6 [mooncake-conv,h100-llama-70b-fp8-tp2]=1.02
  [shift,a100-qwen2.5-14b-bf16-tp1]=2.17 [azure-conv,a100-qwen2.5-14b-bf16-tp1]=6.94 [burstgpt-like,a100-qwen2.5-14b-bf16-tp1]=1250
  [azure-code,a100-qwen2.5-14b-bf16-tp1]=10.6 [mooncake-conv,a100-qwen2.5-14b-bf16-tp1]=0.52
  [shift,a100-qwen2.5-32b-bf16-tp2]=2.07 [azure-conv,a100-qwen2.5-32b-bf16-tp2]=6.24 [burstgpt-like,a100-qwen2.5-32b-bf16-tp2]=1150
  [azure-code,a100-qwen2.5-32b-bf16-tp2]=8.94 [mooncake-conv,a100-qwen2.5-32b-bf16-tp2]=0.56
)
for profile in h100-llama-70b-fp8-tp2 a100-qwen2.5-14b-bf16-tp1 a100-qwen2.5-32b-bf16-tp2; do
  for load in "${loads[@]}"; do
    IFS='|' read -r name source seconds flags splits <<<"$load"
    at() { awk -v f="${fluid[$name,$profile]}" -v s="$1" 'BEGIN {printf "%.4g", f * s}'; }
    file="$out/$name-$profile"
    [ -e "$file.json" ] && continue
    # shellcheck disable=SC2086
    "$python" -m dopd.cli compare --trace "$source" --profile "$profile" --workers 8 --duration "$seconds" $flags \
      --policies "aggregated,distserve,$splits,oracle-ratio" --reference aggregated --seeds "$seeds" \
      --rates "$(at 0.6),$(at 0.8),$(at 0.95)" --tune-rate "$(at 0.8)" --goodput ttft:2000 tpot:80 \
      --jobs 2 --json "$file.json" --html "$file.html" --plots "$file" >"$file.txt"
  done
done
