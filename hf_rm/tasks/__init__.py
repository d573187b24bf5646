"""Tasks: data in, corruption, verifiers and metrics, one subpackage a task."""
