"""Probes that evals train: logistic, linear in batches, L1; how labels become problems."""
