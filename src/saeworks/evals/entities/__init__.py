"""Entities and their attributes: what RAVEL is measured on."""
