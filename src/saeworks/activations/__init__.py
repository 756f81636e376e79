"""Streams of activations: live from a language model, from a store on disk, or synthetic; shuffled,
seeded and resumable."""
