"""Explaining latents from texts that make them active, and matching them with known concepts."""
