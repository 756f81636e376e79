"""The benchmark suite: one file per eval, each a frozen config, a ``run`` and pure functions on tensors.

Nothing is trained here but probes.
"""
