"""What fine-tuning changed inside a language model: one dictionary on the paired activations of two models, measured."""
