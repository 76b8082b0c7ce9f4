#!/usr/bin/env python3
"""Draw roofline and speed-up pictures from qbench's JSON lines, and quality pictures of quantized models.

usage: plot.py RESULTS.jsonl... [--out PREFIX] [--format svg|png]
       plot.py tests/golden/quality.csv OUT/quantization_report.json... [--out PREFIX] [--format svg|png]

PREFIX-roofline.FORMAT  speed against operations per byte under the measured roofs (`qbench roofline --json`; one picture
                        per device and thread count, so results of several machines may be given at once)
PREFIX-speedup.FORMAT   times faster than the baseline, a line per scheme over m, a panel per shape; only with baselines
PREFIX-quality.FORMAT   of a quality.csv: mean KL against size, a panel per model, with the front of rows that no other row
                        beats in both
PREFIX-layers.FORMAT    of reports: the output error of every linear (its weights' where no text was seen), a line per report
PREFIX is by default the first file's name without its ending. Prints the names of the files written; exit 1 if there was
nothing to draw or a file cannot be read, 2 on a wrong call. Needs matplotlib."""
import argparse
import csv
import json
import os
import sys

MARKERS = "osD^vP*X<>"


def load(paths):
    """All result lines; a line that is no result names its file and number."""
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    row["kind"], row["scheme"], row["device"]
                except (ValueError, KeyError, TypeError) as problem:
                    raise SystemExit(f"{path}:{number}: not a result of qbench: {problem!r}")
                rows.append(row)
    return rows


def machine(row):
    return row["backend"], row["device"], row["threads"]


def roof_lines(rows):
    """{machine: ({name: GB/s of a memory roof}, {name: TOPS of an arithmetic roof})}"""
    roofs = {}
    for row in rows:
        if row["kind"] == "roofline":
            memory, arithmetic = roofs.setdefault(machine(row), ({}, {}))
            if row["gbps"]:
                memory[row["scheme"]] = row["gbps"]
            if row["tops"]:
                arithmetic[row["scheme"]] = row["tops"]
    return roofs


def style(schemes):
    from matplotlib import colormaps
    colors = colormaps["tab10"].colors
    return {s: dict(color=colors[i % 10], marker=MARKERS[i % len(MARKERS)]) for i, s in enumerate(schemes)}


def roofline(rows, where, roofs, path):
    import matplotlib.pyplot as plt
    gemms = [r for r in rows if r["kind"] == "gemm" and machine(r) == where and r["us_median"] and r["gbps"]]
    if not gemms:
        return False
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [1e3 * r["tops"] / r["gbps"] for r in gemms]
    low, high = min(intensity) / 2, max(intensity) * 4
    memory, arithmetic = roofs.get(where, ({}, {}))
    bandwidth = memory.get("read") or memory.get("copy")
    for name, peak in sorted(arithmetic.items(), key=lambda item: -item[1]):
        at = [low * (high / low) ** (i / 200) for i in range(201)]
        axes.plot(at, [min(bandwidth * x / 1e3, peak) if bandwidth else peak for x in at], color="black", linewidth=0.9)
        axes.annotate(f"{name} {peak:.3g} T{'OPS' if name == 'int8' else 'FLOPS'}", (high, peak), fontsize=8, ha="right", va="bottom")
    if bandwidth:
        axes.annotate(f"{bandwidth:.3g} GB/s", (low, bandwidth * low / 1e3), fontsize=8, rotation=30, va="bottom")
    looks = style(sorted({r["scheme"] for r in gemms}))
    for scheme, look in looks.items():
        points = [(x, r["tops"]) for x, r in zip(intensity, gemms) if r["scheme"] == scheme]
        axes.scatter(*zip(*points), label=scheme, s=22, **look)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte (weights, x and y once)", ylabel="10¹² operations/s",
             title=f"{where[1]}, {where[0]}, {where[2]} threads" if where[0] != "cuda" else where[1])
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return True


