"""Monitoring: run folders, metrics, progress, throughput, the banner and the summary."""
