"""The data sets: EMNIST as NIST stores it, and glyphs drawn from fonts."""
