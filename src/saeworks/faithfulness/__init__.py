"""Chain-of-thought faithfulness: mirrored questions, judges of answers, the criterion for contradictory pairs."""
