"""The model: what a run is (`run`), `training`, `sampling` and `evaluation`. Each imports only those before it."""
