"""What the daemon costs, as ratios to floors measured in the same round: `python -m benchmarks --quick`."""
