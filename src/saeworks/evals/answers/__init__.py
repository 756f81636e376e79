"""Multiple choice questions answered while latents are clamped: unlearning."""
