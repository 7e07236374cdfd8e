"""Serves a bundle over HTTP, in OpenAI's protocol and with what only diffusion can do; never imports torch."""
