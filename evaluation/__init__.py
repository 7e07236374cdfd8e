"""Evaluates a bundle: tasks with metrics, the Monte-Carlo bound of perplexity, and lm-evaluation-harness."""
