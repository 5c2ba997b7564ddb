"""How well the forecaster's models do on a trace: `dopd forecast`."""
