"""How good are generated characters: a reference classifier trained on real ones, and the scores it gives."""
