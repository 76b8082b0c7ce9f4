#!/usr/bin/env python3
"""Quality of every scheme and method: quantizes, compares with FP16 on held-out text, and writes the rows of one model in
tests/golden/quality.csv, or checks them (perplexity, KL, size within 0.2 %, or 1e-5 of KL). Then what has to hold among
them is printed, line by line; any that does not hold, or differs, gives exit code 1.

    python3 quality.py --bin build/default/bin [--check] [--only NAME,NAME] [--cache DIR]
    python3 quality.py --bin build/default/bin --model ~/.cache/qengine/gemma-3-270m-q4_k_m.gguf --name gemma-3-270m

Each row is a process of its own, and is kept in the cache under a hash of the program, the row, the model and the texts: a
stopped run goes on where it was. A GGUF model is first dequantized to a folder of FP16, the reference."""
import argparse
import csv
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden" / "quality.csv"
STATIC = {"scheme": "w8a8", "static": True}
TWO_LEVEL = "int4:g128:u8:s=f16/channel@a8"

# name, recipe (a scheme's text or a map; a number: a budget of bits), method
ROWS = [
    ("fp16", None, ""),
    ("w8a8-dynamic", "w8a8", "rtn"),
    ("w8a8-static", STATIC, "rtn"),
    ("w8a8-smoothquant", "w8a8", "smoothquant+rtn"),
    ("w8a8-static-smoothquant", STATIC, "smoothquant+rtn"),
    ("w4a16-g128-rtn", "w4a16-g128", "rtn"),
    ("w4a16-g128-awq", "w4a16-g128", "awq+rtn"),
    ("w4a16-g128-gptq", "w4a16-g128", "gptq"),
    ("w4a16-g128-gptq-order", "w4a16-g128", "gptq-order"),
    ("w4a16-g128-awq-gptq", "w4a16-g128", "awq+gptq"),
    ("w4a16-g128-adaround", "w4a16-g128", "adaround"),
    ("w4a16-g128-asym-rtn", "w4a16-g128-asym", "rtn"),
    ("w4a16-g128-asym-awq", "w4a16-g128-asym", "awq+rtn"),
    ("w4a16-g128-asym-gptq-order", "w4a16-g128-asym", "gptq-order"),
    ("w4a8-fp16-scales", "w4a8-g128", "rtn"),
    ("w4a8-two-level", TWO_LEVEL, "rtn"),
    ("w4a8-two-level-rotated", TWO_LEVEL, "rotate+rtn"),
    ("w4a8-fp16-scales-gptq", "w4a8-g128", "gptq"),
    ("w4a8-two-level-gptq", TWO_LEVEL, "gptq"),
    ("nf4", "nf4", "rtn"),
    ("kmeans4", "kmeans4", "kmeans"),
    ("kmeans3", "kmeans3", "kmeans"),
    ("mxfp4", "mxfp4", "rtn"),
    ("mxint8", "mxint8", "rtn"),
    ("mx6", "mx6", "rtn"),
    ("q4_k-rtn", "q4_k", "rtn"),
    ("q4_k-gptq", "q4_k", "gptq"),
    ("mixed-4.5", 4.5, "gptq-order"),
    ("int2-g64-rtn", "w2a16-g64", "rtn"),
    ("int2-g64-gptq", "w2a16-g64", "gptq"),
    ("ternary-twn", "twn", "twn"),
    ("binary", "binary", "binary"),
]
FIELDS = ["model", "name", "recipe", "method", "bits_per_weight", "megabytes", "tokens", "perplexity", "kl_mean", "kl_p99", "top1"]
LINE = re.compile(r"tokens (\d+)  perplexity ([0-9.]+), reference [0-9.]+ .*KL mean ([0-9.]+), p99 ([0-9.]+), .*top-1 ([0-9.]+) %")


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr.strip()}")
    return result.stdout


def digest(*parts):
    h = hashlib.sha256()
    for part in parts:
        h.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        h.update(b"\0")
    return h.hexdigest()[:24]


def weight_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def measure(args, folder, name, recipe, method):
    """One row as a dictionary."""
    bits, candidate, qquant = 16.0, args.model, args.bin / "qquant"
    if recipe is None:
        out = run(qquant, "--compare", args.model, "--model", args.model, "--text", args.text, "--quiet")
    else:
        candidate = folder / name
        scheme = ["--scheme", recipe]
        if isinstance(recipe, dict):
            path = folder / f"{name}.json"
            path.write_text(json.dumps(recipe))
            scheme = ["--scheme", path]
        elif isinstance(recipe, float):
            scheme = ["--budget", recipe]
        out = run(qquant, "--model", args.model, *scheme, "--method", method, "--calib", args.calib, "--format", "qengine", "--out",
                  candidate, "--text", args.text)
        bits = float(re.search(r"at ([0-9.]+) bits", out).group(1))
    tokens, *values = LINE.search(out).groups()
    described = json.dumps(recipe) if isinstance(recipe, dict) else f"budget {recipe}" if isinstance(recipe, float) else recipe or ""
    return dict(zip(FIELDS, [args.name, name, described, method, f"{bits:.4f}", f"{weight_bytes(candidate) / 1e6:.3f}", tokens, *values]))


def cached(args, row):
    kept = args.cache / f"{args.name}-{row[0]}-{digest(args.key, json.dumps(row))}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    with tempfile.TemporaryDirectory(dir=args.cache) as folder:
        result = measure(args, Path(folder), *row)
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(kept)
    return result


def dequantized(args):
    """The folder of FP16 that a GGUF model stands for."""
    folder = args.cache / f"{args.name}-f16-{digest(args.model)}"
    if not folder.exists():
        run(args.bin / "qquant", "--model", args.model, "--scheme", "f16", "--format", "qengine", "--out", folder, "--quiet")
    return folder


