#!/usr/bin/env python3
"""Short table of bench/gpu.sh's results: times faster than cuBLASLt FP16 per scheme and M, summed over a layer's GEMMs.

usage: gpu_report.py FILE.jsonl...
A sum counts only where every shape of the layer was measured for that M."""
import collections, json, os, re, sys

SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shapes.txt")


def layers():
    """{(n, k): [names]} of bench/shapes.txt."""
    found = collections.defaultdict(list)
    for name, n, k in re.findall(r'SHAPE\("([^"]+)", (\d+), (\d+)\)', open(SHAPES).read()):
        found[int(n), int(k)].append(name)
    return found


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help") else 2
    names, ours, devices = layers(), {}, set()
    shapes = collections.Counter(n.split(".")[0] for group in names.values() for n in group if "." in n)
    for path in sys.argv[1:]:
        if not os.path.exists(path):
            continue
        for line in open(path):
            r = json.loads(line)
            if r.get("kind") != "gemm" or not r.get("us_median"):
                continue
            for name in names.get((r["n"], r["k"]), []):
                ours[r.get("impl") if r["backend"] == "peer" else r["scheme"], name, r["m"]] = r
            devices.add(r.get("device", "?"))
    if not ours:
        print("gpu_report: no measurement in the files", file=sys.stderr)
        return 1
    tokens = sorted({key[2] for key in ours})
    print(f"Measured on {', '.join(sorted(devices))}: times faster than cuBLASLt FP16, sum of a layer's GEMMs "
          "(- where a shape was not measured).\n")
    print("|layer|what|" + "|".join(f"M {m}" for m in tokens) + "|\n|" + "--|" * (2 + len(tokens)))
    for layer in sorted(shapes):
        for what in sorted({key[0] for key in ours if key[1].startswith(layer + ".")}):
            cells = []
            for m in tokens:
                rows = [r for (w, name, at), r in ours.items() if (w, at) == (what, m) and name.startswith(layer + ".")]
                base = [r.get("baseline_us") for r in rows]
                whole = len(rows) == shapes[layer] and all(base)
                cells.append(f"{sum(base) / sum(r['us_median'] for r in rows):.2f}" if whole else "-")
            print(f"|{layer}|{what}|" + "|".join(cells) + "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
