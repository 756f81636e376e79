"""Removing latents and seeing what a probe loses: SCR, SHIFT and TPP."""
