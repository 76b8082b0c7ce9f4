#!/usr/bin/env python3
"""Perplexity of post-training quantization against QAT, all measured by qrun on tests/data/heldout.txt; writes results.csv.

    python3 compare.py --bin build/default/bin --trained OUT      # OUT/int4, OUT/int2, ...: what train.py wrote
"""
import argparse
import csv
import re
import subprocess
import tempfile
from pathlib import Path

from llama import SCHEMES

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "tests/data"


def perplexity(args, model):
    out = subprocess.run([args.bin / "qrun", "-m", model, "--perplexity", DATA / "heldout.txt", "--quiet"], check=True,
                         capture_output=True, text=True).stdout
    return re.search(r"perplexity ([0-9.]+)", out).group(1)


def after_training(args, scheme, method):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([args.bin / "qquant", "--model", DATA / "tiny-llama", "--scheme", scheme.quant, "--method", method, "--calib",
                        DATA / "calib.txt", "--format", "qengine", "--out", f"{folder}/m", "--quiet"], check=True, capture_output=True)
        return perplexity(args, f"{folder}/m")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--trained", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for name, scheme in SCHEMES.items():
        if scheme:
            plain, gptq = (after_training(args, scheme, method) for method in (scheme.method, "gptq"))
        else:
            plain, gptq = perplexity(args, DATA / "tiny-llama"), ""
        rows.append([name, scheme.quant if scheme else "f16", plain, gptq, perplexity(args, args.trained / name)])
        print(*rows[-1], flush=True)
    with (HERE / "results.csv").open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([["name", "scheme", "ptq", "ptq_gptq", "qat"], *rows])


if __name__ == "__main__":
    main()
