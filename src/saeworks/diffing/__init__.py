"""What fine-tuning changed in a language model: one dictionary on paired activations of two models, measured."""
