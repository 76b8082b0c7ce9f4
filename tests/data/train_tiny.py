#!/usr/bin/env python3
"""Trains the bundled tiny Llama model and writes tests/data/tiny-llama, heldout.txt, quality.txt and calib.txt.

The text is public domain and comes out of two Debian packages (see PROVENANCE.md):

    apt-get download sword-text-web=426.0-1 jargon-text=4.4.7-4.1
    train_tiny.py --debs . --out tests/data

Needs: torch, transformers, tokenizers, safetensors, numpy. The same seed, versions and thread count repeat the run;
other versions give a model of the same quality with other bits.
"""
import argparse
import gzip
import hashlib
import json
import math
import re
import struct
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

PACKAGES = {
    "sword-text-web_426.0-1_all.deb": "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    "jargon-text_4.4.7-4.1_all.deb": "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
}
# The pattern of Llama 3, so that GGUF readers know it as pre-tokenizer "llama-bpe".
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
CONTEXT = 512
HELD_OUT_EVERY = 40
QUALITY_BYTES = 69500  # 16,000 tokens of Gemma 3 and some


def unpack(debs, work):
    """Checks both packages against their pinned hashes and unpacks them into `work`."""
    for name, want in PACKAGES.items():
        path = debs / name
        if not path.exists():
            raise SystemExit(f"{path} is missing: apt-get download {name.split('_')[0]}")
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != want:
            raise SystemExit(f"{path}: sha256 {got}, expected {want}")
        subprocess.run(["dpkg-deb", "-x", str(path), str(work)], check=True)


def clean_osis(text):
    """OSIS markup to plain text: notes and titles go, paragraphs and verse lines become line ends."""
    text = re.sub(r"<note\b.*?</note>", " ", text, flags=re.S)
    text = re.sub(r"<title\b.*?</title>", "", text, flags=re.S)
    text = re.sub(r'<div eID="[^"]*" type="x-p"/>|<lg eID="[^"]*"/>|<l eID="[^"]*"[^>]*/>', "\n", text)
    text = re.sub(r"<[^>]*>", "", text)
    text = text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    lines = [re.sub(r"\s+([,.;:?!])", r"\1", " ".join(line.split())) for line in text.split("\n")]
    return "\n".join(line for line in lines if line)


def web_documents(root):
    """The chapters of the World English Bible from its SWORD zText module, in order."""
    folder = root / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    documents = []
    for testament in ("ot", "nt"):
        index = (folder / f"{testament}.bzs").read_bytes()
        packed = (folder / f"{testament}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[offset:offset + size]).decode("utf-8")
            for chapter in re.split(r'<chapter [^>]*sID="[^"]*"[^>]*/>', book)[1:]:
                text = clean_osis(chapter)
                if len(text) > 200:
                    documents.append(text)
    return documents


def jargon_documents(root):
    """The Jargon File, unwrapped, its tables and pictures left out, in pieces of about 4,000 characters."""
    raw = gzip.decompress((root / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode("utf-8")
    documents, current, size = [], [], 0
    for block in re.split(r"\n\s*\n", raw):
        lines = [line.strip() for line in block.split("\n")]
        text = " ".join(line for line in lines if line)
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text) < 40 or letters < 0.85 * len(text) or re.search("[\u2500-\u257f]|  +", text):
            continue
        current.append(text)
        size += len(text)
        if size > 4000:
            documents.append("\n".join(current))
            current, size = [], 0
    return documents + (["\n".join(current)] if current else [])


def split(documents):
    held = documents[HELD_OUT_EVERY // 2::HELD_OUT_EVERY]
    kept = set(held)
    return [d for d in documents if d not in kept], held


def take(documents, n_bytes):
    """Whole lines of the documents, up to about `n_bytes` of UTF-8."""
    out, size = [], 0
    for line in "\n".join(documents).split("\n"):
        size += len(line.encode()) + 1
        if size > n_bytes:
            break
        out.append(line)
    return "\n".join(out) + "\n"


def quality_text(kinds, used, n_bytes):
    """About `n_bytes` of the documents that `used` has nothing of, the kinds in turn, so that any beginning is a mixture."""
    queues = [[d for d in documents if d.split("\n")[0] not in used] for documents in kinds]
    out, sizes = [], [0] * len(queues)
    while any(queues) and sum(sizes) < n_bytes:
        at = min((i for i in range(len(queues)) if queues[i]), key=lambda i: sizes[i])
        out.append(queues[at].pop(0))
        sizes[at] += len(out[-1].encode()) + 1
    return take(out, n_bytes)


def train_tokenizer(documents, vocab, special=(UNK, BOS, EOS), bos=BOS):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                      special_tokens=[(bos, special.index(bos))])])
    return tokenizer


