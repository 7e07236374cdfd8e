"""Training of the embedded models: text, objective, and one script for both families."""
