"""Where blocking work runs: the threads that MLX is used in, and the backend behind them."""
