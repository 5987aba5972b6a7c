"""Monitoring: what Prometheus and OpenTelemetry see."""
