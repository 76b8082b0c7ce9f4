#!/usr/bin/env python3
"""Draw roofline and speed-up pictures from qbench's JSON lines.

usage: plot.py RESULTS.jsonl [OUT_PREFIX]      writes OUT_PREFIX-roofline.svg and, with baselines, OUT_PREFIX-speedup.svg
Needs matplotlib."""
import json
import sys


def load(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def roofline(rows, path):
    import matplotlib.pyplot as plt
    roofs = {row["scheme"]: row["tops"] or row["gbps"] for row in rows if row["kind"] == "roofline"}
    gemms = [row for row in rows if row["kind"] == "gemm" and row["us_median"]]
    figure, axes = plt.subplots(figsize=(8, 5))
    if "read" in roofs and "int8" in roofs:
        at = [2.0 ** e for e in range(-2, 13)]
        axes.plot(at, [min(roofs["read"] * x / 1e3, roofs["int8"]) for x in at], color="black", label="roof (int8, DRAM read)")
    for scheme in sorted({row["scheme"] for row in gemms}):
        points = [row for row in gemms if row["scheme"] == scheme]
        axes.scatter([1e3 * row["tops"] / row["gbps"] for row in points], [row["tops"] for row in points], label=scheme, s=18)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TOPS")
    axes.legend()
    figure.savefig(path)


def speedup(rows, path):
    import matplotlib.pyplot as plt
    gemms = [row for row in rows if row["kind"] == "gemm" and row["speedup"]]
    if not gemms:
        return False
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(gemms) + 1))
    axes.barh([f'{row["scheme"]} {row["n"]}x{row["k"]} m={row["m"]}' for row in gemms], [row["speedup"] for row in gemms])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel=f'times faster than {gemms[0]["baseline"]}')
    figure.tight_layout()
    figure.savefig(path)
    return True


def main(arguments):
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    rows = load(arguments[0])
    prefix = arguments[1] if len(arguments) == 2 else arguments[0].rsplit(".", 1)[0]
    roofline(rows, prefix + "-roofline.svg")
    speedup(rows, prefix + "-speedup.svg")
    return 0


sys.exit(main(sys.argv[1:]))
