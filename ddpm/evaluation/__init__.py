"""How good are generated images: a reference classifier trained on real ones, and the scores it gives."""
