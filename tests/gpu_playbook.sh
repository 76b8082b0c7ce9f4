#!/usr/bin/env bash
# bench/gpu.sh without a GPU: refuses in one line; with programs that pretend: every step runs, passes once, is not repeated,
# and a sanitizer that finds nothing, a test that fails, one that hangs and one that skips are told apart.
# usage: gpu_playbook.sh ROOT WORK
set -u
root=$1 work=$2 checks=0
rm -rf "$work"
mkdir -p "$work/bin" "$work/out" "$work/path"
sh=$root/bench/gpu.sh
expect() { # NAME WANT GOT
    checks=$((checks + 1))
    [ "$2" = "$3" ] || { echo "$1: wanted \"$2\", got \"$3\""; exit 1; }
}
program() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$1"; chmod +x "$1"; }

text=$(NVIDIA_SMI=false "$sh")
expect "no GPU, exit" 3 $?
expect "no GPU, lines" 1 "$(wc -l <<<"$text")"
"$sh" --help | grep -q '^usage: bench/gpu.sh'
expect "--help" 0 $?
"$sh" --nonsense >/dev/null 2>&1
expect "unknown option" 2 $?
NVIDIA_SMI=true "$sh" --out "$work/none" --step nonsense >/dev/null 2>&1
expect "unknown step" 2 $?
steps=$("$sh" --bin "$work/bin" --list | wc -l)
[ "$steps" -ge 25 ] || { echo "only $steps steps"; exit 1; }
expect "--dry-run, steps" "$steps" "$("$sh" --bin "$work/bin" --dry-run | wc -l)"

# A machine that pretends: everything passes, the sanitizer sees the planted faults, qbench writes a measurement.
program "$work/bin/ptx_conformance_gpu" 'if [ "${1:-}" = --plant ]; then exit 1; fi'
program "$work/bin/test_cuda_prepare_gpu" 'exit 0'
program "$work/bin/test_cuda_gemm_gpu" 'exit 0'
program "$work/bin/test_cuda_requant_gpu" 'exit 0'
program "$work/bin/test_cuda_fake_quant_gpu" 'exit 0'
program "$work/bin/planted_faults" 'exit 0'
program "$work/path/compute-sanitizer" 'case "$*" in *planted_faults*) exit 9 ;; esac'
program "$work/path/python3" 'case "$1" in *gpu_peers.py) echo "no torch"; exit 3 ;; esac
PATH=${PATH#*:} exec python3 "$@"'
program "$work/bin/qbench" 'while [ $# -gt 0 ]; do [ "$1" = --json ] && out=$2; [ "$1" = --scheme ] && s=$2; [ "$1" = --shape ] && l=$2; shift; done
[ -z "${out:-}" ] && exit 0
[ "$l" = llama-3-8b ] || exit 0
for nk in "6144 4096" "4096 4096" "28672 4096" "4096 14336"; do set -- $nk
echo "{\"kind\":\"gemm\",\"backend\":\"cuda\",\"impl\":\"r\",\"scheme\":\"$s\",\"m\":16,\"n\":$1,\"k\":$2,\"us_median\":2.0,\"baseline_us\":5.0,\"device\":\"pretended\"}"
done >"$out"'
run() { PATH=$work/path:$PATH NVIDIA_SMI=true "$sh" --bin "$work/bin" --out "$work/out" "$@"; }
text=$(run)
expect "all pass, exit" 0 $?
expect "all pass" "$((steps - 2))" "$(grep -c '^passed' <<<"$text")"
expect "peers skipped" 2 "$(grep -c '^skipped .*no torch' <<<"$text")"
grep -q '^|llama-3-8b|w4a8|2.50|$' "$work/out/table.md"
expect "the table's ratio" 0 $?
text=$(run)
expect "second run, exit" 0 $?
expect "second run repeats nothing" "$((steps - 2))" "$(grep -c '^done' <<<"$text")"

program "$work/path/compute-sanitizer" 'exit 0' # looks at nothing
text=$(run --force)
expect "blind sanitizer, exit" 1 $?
expect "blind sanitizer" 4 "$(grep -c '^FAILED .*-planted' <<<"$text")"
program "$work/bin/test_cuda_prepare_gpu" 'echo 1 test failed; exit 1'
text=$(run --force --step test-prepare)
expect "failing test, exit" 1 $?
program "$work/bin/test_cuda_prepare_gpu" 'sleep 60'
text=$(QE_STEP_SECONDS=1 run --force --step test-prepare)
expect "hanging test" 1 "$(grep -c '^FAILED .*longer than 1 s' <<<"$text")"
program "$work/bin/ptx_conformance_gpu" 'echo skipped: not of compute capability 9.0; exit 3'
text=$(run --force --step conformance)
expect "another GPU" 1 "$(grep -c '^skipped .*9.0' <<<"$text")"
echo "$checks checks of $steps steps"
