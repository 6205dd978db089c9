"""What the experiments have in common."""
