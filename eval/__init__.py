"""Measurements: acceptance, speed, peers, the demo."""
