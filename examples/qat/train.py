#!/usr/bin/env python3
"""Trains the bundled model with fake quantization (QAT) and writes a checkpoint that qrun runs.

    python3 train.py --debs DIR --scheme int2 --out OUT [--steps 400] [--seconds 280]

The text is that of tests/data/train_tiny.py, out of two Debian packages (`apt-get download sword-text-web=426.0-1
jargon-text=4.4.7-4.1`); held-out chapters are not in it. With --seconds the run stops there, keeps its state beside OUT, and
the same command goes on. The scheme `float` trains the unquantized model by the same steps: what any training would win.
"""
import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import torch

from export import export
from llama import SCHEMES, Llama
from qengine import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "tests/data"
CONTEXT, EOS = 512, 2


def training_ids(debs, cache):
    """The training text of the bundled model as one row of token ids."""
    if cache.exists():
        return torch.load(cache)
    sys.path.insert(0, str(DATA))
    import train_tiny as source
    with tempfile.TemporaryDirectory() as work:
        source.unpack(debs, Path(work))
        documents = [d for read in (source.web_documents, source.jargon_documents) for d in source.split(read(Path(work)))[0]]
    tokenizer, ids = Tokenizer(DATA / "tiny-llama/tokenizer.json"), []
    for document in documents:
        ids += tokenizer.encode(document) + [EOS]
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.tensor(ids), cache)
    return torch.tensor(ids)


@torch.no_grad()
def perplexity(model, text):
    """As qrun --perplexity: windows of 512 tokens, BOS the first of each."""
    bos, *ids = Tokenizer(DATA / "tiny-llama/tokenizer.json").encode(text)
    total = 0.0
    for at in range(0, len(ids), CONTEXT - 1):
        window = torch.tensor([[bos] + ids[at:at + CONTEXT - 1]])
        total += model.loss(window.to(model.head.device)).item() * (window.shape[1] - 1)
    return math.exp(total / len(ids))


def optimizer_for(model, rate):
    """Weights at `rate`; the logarithms of the scales slower, zeros and norms without decay as well."""
    groups = {"weight": [], "scale": [], "other": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups["scale" if "log_scale" in name else "weight" if p.dim() == 2 and "zero" not in name else "other"].append(p)
    return torch.optim.AdamW([{"params": groups["weight"], "weight_decay": 0.05, "share": 1.0},
                              {"params": groups["scale"], "weight_decay": 0.0, "share": 0.5},
                              {"params": groups["other"], "weight_decay": 0.0, "share": 1.0}], lr=rate, betas=(0.9, 0.98))


def run(model, ids, args, state_path):
    optimizer, pick, first = optimizer_for(model, args.rate), torch.Generator().manual_seed(args.seed), 0
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pick.set_state(state["pick"])
        first = state["step"]
    began = time.time()
    for step in range(first, args.steps):
        rate = args.rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        starts = torch.randint(0, len(ids) - CONTEXT, (args.batch,), generator=pick)
        loss = model.loss(torch.stack([ids[s:s + CONTEXT] for s in starts]).to(args.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.3f}  {time.time() - began:.0f} s", flush=True)
        if args.seconds and time.time() - began > args.seconds and step + 1 < args.steps:
            state_path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pick": pick.get_state(),
                        "step": step + 1}, state_path)
            return False
    state_path.unlink(missing_ok=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, required=True, help="folder with the two .deb files")
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=2, help="windows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs a library built with it")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: run to the end")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Llama(DATA / "tiny-llama", SCHEMES[args.scheme]).to(args.device)
    held_out = (DATA / "heldout.txt").read_text(encoding="utf-8")
    print(f"{args.scheme}: perplexity {perplexity(model, held_out):.3f} before training", flush=True)
    ids = training_ids(args.debs, args.debs / "ids.pt")
    if not run(model, ids, args, args.out.with_name(args.out.name + ".state")):
        print("stopped; the same command goes on")
        return 3
    export(model.cpu(), DATA / "tiny-llama", args.out)
    print(f"{args.scheme}: perplexity {perplexity(model, held_out):.3f} after {args.steps} steps; {args.out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
