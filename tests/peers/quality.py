#!/usr/bin/env python3
"""Quality of every scheme and method on the bundled model: quantizes, compares with FP16 on held-out text, and writes
tests/golden/quality.csv, or checks it (perplexity, KL and bits within 0.2 %, or within 1e-5 of KL).

    python3 quality.py --bin build/default/bin [--check] [--only NAME,NAME]
"""
import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden" / "quality.csv"
STATIC = {"scheme": "w8a8", "static": True}

# name, recipe (a scheme's text or a map), method
ROWS = [
    ("fp16", None, None),
    ("w8a8-dynamic", "w8a8", "rtn"),
    ("w8a8-static", STATIC, "rtn"),
    ("w8a8-smoothquant", "w8a8", "smoothquant+rtn"),
    ("w8a8-static-smoothquant", STATIC, "smoothquant+rtn"),
    ("w4a16-g128-rtn", "w4a16-g128", "rtn"),
    ("w4a16-g128-rtn-mse", {"scheme": "w4a16-g128", "range": "mse"}, "rtn"),
    ("w4a16-g128-awq", "w4a16-g128", "awq+rtn"),
    ("w4a16-g128-gptq", "w4a16-g128", "gptq"),
    ("w4a16-g128-gptq-order", "w4a16-g128", "gptq-order"),
    ("w4a16-g128-awq-gptq", "w4a16-g128", "awq+gptq"),
    ("w4a8-g128", "w4a8-g128", "rtn"),
    ("w4a8-two-level", "int4:g128:u8:s=f16/channel@a8", "rtn"),
    ("w4a8-two-level-rotated", "int4:g128:u8:s=f16/channel@a8", "rotate+rtn"),
    ("w4a8-two-level-gptq", "int4:g128:u8:s=f16/channel@a8", "gptq"),
    ("nf4", "nf4:g64:f32", "rtn"),
    ("kmeans4", "lut4:t=1", "kmeans"),
    ("kmeans3", "lut3:t=1", "kmeans"),
    ("mxfp4", "e2m1:g32:e8m0", "rtn"),
    ("mxint8", "int8:g32:e8m0^-6", "rtn"),
    ("mx6", "int5:g2:pow2n^-3:s=e8m0/g16", "rtn"),
    ("q4_k", "q4_k", "rtn"),
    ("q4_k-gptq", "q4_k", "gptq"),
    ("int2-g64", "int2:g64:f16:z=u8", "rtn"),
    ("int2-g64-gptq", "int2:g64:f16:z=u8", "gptq"),
    ("ternary", "int2:channel:f16:z=1", "twn"),
    ("binary", "sign:channel:f16", "binary"),
]
# Minutes each: with --slow alone.
SLOW = [("w4a16-g128-adaround", "w4a16-g128", "adaround")]
FIELDS = ["name", "recipe", "method", "bits_per_weight", "tokens", "perplexity", "kl_mean", "kl_p99", "top1"]
LINE = re.compile(r"tokens (\d+)  perplexity ([0-9.]+), reference [0-9.]+ .*KL mean ([0-9.]+), p99 ([0-9.]+), .*top-1 ([0-9.]+) %")


def measure(args, folder, name, recipe, method):
    model, text, bits = TESTS / "data" / "tiny-llama", TESTS / "data" / "heldout.txt", 16.0
    candidate = model
    if recipe:
        scheme = recipe
        if isinstance(recipe, dict):
            scheme = folder / f"{name}.json"
            scheme.write_text(json.dumps(recipe))
        candidate = folder / name
        run = subprocess.run([args.bin / "qquant", "--model", model, "--scheme", scheme, "--method", method, "--calib",
                              TESTS / "data" / "calib.txt", "--format", "qengine", "--out", candidate],
                             check=True, capture_output=True, text=True)
        bits = float(re.search(r"at ([0-9.]+) bits", run.stdout).group(1))
    run = subprocess.run([args.bin / "qquant", "--compare", model, "--model", candidate, "--text", text, "--quiet"], check=True,
                         capture_output=True, text=True)
    values = LINE.search(run.stdout).groups()
    described = json.dumps(recipe) if isinstance(recipe, dict) else recipe or ""
    return dict(zip(FIELDS, [name, described, method or "", f"{bits:.4f}", *values]))


def differs(a, b):
    for field in FIELDS:
        x, y = a[field], b[field]
        if field in ("perplexity", "bits_per_weight") and abs(float(x) / float(y) - 1) > 0.002:
            return field
        if field.startswith("kl") and abs(float(x) - float(y)) > max(0.002 * float(y), 1e-5):
            return field
        if field == "top1" and abs(float(x) - float(y)) > 0.2:
            return field
        if field in ("name", "recipe", "method", "tokens") and x != y:
            return field
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--slow", action="store_true")
    args = parser.parse_args()
    wanted = [row for row in ROWS + SLOW * args.slow if not args.only or row[0] in args.only.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in wanted:
            rows.append(measure(args, Path(folder), *row))
            print(" ".join(rows[-1][field] or "-" for field in FIELDS if field != "recipe"), flush=True)
    if not args.check:
        if args.only:
            sys.exit("the golden file holds every row: leave --only out, or add --check")
        with GOLDEN.open("w", newline="") as out:
            writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    golden = {row["name"]: row for row in csv.DictReader(GOLDEN.open(newline=""))}
    bad = [(row["name"], differs(row, golden[row["name"]]) if row["name"] in golden else "missing") for row in rows]
    bad = [item for item in bad if item[1]]
    print(f"{len(rows) - len(bad)} of {len(rows)} rows agree" + "".join(f"; {name}: {field}" for name, field in bad))
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    main()
