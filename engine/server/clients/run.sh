#!/usr/bin/env bash
# Runs other people's clients, unmodified, against launch_server with a tiny model and a real tokenizer. Exits non-zero if any
# of them fails or loses a request. Needs a network the first time, to install them; not part of `make test`.
#
#   engine/server/clients/run.sh [openai sglang vllm guidellm …]     default: all
#
# CLIENTS_VENV, CLIENTS_GUIDELLM_VENV: Python environments to use or make.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=engine/server/clients
venv=${CLIENTS_VENV:-.cache/clients}
guide=${CLIENTS_GUIDELLM_VENV:-.cache/clients-guidellm}
tokenizer=$PWD/${CLIENTS_TOKENIZER:-fixtures/models/tokenizers/qwen3}
out=$(mktemp -d)
want=${*:-openai sglang vllm guidellm}
export HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore

[ -f "$tokenizer/tokenizer.json" ] || { echo "no tokenizer at $tokenizer: run make tokenizers" >&2; exit 1; }

install() { # venv, then arguments of pip
  local dir=$1; shift
  [ -x "$dir/bin/python" ] || python3 -m venv "$dir"
  HF_HUB_OFFLINE=0 "$dir/bin/pip" install -q --disable-pip-version-check "$@"
}

go build -o "$out/launch_server" ./engine/cmd/launch_server
vocab=151936 # of the tokenizer's own model
"$out/launch_server" --model-path fixtures/configs/tiny --load-format dummy --json-model-override-args "{\"vocab_size\":$vocab}" \
  --tokenizer-path "$tokenizer" --port 0 2>"$out/server.log" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$out"' EXIT
for _ in $(seq 300); do
  url=$(sed -n 's/^listening on //p' "$out/server.log")
  [ -n "$url" ] && break
  kill -0 $server 2>/dev/null || { cat "$out/server.log" >&2; exit 1; }
  sleep 0.2
done

failed=0
check() { # name, file, line that must be there
  if grep -qE "$3" "$2"; then echo "PASS $1"; else echo "FAIL $1"; tail -n 20 "$2"; failed=1; fi
}

for client in $want; do
  case $client in
  openai)
    [ -n "${CLIENTS_VENV:-}" ] || install "$venv" openai==3.57.0
    "$venv/bin/python" $here/openai_python.py "$url" >"$out/openai.log" 2>&1 || true
    check "openai (Python)" "$out/openai.log" '^openai .* ok$'
    ;;
  sglang)
    [ -n "${CLIENTS_VENV:-}" ] || { install "$venv" -r $here/requirements.txt; install "$venv" --no-deps sglang==0.5.23; }
    for backend in sglang sglang-oai sglang-oai-chat; do
      "$venv/bin/python" -m sglang.bench_serving --backend $backend --base-url "$url" --tokenizer "$tokenizer" --dataset-name random-ids \
        --num-prompts 50 --random-input-len 128 --random-output-len 32 --random-range-ratio 1 --output-file "$out/sglang.jsonl" >"$out/$backend.log" 2>&1 || true
      check "sglang.bench_serving --backend $backend" "$out/$backend.log" 'Successful requests: +50 '
      grep -E '^(Request throughput|Output token thr|Median TTFT|Median ITL)' "$out/$backend.log" || true
    done
    ;;
  vllm)
    [ -n "${CLIENTS_VENV:-}" ] || { install "$venv" -r $here/requirements.txt; install "$venv" --no-deps vllm==0.33.0; }
    for endpoint in openai:/v1/completions openai-chat:/v1/chat/completions; do
      backend=${endpoint%%:*}
      "$venv/bin/python" $here/vllm_bench.py --backend $backend --endpoint "${endpoint#*:}" --base-url "$url" --model tiny --tokenizer "$tokenizer" \
        --dataset-name random --num-prompts 50 --random-input-len 128 --random-output-len 32 --temperature 0 --ignore-eos >"$out/vllm-$backend.log" 2>&1 || true
      check "vllm bench serve --backend $backend" "$out/vllm-$backend.log" 'Successful requests: +50 '
      grep -E '^(Request throughput|Output token thr|Median TTFT|Median ITL)' "$out/vllm-$backend.log" || true
    done
    ;;
  guidellm)
    [ -n "${CLIENTS_GUIDELLM_VENV:-}" ] || install "$guide" guidellm==0.8.1
    "$guide/bin/guidellm" run --backend "kind=openai_http,target=$url" --profile kind=concurrent,streams=4 --constraint kind=max_requests,count=24 \
      --tokenizer "kind=huggingface_auto,model=$tokenizer" --data kind=synthetic_text,prompt_tokens=64,output_tokens=16 \
      --output "kind=json,path=$out/guidellm.json" --disable-console-interactive >"$out/guidellm.log" 2>&1 || true
    python3 - "$out/guidellm.json" >"$out/guidellm.sum" 2>&1 <<'PY' || true
import json, sys
b = json.load(open(sys.argv[1]))["benchmarks"][0]["metrics"]["request_totals"]
print(f"successful {b['successful']} errored {b['errored']} incomplete {b['incomplete']}")
PY
    check guidellm "$out/guidellm.sum" '^successful [1-9][0-9]* errored 0 incomplete 0'
    ;;
  *) echo "unknown client $client: want openai, sglang, vllm or guidellm" >&2; exit 2 ;;
  esac
done
exit $failed
