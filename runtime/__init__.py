"""The runtime: opens a bundle and drives the diffusion loop. Never imports torch."""
