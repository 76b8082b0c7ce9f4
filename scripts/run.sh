#!/usr/bin/env bash
# make run: build, get a model, measure it, let it write. MODEL=path takes a model of yours instead.
set -u
cd "$(dirname "$0")/.." || exit 1
threads=${THREADS:-$(lscpu -p=core,socket 2>/dev/null | grep -v '^#' | sort -u | wc -l)}
[ "$threads" -gt 0 ] 2>/dev/null || threads=$(nproc)
log=build/run-build.log
trap 'echo "Interrupted" >&2; exit 130' INT TERM
prompt_tokens=512 gen_tokens=64

scripts/packages.sh || exit 1
mkdir -p build
echo "Building (log: $log)" >&2
{ cmake --preset default -DQE_BUILD_TESTS=OFF -B build/run && cmake --build build/run; } >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; exit 1; }
bin=build/run/bin

if [ -n "${MODEL:-}" ]; then
    model=$MODEL
    prompt=${PROMPT:-"The history of the steam engine began"}
elif model=$(scripts/model.sh) || [ $? = 130 ]; then
    [ -n "$model" ] || { echo "Interrupted" >&2; exit 130; }
    prompt=${PROMPT:-"The history of the steam engine began"}
else
    prompt_tokens=256       # its context is 512
    model=tests/data/tiny-llama
    prompt=${PROMPT:-"It was a bright morning, and"}
    echo "Using the bundled model instead: $model" >&2
fi

echo "== qbench: $model, $threads threads" >&2
"$bin/qbench" model -m "$model" --prompt $prompt_tokens --gen $gen_tokens --batch 1,4 --threads "$threads" || exit $?
echo "== qrun: \"$prompt\"" >&2
"$bin/qrun" -m "$model" -p "$prompt" -n 96 --threads "$threads" || exit $?
