"""Latency and quality of any list of systems, measured side by side in one process."""
