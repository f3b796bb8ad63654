"""What a run computes on: devices and what they can do, processes, threads, the compiler."""
