"""What several evals use: batches of activations, pooled texts, intervals, result building."""
