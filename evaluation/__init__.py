"""Measures of a bundle: tasks with metrics, the Monte-Carlo bound of perplexity, lm-evaluation-harness."""
