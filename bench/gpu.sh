#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the instructions against the host's answers, the tests of the cuda backend,
# compute-sanitizer (planted faults first: they prove that it looks), speed beside cuBLASLt FP16 and the peers found here.
set -u
usage() {
    cat <<'TEXT'
usage: bench/gpu.sh [--bin DIR] [--out DIR] [--step NAME] [--force] [--list] [--dry-run] [--help]
  --bin DIR    programs built elsewhere (cuda preset: targets gpu_tests and qbench); else they are built here
  --out DIR    results (default $OUT, else build/gpu): NAME.log and NAME.jsonl per step, table.md
  --step NAME  this step alone     --force  steps that are done already, too
  --list       names of the steps  --dry-run  their commands
A step takes under 10 minutes (QE_STEP_SECONDS, default 590) and is not repeated once it has passed. Exit 0: all passed;
1: a step failed; 2: usage; 3: no GPU.
TEXT
}
cd "$(dirname "$0")/.." || exit 1
bin=build/cuda/bin out=${OUT:-build/gpu} only='' force='' mode=run built=''
while [ $# -gt 0 ]; do
    case $1 in
    --bin | --out | --step)
        [ $# -gt 1 ] || { usage >&2; exit 2; }
        case $1 in --bin) bin=$2 built=1 ;; --out) out=$2 ;; *) only=$2 ;; esac
        shift ;;
    --force) force=1 ;;
    --list) mode=list ;;
    --dry-run) mode=dry ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
limit=${QE_STEP_SECONDS:-590} failed=0 ran=0 found=0 skipped=0

# step NAME COMMAND...: runs it once within the limit. Exit 3 of the command: skipped, with its last line as the reason.
step() {
    local name=$1 rc
    shift
    [ -z "$only" ] || [ "$only" = "$name" ] || return 0
    found=$((found + 1))
    case $mode in
    list) echo "$name"; return ;;
    dry) printf '%-28s' "$name"; printf ' %q' "$@"; echo; return ;;
    esac
    if [ -z "$force" ] && [ "$name" != build ] && [ -e "$out/$name.passed" ]; then
        echo "done     $name"
        return
    fi
    rm -f "$out/$name.passed"
    ran=$((ran + 1))
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
    rc=$?
    case $rc in
    0) touch "$out/$name.passed"; echo "passed   $name" ;;
    3) skipped=$((skipped + 1)); echo "skipped  $name: $(tail -n 1 "$out/$name.log")" ;;
    124 | 137) failed=$((failed + 1)); echo "FAILED   $name: longer than $limit s" ;;
    *) failed=$((failed + 1)); echo "FAILED   $name: exit $rc"; tail -n 5 "$out/$name.log" ;;
    esac
}
# The command has to fail with this code and no other.
fails_with() {
    local want=$1 rc
    shift
    "$@"
    rc=$?
    [ "$rc" = "$want" ] && return 0
    [ "$rc" = 3 ] && return 3
    echo "exit $rc, wanted $want: the planted fault was not noticed"
    return 1
}
export -f fails_with
must_fail() { step "$1" bash -c 'fails_with "$@"' fails_with "${@:2}"; }

if [ $mode = run ]; then
    if ! "${NVIDIA_SMI:-nvidia-smi}" -L >/dev/null 2>&1; then
        echo "skipped: no GPU (nvidia-smi lists none)"
        exit 3
    fi
    mkdir -p "$out" || exit 1
    "${NVIDIA_SMI:-nvidia-smi}" --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader | tee "$out/gpu.txt"
fi

if [ -z "$built" ]; then
    step build bash -c 'cmake --preset cuda && cmake --build build/cuda --target gpu_tests qbench'
    [ $mode = run ] && [ $failed != 0 ] && exit 1
fi

step conformance "$bin/ptx_conformance_gpu"
must_fail conformance-planted 1 "$bin/ptx_conformance_gpu" --plant

step test-prepare "$bin/test_cuda_prepare_gpu" --gtest_brief=1
step test-requant "$bin/test_cuda_requant_gpu" --gtest_brief=1
step test-fake-quant "$bin/test_cuda_fake_quant_gpu" --gtest_brief=1
for shard in 0 1 2 3; do
    step "test-gemm-$shard" env GTEST_TOTAL_SHARDS=4 GTEST_SHARD_INDEX=$shard QE_TEST_SHAPES=300 \
        "$bin/test_cuda_gemm_gpu" --gtest_brief=1
done

# The families once each, and shapes drawn at random.
few='*MatchesReference/w8a8:*MatchesReference/w4a8_g128:*MatchesReference/w4a16_sym:*MatchesReference/nf4:CudaShapes*'
sanitizer_path=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer_path" ] || [ $mode != run ] || echo "compute-sanitizer is not here: its steps will fail"
for tool in memcheck racecheck synccheck initcheck; do
    sanitizer=("${sanitizer_path:-compute-sanitizer}" --tool "$tool" --error-exitcode 9)
    must_fail "$tool-planted" 9 "${sanitizer[@]}" "$bin/planted_faults" "$tool"
    step "$tool-prepare" "${sanitizer[@]}" "$bin/test_cuda_prepare_gpu" --gtest_brief=1
    step "$tool-gemm" env QE_TEST_SHAPES=20 "${sanitizer[@]}" "$bin/test_cuda_gemm_gpu" --gtest_brief=1 "--gtest_filter=$few"
done

step check "$bin/qbench" gemm --backend cuda --check --scheme w8a8,w4a8,w4a16,w8a16,q4_0,q8_0,q4_k,q6_k --shape 4096x4096 \
    --m 1,16,65,512
for layer in llama-3-8b llama-3-70b; do
    for scheme in w8a8 w4a8 w4a16 w8a16; do
        step "sweep-$layer-$scheme" "$bin/qbench" gemm --commit "$commit" --backend cuda --baseline cublaslt-f16 --scheme "$scheme" \
            --shape "$layer" --m 1,16,32,64,128,256,1024,4096 --json "$out/sweep-$layer-$scheme.jsonl"
    done
    # Few tokens with every kernel in order, against the sweep's: what early starts gain. No --json: not in the table.
    step "in-order-$layer" env QE_EARLY=0 "$bin/qbench" gemm --backend cuda --scheme w8a8,w4a8,w4a16 --shape "$layer" --m 1,16
    step "peers-$layer" python3 bench/gpu_peers.py --shape "$layer" --json "$out/peers-$layer.jsonl"
done

if [ $mode != list ] && [ $found = 0 ]; then
    echo "bench/gpu.sh: no step \"$only\"; --list shows them" >&2
    exit 2
fi
[ $mode = run ] || exit 0
python3 bench/gpu_report.py "$out"/*.jsonl >"$out/table.md" 2>"$out/table.log" && cat "$out/table.md"
echo "$ran run, $failed failed, $skipped skipped; results in $out"
[ $failed = 0 ]
