"""Success criteria: whether a run meets them, and how pages say so."""
