"""The forecaster: arrivals of all gateways in, what is expected next out."""