def differs(a, b):
    for field in FIELDS:
        x, y = a[field], b[field]
        if field in ("perplexity", "bits_per_weight", "megabytes") and abs(float(x) / float(y) - 1) > 0.002:
            return field
        if field.startswith("kl") and abs(float(x) - float(y)) > max(0.002 * float(y), 1e-5):
            return field
        if field == "top1" and abs(float(x) - float(y)) > 0.2:
            return field
        if field in ("model", "name", "recipe", "method", "tokens") and x != y:
            return field
    return None


def noise(*rows):
    """Standard error of a difference of log perplexities: a token's log(p / q) varies by about twice the KL."""
    return math.sqrt(sum(2 * float(row["kl_mean"]) / float(row["tokens"]) for row in rows))


def claims(rows):
    """What has to hold: (text, whether it does). Rows that were not measured make no claim."""
    at = {row["name"]: row for row in rows}
    def number(name, field):
        return float(at[name][field])
    for better in ("w4a16-g128-gptq", "w4a16-g128-gptq-order", "w4a16-g128-awq", "w4a16-g128-adaround"):
        if better in at and "w4a16-g128-rtn" in at:
            a, b = number(better, "kl_mean"), number("w4a16-g128-rtn", "kl_mean")
            yield f"{better} is closer than RTN: mean KL {a:.5f} against {b:.5f}", a < b
    pairs = [("w4a8-two-level", "w4a8-fp16-scales", 0.01), ("w4a8-two-level-gptq", "w4a8-fp16-scales-gptq", 0.01),
             ("w8a8-static", "w8a8-dynamic", 0.02)]
    for a, b, limit in pairs:
        if a in at and b in at:
            ratio = number(a, "perplexity") / number(b, "perplexity") - 1
            yield f"perplexity of {a} within {100 * limit:g} % of {b}: {100 * ratio:+.3f} %", abs(ratio) <= limit
    for mixed in [name for name in at if name.startswith("mixed")]:
        smaller = [row for row in rows if not row["name"].startswith(("mixed", "fp16")) and float(row["megabytes"]) <= number(mixed, "megabytes")]
        closer = [row["name"] for row in smaller if float(row["kl_mean"]) <= number(mixed, "kl_mean")]
        yield (f"none of {len(smaller)} uniform rows no larger than {mixed} has less mean KL ({number(mixed, 'kl_mean'):.5f})"
               + "".join(f"; {name}" for name in closer)), not closer
        lower = [row for row in smaller if float(row["perplexity"]) < number(mixed, "perplexity")]
        beyond = [row["name"] for row in lower
                  if math.log(number(mixed, "perplexity") / float(row["perplexity"])) > 2 * noise(row, at[mixed])]
        yield (f"none of them has less perplexity ({number(mixed, 'perplexity'):.4f}) by more than its noise; {len(lower)} have less"
               + "".join(f"; {name}" for name in beyond)), not beyond


def write(rows, name):
    """This model's rows anew, with those of it that others measure (trained ones) and every other model's kept."""
    old = list(csv.DictReader(GOLDEN.open(newline=""))) if GOLDEN.exists() else []
    ours = {row[0] for row in ROWS}
    kept = [row for row in old if row["model"] != name], [row for row in old if row["model"] == name and row["name"] not in ours]
    models = sorted({row["model"] for row in old} | {name}, key=lambda m: m != "tiny-llama")
    with GOLDEN.open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        for model in models:
            writer.writerows(rows + kept[1] if model == name else [row for row in kept[0] if row["model"] == model])


def compare(rows):
    golden = {(row["model"], row["name"]): row for row in csv.DictReader(GOLDEN.open(newline=""))}
    bad = []
    for row in rows:
        other = golden.get((row["model"], row["name"]))
        field = differs(row, other) if other else "missing"
        if field:
            bad.append(f"{row['name']}: {field}" + (f" {row[field]}, was {other[field]}" if other else ""))
    print(f"{len(rows) - len(bad)} of {len(rows)} rows agree" + "".join(f"\n  {item}" for item in bad))
    return not bad


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=TESTS / "data" / "tiny-llama")
    parser.add_argument("--name", help="of the model in the file; the folder's by default")
    parser.add_argument("--text", type=Path, default=TESTS / "data" / "heldout.txt")
    parser.add_argument("--calib", type=Path, default=TESTS / "data" / "calib.txt")
    parser.add_argument("--cache", type=Path, default=TESTS.parent / "build" / "quality")
    parser.add_argument("--check", action="store_true", help="against the file, which stays as it is")
    parser.add_argument("--only", default="", help="these rows; writes those the file has in the cache as well")
    return parser.parse_args()


def main():
    args = parse()
    args.name = args.name or args.model.stem
    args.cache.mkdir(parents=True, exist_ok=True)
    args.key = digest(args.bin / "qquant", args.model if args.model.is_file() else args.model / "model.safetensors", args.text, args.calib)
    if args.model.is_file():
        args.model = dequantized(args)
    rows = []
    for row in ROWS:
        if not args.only or row[0] in args.only.split(","):
            rows.append(cached(args, row))
            print(" ".join(rows[-1][field] or "-" for field in FIELDS[1:]), flush=True)
    if not rows:
        sys.exit("no such row")
    good = compare(rows) if args.check else True
    if not args.check and args.only:
        print("the file holds every row of a model: leave --only out to write it")
    elif not args.check:
        write(rows, args.name)
    held = list(claims(rows))
    for text, true in held:
        print(("holds: " if true else "FAILS: ") + text)
    sys.exit(0 if good and all(true for _, true in held) else 1)


if __name__ == "__main__":
    main()
