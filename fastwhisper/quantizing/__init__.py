"""Make int8 and int4 checkpoints: choose the bits, calibrate on speech, round, write."""
