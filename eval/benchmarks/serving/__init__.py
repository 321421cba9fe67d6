"""What the benchmark of serving consists of."""
