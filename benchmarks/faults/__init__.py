"""Runs that are struck by faults: nothing may be lost. Each program prints the command that repeats what it found.

kills        SIGKILL at random moments, again and again
soak         random settings under random faults, for as long as you like
tournament   the same faults for train.py, Accelerate and Lightning
"""
