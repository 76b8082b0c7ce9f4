#!/usr/bin/env python3
"""Quality of every scheme and method: quantizes, compares with FP16 on held-out tokens (TOKENS), and writes the rows of
tests/golden/quality.csv, or checks them (perplexity, KL, size within 0.2 %, or 1e-5 of KL). Then what has to hold among them
is printed, line by line; any that does not hold, or differs, gives exit code 1.

    python3 quality.py --bin build/default/bin                        # both models, the whole file
    python3 quality.py --bin build/default/bin --check tiny-llama     # what .ci/run does: the bundled model alone

Gemma 3 270M comes by scripts/model.sh and is dequantized to a folder of FP16 first, the reference. Each row is a process of
its own, --jobs of them at a time, and is kept in the cache under a hash of the programs, the row, the model and the texts: a
stopped run goes on where it was. Trained rows (QAT) are measured on the checkpoints of tests/data/qat."""
import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quality_report import claims, table

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden" / "quality.csv"
DOCUMENT = TESTS.parent / "docs" / "quantize.md"       # has the table of GOLDEN between two lines
TEXT, CALIBRATION, TRAINED = TESTS / "data" / "quality.txt", TESTS / "data" / "calib.txt", TESTS / "data" / "qat"
MODELS = {"tiny-llama": TESTS / "data" / "tiny-llama",
          "gemma-3-270m": Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qengine" / "gemma-3-270m-q4_k_m.gguf"}
BEGIN, END = "<!-- from tests/golden/quality.csv -->\n", "<!-- end -->\n"
TOKENS = {"tiny-llama": 16000, "gemma-3-270m": 16000}    # a row of Gemma takes 300 s of processor time
STATIC = {"scheme": "w8a8", "static": True}
TWO_LEVEL = "int4:g128:u8:s=f16/channel@a8"

# name, recipe (a scheme's text or a map; a number: a budget of bits), method
ROWS = [
    ("fp16", None, ""),
    ("w8a8-dynamic", "w8a8", "rtn"),
    ("w8a8-static", STATIC, "rtn"),
    ("w8a8-static-rotated", STATIC, "rotate+rtn"),
    ("w8a8-smoothquant", "w8a8", "smoothquant+rtn"),
    ("w4a16-g128-rtn", "w4a16-g128", "rtn"),
    ("w4a16-g128-awq", "w4a16-g128", "awq+rtn"),
    ("w4a16-g128-gptq", "w4a16-g128", "gptq"),
    ("w4a16-g128-adaround", "w4a16-g128", "adaround"),
    ("w4a8-fp16-scales", "w4a8-g128", "rtn"),
    ("w4a8-two-level", TWO_LEVEL, "rtn"),
    ("w4a8-two-level-rotated", TWO_LEVEL, "rotate+rtn"),
    ("nf4", "nf4", "rtn"),
    ("kmeans4", "kmeans4", "kmeans"),
    ("kmeans3", "kmeans3", "kmeans"),
    ("mxfp4", "mxfp4", "rtn"),
    ("mxint8", "mxint8", "rtn"),
    ("mx6", "mx6", "rtn"),
    ("mixed-4.5", 4.5, "gptq-order"),
]
# Of the bundled model alone. The recipe of a trained row is what examples/qat trained with.
BUNDLED = [
    ("w8a8-static-smoothquant", STATIC, "smoothquant+rtn"),
    ("w4a16-g128-gptq-order", "w4a16-g128", "gptq-order"),
    ("w4a16-g128-awq-gptq", "w4a16-g128", "awq+gptq"),
    ("w4a16-g128-asym-rtn", "w4a16-g128-asym", "rtn"),
    ("w4a16-g128-asym-awq", "w4a16-g128-asym", "awq+rtn"),
    ("w4a16-g128-asym-gptq-order", "w4a16-g128-asym", "gptq-order"),
    ("w4a8-fp16-scales-gptq", "w4a8-g128", "gptq"),
    ("w4a8-two-level-gptq", TWO_LEVEL, "gptq"),
    ("q4_k-rtn", "q4_k", "rtn"),
    ("q4_k-gptq", "q4_k", "gptq"),
    ("int2-rtn", "int2:g64:f16:z=f16", "rtn"),
    ("int2-gptq", "int2:g64:f16:z=f16", "gptq"),
    ("int2-qat", "int2:g64:f16:z=f16", "qat"),
    ("ternary-twn", "twn", "twn"),
    ("ternary-gptq", "int2:channel:f32:z=1", "gptq"),
    ("ternary-qat", "int2:channel:f32:z=1", "qat"),
    ("binary-mean", "binary", "binary"),
    ("binary-qat", "sign:channel:f32", "qat"),
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


def trained_folder(name):
    return TRAINED / name.removesuffix("-qat")


def trained_bits(folder):
    """Bits of a weight of the quantized linears, from the sizes of the tensors of a checkpoint that brings no report."""
    with (folder / "model.safetensors").open("rb") as file:
        tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    linears = json.loads((folder / "config.json").read_text())["quantization_config"]["weights"]
    stored = sum(tensors[name]["data_offsets"][1] - tensors[name]["data_offsets"][0] for name in tensors
                 if name.rsplit(".", 1)[0] in linears)
    return 8 * stored / sum(linear["n"] * linear["k"] for linear in linears.values())


def stored_bits(folder):
    return json.loads((folder / "quantization_report.json").read_text())["bits_per_weight"]


class Model:
    """A model of the table: its FP16 folder, and the rows in the cache."""

    def __init__(self, args, name):
        self.args, self.name, self.qquant = args, name, args.bin / "qquant"
        self.rows = ROWS + (BUNDLED if name == "tiny-llama" else [])
        self.source = MODELS[name]
        if not self.source.exists():
            sys.exit(f"{self.source} is missing: scripts/model.sh obtains it")
        weights = self.source if self.source.is_file() else self.source / "model.safetensors"
        self.key = digest(self.qquant, *sorted(args.bin.parent.glob("libqengine.so.*.*.*")), weights, TEXT, CALIBRATION,
                          str(TOKENS[name]))
        self.folder = self.dequantized() if self.source.is_file() else self.source

    def dequantized(self):
        folder = self.args.cache / f"{self.name}-f16-{digest(self.source)}"
        if not folder.exists():
            run(self.qquant, "--model", self.source, "--scheme", "f16", "--format", "qengine", "--out", folder, "--quiet")
        return folder

    def quantized(self, name, recipe, method):
        """The folder of a row and the bits of its weights; the row's folder stays until the row is measured."""
        if recipe is None:
            return self.folder, 16.0
        if method == "qat":
            return trained_folder(name), trained_bits(trained_folder(name))
        folder = self.args.cache / f"{self.name}-{name}-{digest(self.key, json.dumps(recipe), method)}.model"
        if not folder.exists():
            scheme = ["--budget", recipe] if isinstance(recipe, float) else ["--scheme", recipe]
            if isinstance(recipe, dict):
                scheme[1] = folder.with_suffix(".recipe")
                scheme[1].write_text(json.dumps(recipe))
            run(self.qquant, "--model", self.folder, *scheme, "--method", method, "--calib", CALIBRATION, "--format", "qengine",
                "--threads", 1, "--resume", "--out", folder)
        return folder, stored_bits(folder)

    def measure(self, name, recipe, method):
        trained = [trained_folder(name) / "model.safetensors"] if method == "qat" else []
        kept = self.args.cache / f"{self.name}-{name}-{digest(self.key, json.dumps(recipe), method, *trained)}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        folder, bits = self.quantized(name, recipe, method)
        out = run(self.qquant, "--compare", self.folder, "--model", folder, "--text", TEXT, "--text-tokens",
                  TOKENS[self.name], "--threads", 1, "--quiet")
        tokens, *values = LINE.search(out).groups()
        text = json.dumps(recipe) if isinstance(recipe, dict) else f"budget {recipe}" if isinstance(recipe, float) else recipe or ""
        row = dict(zip(FIELDS, [self.name, name, text, method, f"{bits:.4f}", f"{weight_bytes(folder) / 1e6:.3f}", tokens, *values]))
        kept.with_suffix(".part").write_text(json.dumps(row))
        kept.with_suffix(".part").rename(kept)
        if folder.suffix == ".model":
            shutil.rmtree(folder)
        return row


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


def golden():
    return list(csv.DictReader(GOLDEN.open(newline=""))) if GOLDEN.exists() else []


def write(measured):
    """The rows of the models measured anew, every other model's kept."""
    kept = [row for row in golden() if row["model"] not in measured]
    rows = sorted([row for rows in measured.values() for row in rows] + kept, key=lambda row: list(MODELS).index(row["model"]))
    with GOLDEN.open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def document():
    """docs/quantize.md with the table that the file gives."""
    head, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    return head + BEGIN + table(golden(), list(MODELS)) + END + rest.split(END)[1]


def compare(name, rows, whole):
    """Whether the file has these rows with these figures and, where all were measured, no others."""
    known = {row["name"]: row for row in golden() if row["model"] == name}
    bad = [f"{other}: not a row of this script" for other in known if whole and other not in {row["name"] for row in rows}]
    for row in rows:
        other = known.get(row["name"])
        field = differs(row, other) if other else "missing"
        if field:
            bad.append(f"{row['name']}: {field}" + (f" {row[field]}, was {other[field]}" if other else ""))
    print("\n  ".join([f"{name}: {len(rows)} rows, {len(bad)} differ", *bad]))
    return not bad


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=" or ".join(MODELS) + " (both)")
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=TESTS.parent / "build" / "quality")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="rows at a time, each on one thread")
    parser.add_argument("--check", action="store_true", help="against the file, which stays as it is")
    parser.add_argument("--only", help="these rows, separated by commas; the file stays as it is")
    args = parser.parse_args()
    args.models = args.models or list(MODELS)
    for name in args.models:
        if name not in MODELS:
            parser.error(f"no model {name}; there are {', '.join(MODELS)}")
    return args


def measure(args, name):
    model = Model(args, name)
    wanted = [row for row in model.rows if not args.only or row[0] in args.only.split(",")]
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda row: model.measure(*row), wanted):
            print(" ".join(row[field] or "-" for field in FIELDS), flush=True)
            rows.append(row)
    return rows


def main():
    args = parse()
    args.cache.mkdir(parents=True, exist_ok=True)
    measured = {name: measure(args, name) for name in args.models}
    if not all(measured.values()):
        sys.exit("no such row")
    good = True
    if args.check:
        good = all([compare(name, rows, not args.only) for name, rows in measured.items()])
        if document() != DOCUMENT.read_text(encoding="utf-8"):
            good = False
            print(f"{DOCUMENT} does not have the table of {GOLDEN}")
    elif not args.only:
        write(measured)
        DOCUMENT.write_text(document(), encoding="utf-8")
    for name, rows in measured.items():
        for text, true in claims(rows):
            print(f"{'holds' if true else 'FAILS'}: {name}: {text}")
            good &= true
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
