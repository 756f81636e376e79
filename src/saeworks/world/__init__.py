"""The embedded world: a corpus whose every character knows its concepts, and the language models trained on it."""
