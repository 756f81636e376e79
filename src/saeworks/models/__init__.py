"""Language models: loading them, naming their sites, reading activations with an early stop, changing them mid-pass."""
