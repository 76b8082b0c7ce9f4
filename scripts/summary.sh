#!/usr/bin/env bash
# Counts test cases of a build folder from GoogleTest's XML and from ctest's list of failed programs (a program that
# crashed or is no GoogleTest program counts as one). Writes the three numbers to test-results/counts.
set -u
build=$1
results=$build/test-results
awk '
    /<testcase / { passed++ }
    /<testcase / && /result="suppressed"|status="notrun"/ { passed-- }
    /<testcase / { name = $0; sub(/.*<testcase name="/, "", name); sub(/".*/, "", name)
                   suite = $0; sub(/.*classname="/, "", suite); sub(/".*/, "", suite); failed_here = 0 }
    /<failure / && !failed_here { failed_here = 1; failed++; passed-- }
    /<skipped message=/ { passed--; skipped++
                   reason = $0; sub(/.*<skipped message="/, "", reason); sub(/".*/, "", reason)
                   gsub(/&#x0A;/, " ", reason); sub(/^[^ ]*:[0-9]+ */, "", reason)
                   print "skipped " suite "." name ": " reason }
    END { print passed + 0, failed + 0, skipped + 0 >"'"$results"'/counts" }
' /dev/null "$results"/*.xml 2>/dev/null
read -r passed failed skipped <"$results/counts"
plain=0 crashed=0
failed_list=$build/Testing/Temporary/LastTestsFailed.log
for name in $(ctest --test-dir "$build" -N 2>/dev/null | sed -n 's/^ *Test *#[0-9]*: *//p'); do
    bad=$(grep -c ":$name\$" "$failed_list" 2>/dev/null)
    if [ ! -f "$results/$name.xml" ]; then
        if [ "${bad:-0}" != 0 ]; then crashed=$((crashed + 1)); else plain=$((plain + 1)); fi
    fi
done
passed=$((passed + plain)) failed=$((failed + crashed))
echo "$passed $failed $skipped" >"$results/counts"
echo "$passed passed, $failed failed, $skipped skipped"
