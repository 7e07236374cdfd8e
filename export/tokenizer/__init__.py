"""Makes the tokenizer of a bundle from the checkpoint's files."""
