#!/usr/bin/env python3
"""Train three small byte-level BPE tokenizers with Hugging Face `tokenizers` and record the ids it gives.

usage: bpe_golden.py GOLDEN_FOLDER      (reads the texts of gemma.tok.jsonl there, writes bpe-*.json and bpe-*.tok.jsonl)
Made with tokenizers 0.23.3."""
import json
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def main(folder):
    byte_level = pre_tokenizers.ByteLevel
    lines = [json.loads(line)["text"] for line in open(f"{folder}/gemma.tok.jsonl", encoding="utf-8")]
    corpus = lines + ["the quick brown fox and the lazy dog were there with them " * 3] * 20
    texts = lines[::3] + ["a<|begin|>b <|end|> fox<pad>", "\u0085y", "foxfox the fox"]
    variants = {
        "gpt2": (None, byte_level(add_prefix_space=False), False),
        "llama3": (None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                                  byte_level(add_prefix_space=False, use_regex=False)]), True),
        "nfc": (normalizers.NFC(), pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                            byte_level(add_prefix_space=False)]), False),
    }
    for name, (normalizer, pre, ignore_merges) in variants.items():
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
        if normalizer:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=byte_level.alphabet(),
            show_progress=False))
        tokenizer.add_tokens([AddedToken("<pad>", normalized=False), AddedToken("fox", normalized=False)])
        json.dump(json.loads(tokenizer.to_str()), open(f"{folder}/bpe-{name}.json", "w", encoding="utf-8"))
        with open(f"{folder}/bpe-{name}.tok.jsonl", "w", encoding="utf-8") as out:
            for text in texts:
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                out.write(json.dumps({"text": text, "special": True, "ids": ids}) + "\n")


main(sys.argv[1])
