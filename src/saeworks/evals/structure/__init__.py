"""Decoder geometry and description length."""
