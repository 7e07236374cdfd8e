"""The tokenizer of a bundle, made of what the checkpoint says of it."""