def speedup(rows, path):
    import matplotlib.pyplot as plt
    gemms = [r for r in rows if r["kind"] == "gemm" and r["speedup"]]
    panels = sorted({(machine(r), r["baseline"], r["n"], r["k"]) for r in gemms}, key=lambda p: (p[0], p[1], p[2] * p[3], p))
    if not panels:
        return False
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(down, across, figsize=(4.2 * across, 3.2 * down), squeeze=False)
    looks = style(sorted({r["scheme"] for r in gemms}))
    for axes, (where, baseline, n, k) in zip(grid.flat, panels):
        here = [r for r in gemms if (machine(r), r["baseline"], r["n"], r["k"]) == (where, baseline, n, k)]
        for scheme in sorted({r["scheme"] for r in here}):
            points = sorted((r["m"], r["speedup"]) for r in here if r["scheme"] == scheme)
            axes.plot(*zip(*points), label=scheme, linewidth=1, markersize=4, **looks[scheme])
        ticks = sorted({r["m"] for r in here})
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="m (tokens)", ylabel=f"times {baseline}", title=f"{n} x {k}", ylim=(0, None))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.grid(True, linewidth=0.3)
        axes.legend(fontsize=7)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_visible(False)
    figure.suptitle(" · ".join(sorted({p[0][1] for p in panels})), fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return True


def front(rows):
    """Rows that none is both no larger and closer than, by size."""
    best, out = float("inf"), []
    for row in sorted(rows, key=lambda r: (r["megabytes"], r["kl_mean"])):
        if row["kl_mean"] < best:
            best = row["kl_mean"]
            out.append(row)
    return out


def load_quality(path):
    """{model: rows} of a quality.csv; the reference itself is left out."""
    models = {}
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                row["megabytes"], row["kl_mean"] = float(row["megabytes"]), float(row["kl_mean"])
                if row["kl_mean"] > 0:
                    models.setdefault(row["model"], []).append(row)
            except (ValueError, KeyError, TypeError) as problem:
                raise SystemExit(f"{path}:{number}: not a row of quality: {problem!r}")
    return models


def quality(models, picture):
    import matplotlib.pyplot as plt
    if not models:
        return False
    figure, grid = plt.subplots(1, len(models), figsize=(7 * len(models), 5.5), squeeze=False)
    for axes, (model, rows) in zip(grid.flat, models.items()):
        best = front(rows)
        axes.step([r["megabytes"] for r in best], [r["kl_mean"] for r in best], where="post", color="black", linewidth=0.9)
        for row in rows:
            on = row in best
            axes.scatter(row["megabytes"], row["kl_mean"], s=26, color="tab:red" if on else "tab:blue")
            axes.annotate(row["name"], (row["megabytes"], row["kl_mean"]), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.set(yscale="log", xlabel="MB of weights", ylabel="mean KL from FP16", title=model)
        axes.grid(True, which="both", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(picture)
    plt.close(figure)
    return True


def layer_errors(report):
    """Decibels of every linear, in the order of its layers: the larger, the closer."""
    def key(entry):
        return [int(part) if part.isdigit() else part for part in entry["module"].split(".")]
    entries = sorted(report["layers"], key=lambda entry: [(isinstance(k, str), k) for k in key(entry)])
    decibels = [entry["sqnr_db"] if entry.get("output_sqnr_db") is None else entry["output_sqnr_db"] for entry in entries]
    return [entry["module"] for entry in entries], [float("nan") if d is None else d for d in decibels]


def layers(reports, picture):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(12, 5))
    names = []
    for path, report in reports:
        names, decibels = layer_errors(report)
        label = os.path.basename(os.path.dirname(os.path.abspath(path))) if path.endswith("quantization_report.json") else path
        axes.plot(range(len(names)), decibels, marker="o", markersize=3, linewidth=0.9, label=f"{label} ({report['bits_per_weight']:.2f} bits)")
    if not names:
        return False
    if len(names) <= 64:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axes.set(ylabel="signal to error of the output, dB", xlabel="linear")
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture)
    plt.close(figure)
    return True


def load_reports(paths):
    reports = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            try:
                report = json.load(file)
                report["bits_per_weight"], [entry["module"] for entry in report["layers"]]
            except (ValueError, KeyError, TypeError) as problem:
                raise SystemExit(f"{path}: not a report of qquant: {problem!r}")
        reports.append((path, report))
    return reports


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", help="prefix of the pictures' names")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    tables = [path for path in options.results if path.endswith(".csv")]
    reports = [path for path in options.results if path.endswith(".json")]
    try:
        rows = load([path for path in options.results if not path.endswith((".csv", ".json"))])
        reports = load_reports(reports)
        tables = [load_quality(path) for path in tables]
    except OSError as problem:
        raise SystemExit(f"plot.py: {problem}")
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "qbench"       # equal results give equal pictures
    prefix = options.out or options.results[0].rsplit(".", 1)[0]
    roofs, written = roof_lines(rows), []
    places = sorted({machine(r) for r in rows if r["kind"] == "gemm"})
    for i, where in enumerate(places):
        path = f"{prefix}-roofline{f'-{i + 1}' if len(places) > 1 else ''}.{options.format}"
        if roofline(rows, where, roofs, path):
            written.append(path)
    path = f"{prefix}-speedup.{options.format}"
    if speedup(rows, path):
        written.append(path)
    for i, table in enumerate(tables):
        path = f"{prefix}-quality{f'-{i + 1}' if len(tables) > 1 else ''}.{options.format}"
        if quality(table, path):
            written.append(path)
    path = f"{prefix}-layers.{options.format}"
    if reports and layers(reports, path):
        written.append(path)
    print(*written, sep="\n")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
