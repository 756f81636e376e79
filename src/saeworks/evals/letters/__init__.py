"""First letters of words: what absorption is measured on."""
