"""How the embedded models are trained: their text, their objective, one script for both families."""
