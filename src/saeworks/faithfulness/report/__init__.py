"""The HTML report on faithfulness: rates with what they rest on, and every flagged pair side by side."""
