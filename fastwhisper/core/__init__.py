"""The functional core: no thread, loop, clock, environment, network or hidden state."""
