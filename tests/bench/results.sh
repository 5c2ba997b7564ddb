#!/usr/bin/env bash
# The comparisons of docs/results.md: JSON, page and table of each load and engine in the folder that is given.
# usage: results.sh FOLDER [ENGINE ...]     (traces in ../shared/data/traces; some hours on two cores)
# `python -m tests.bench.results_table FOLDER/*.json` makes the tables. What exists already is left as it is, so it can be
# ended at any time and started again. STEPS="policies ratios" and LOADS="shift azure-conv" do a part of it; SEEDS=1 with one
# seed where there would be three. Only when named: STEPS="fewer bursts brief".
set -euo pipefail
out=${1:?folder}; shift
python=${PYTHON:-.venv/bin/python}
traces=../shared/data/traces
mkdir -p "$out"
engines=("$@")
[ ${#engines[@]} -gt 0 ] || engines=(h100-llama-70b-fp8-tp2 a100-qwen2.5-14b-bf16-tp1 a100-qwen2.5-32b-bf16-tp2)

# load, source, seconds, flags, seeds, the splits that suit it best
loads=(
  "shift|shift-step|180|--part 60|3|static-5p3d,static-6p2d"
  "azure-conv|$traces/azure_llm_2023_conv.csv.gz|120||1|static-4p4d,static-5p3d"
  "burstgpt-like|burstgpt-like|120||3|static-2p6d,static-4p4d"
  "azure-code|$traces/azure_llm_2023_code.csv.gz|120||1|static-6p2d,static-7p1d"
  "mooncake-conv|$traces/mooncake_conversation_trace.jsonl.gz|180||1|static-5p3d,static-6p2d"
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
planners=dopd,dopd-paper,dyn-sla,dyn-load
all=static-1p7d,static-2p6d,static-3p5d,static-4p4d,static-5p3d,static-6p2d,static-7p1d
switches="dopd[forecast=0],dopd[variance=0],dopd[local=0],dopd[lengths=0],dopd[late_last=0],dopd[paced=0],dopd[cold=1]"

compare() { # file, policies, rates, flags, where to tune
  [ -e "$out/$1.json" ] && return
  # shellcheck disable=SC2086
  "$python" -m dopd.cli compare --trace "$source" --profile "$engine" --workers 8 --duration "$seconds" $flags \
    --policies "$2" --rates "$3" --tune-rate "$(at "${5:-0.8}")" $4 --goodput ttft:2000 tpot:80 --jobs "${JOBS:-2}" \
    --json "$out/$1.part" --html "$out/$1.html" --plots "$out/$1" >"$out/$1.txt" && mv "$out/$1.part" "$out/$1.json"
}

each() { # function: call it for each load and engine
  for engine in "${engines[@]}"; do
    for load in "${loads[@]}"; do
      IFS='|' read -r name source seconds flags seeds some <<<"$load"
      seeds=${SEEDS:-$seeds}
      [[ " ${LOADS:-$name} " == *" $name "* ]] || continue
      "$1"
    done
  done
}
at() { awk -v f="${fluid[$name,$engine]}" -v s="$1" 'BEGIN {printf "%.4g", f * s}'; }
policies() { compare "$name-$engine" "$planners,aggregated,distserve" "$(at 0.6),$(at 0.8),$(at 0.95)" "--seeds $seeds"; }
splits() { # at each of the rates tuned for it: beyond capacity other parameters are best than below
  compare "$name-$engine-splits" "$some" "$(at 0.6),$(at 0.8)" "--seeds $seeds"
  compare "$name-$engine-splits-95" "$some" "$(at 0.95)" "--seeds $seeds" 0.95
}
brief() { compare "$name-$engine-brief" "dopd,aggregated,distserve,$some" "$(at 0.6),$(at 0.8),$(at 0.95)" ""; }
ratios() { compare "$name-$engine-ratios" "oracle-ratio,$all" "$(at 0.8)" ""; }
largest() { compare "$name-$engine-largest" "dopd,aggregated,distserve" "$(at 0.5)" "--goodput-search --tolerance 0.06"; }
light() { compare "$name-$engine-light" "$planners,aggregated,distserve,$some" "$(at 0.3),$(at 0.45)" ""; }
planner() { compare "$name-$engine-planner" "dopd,oracle-ratio[dopd=1],dopd-3p5d,dopd-4p4d,dopd-5p3d,dopd-6p2d" "$(at 0.8)" ""; }
fewer() { # the same load on fewer workers
  for n in 4 5 6 7 8; do compare "$name-$engine-of-$n" "dopd,aggregated,distserve" "$(at 0.5)" "--workers $n" 0.5; done
}
bursts() { compare "$name-$engine-bursts" "dopd,dopd-paper,aggregated,distserve,$some" "$(at 0.8)" "--seeds 10"; }
switches() { compare "$name-$engine-switches" "dopd,$switches,dopd-coldstart" "$(at 0.8)" ""; }

for step in ${STEPS:-policies splits ratios planner largest light switches}; do each "$step"; done
