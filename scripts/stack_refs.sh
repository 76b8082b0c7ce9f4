#!/usr/bin/env bash
# Counts references of vector registers to the stack between the first and the last dot product of the hot loops of the panel kernels, which
# are the innermost loops with dot products. gcc spills the accumulators where the destination of the intrinsic is not
# tied to its register, at half the speed.
# Usage: scripts/stack_refs.sh OBJECT MOST...   each object file with the count no loop of it may exceed; prints the
# worst loops, exit 1 when one exceeds it or when an object has no such loop.
set -u
[ $# -ge 2 ] || { sed -n '2,5p' "$0"; exit 2; }
status=0
while [ $# -ge 2 ]; do
    objdump -d --no-show-raw-insn "$1" | awk -v most="$2" -v object="$(basename "$1")" '
        function value(hex,   i, v) {
            v = 0
            for (i = 1; i <= length(hex); i++) v = v * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
            return v
        }
        # Innermost loops: a jump back whose body holds no other jump back.
        function finish(   i, j, from, dots, refs, inner, frame) {
            for (i = 1; i <= n; i++) if (text[i] ~ /^mov +%rsp,%rbp/) frame = 1
            for (i = 1; i <= n; i++) {
                if (!(target[i] in at) || at[target[i]] > i) continue
                from = at[target[i]]
                dots = refs = since = inner = 0
                for (j = from; j <= i; j++) {
                    if (text[j] ~ /mm[0-9]/ && (text[j] ~ /\(%rsp/ || (frame && text[j] ~ /\(%rbp/))) since++
                    if (text[j] ~ /vpdpbusd|vpmaddubsw/) {
                        if (dots++) refs += since
                        since = 0
                    }
                    if (j < i && (target[j] in at) && at[target[j]] <= j && at[target[j]] >= from) inner = 1
                }
                if (inner || !dots) continue
                loops++
                total += refs
                line[loops] = sprintf("%4d stack references, %3d dot products, %4d instructions: %s", refs, dots, i - from + 1, name)
                if (refs > most) bad++
                if (refs > worst) worst = refs
            }
            n = 0
            split("", at)
            split("", target)
        }
        /^[0-9a-f]+ </ { finish(); name = $2; gsub(/[<>:]/, "", name) }
        /^ +[0-9a-f]+:/ {
            address = $1
            sub(/:/, "", address)
            sub(/^ +[0-9a-f]+:[ \t]+/, "")
            n++
            text[n] = $0
            at[value(address)] = n
            target[n] = -1
            if ($1 ~ /^j/) target[n] = value($2)
        }
        END {
            finish()
            for (i = 1; i <= loops; i++) print line[i] | "sort -rn | head -n 4"
            close("sort -rn | head -n 4")
            printf "%s: %d loops, %d references, at most %d in one (%d allowed)\n", object, loops, total, worst, most
            exit !loops || bad
        }' || status=1
    shift 2
done
exit $status