def encode(tokenizer, documents):
    import torch
    ids = []
    for item in tokenizer.encode_batch(documents):
        ids.extend(item.ids + [2])
    return torch.tensor(ids, dtype=torch.long)


def make_model(vocab):
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, initializer_range=0.03))


def mean_loss(model, ids):
    """Mean negative log-likelihood over disjoint windows; every token but the first of each window counts."""
    import torch
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            window = ids[start:start + CONTEXT].unsqueeze(0)
            if window.shape[1] > 1:
                total += model(input_ids=window, labels=window).loss.item() * (window.shape[1] - 1)
                count += window.shape[1] - 1
    model.train()
    return total / count


def train(model, ids, held, args):
    import torch
    decay = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), fused=True)
    pick = torch.Generator().manual_seed(args.seed)
    began, smooth = time.time(), None
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / 100)
        rate = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(0, len(ids) - CONTEXT, (args.batch,), generator=pick)
        batch = torch.stack([ids[s:s + CONTEXT] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            seconds = time.time() - began
            left = seconds / (step + 1) * (args.steps - step - 1)
            print(f"step {step + 1}/{args.steps}  loss {smooth:.3f}  {seconds:.0f} s, {left:.0f} s left", flush=True)
        if step + 1 == args.stop_at:
            break
        if (step + 1) % 1000 == 0:
            print(f"  held out: perplexity {math.exp(mean_loss(model, held)):.2f}", flush=True)


def save(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": UNK,
                "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
                "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, required=True, help="folder with the two .deb files")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop-at", type=int, help="end after this step; the schedule stays that of --steps")
    parser.add_argument("--batch", type=int, default=2, help="windows of 512 tokens per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-only", action="store_true", help="write the texts and the tokenizer, train nothing")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        unpack(args.debs, Path(work))
        web, web_held = split(web_documents(Path(work)))
        jargon, jargon_held = split(jargon_documents(Path(work)))
    training = web + jargon
    heldout = take(web_held[5:], 4500) + take(jargon_held[2:], 4500)
    (args.out / "heldout.txt").write_text(heldout, encoding="utf-8")
    (args.out / "quality.txt").write_text(quality_text((web_held, jargon_held), heldout, QUALITY_BYTES), encoding="utf-8")
    (args.out / "calib.txt").write_text(take(web[300:], 4000) + take(jargon[60:], 4000), encoding="utf-8")
    tokenizer = train_tokenizer(training, args.vocab)
    n_bytes = sum(len(d.encode()) for d in training)

    import torch
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    ids = encode(tokenizer, training)
    held = {"bible": encode(tokenizer, web_held), "jargon": encode(tokenizer, jargon_held)}
    held["all"] = torch.cat(list(held.values()))
    print(f"{len(web)} chapters, {len(jargon)} pieces, {n_bytes} bytes, {len(ids)} tokens "
          f"({n_bytes / len(ids):.2f} bytes each); held out: {len(held['all'])} tokens", flush=True)
    model = make_model(args.vocab)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    if args.data_only:
        tokenizer.save(str(args.out / "tokenizer.json"))
        return
    train(model, ids, held["all"], args)
    save(model, tokenizer, args.out / "tiny-llama")
    model = model.float()  # the weights that were stored, rounded to FP16
    for name, part in held.items():
        loss = mean_loss(model, part)
        print(f"held out {name}: {len(part)} tokens, perplexity {math.exp(loss):.2f} (uniform {args.vocab})")


if __name__ == "__main__":
    main()
