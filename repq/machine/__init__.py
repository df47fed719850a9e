"""The machine: its CPU and GPU, their readings, and which runtimes work on it."""
