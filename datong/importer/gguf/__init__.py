"""GGUF files: reader -> metadata, names, blocks, tokenizer -> Imported."""
