"""Text to token ids and back, with files from strangers: tokenizer, chat template, their limits."""
