"""Converts text to token ids and back, with a checkpoint's untrusted tokenizer and chat template, within limits."""
