"""Sparse operations on codes: everything after the encoder product works on the nonzeros alone."""
