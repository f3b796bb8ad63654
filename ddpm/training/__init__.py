"""Training, one concept a file: data, network, diffusion, optimizer step, processes, checkpoints."""
