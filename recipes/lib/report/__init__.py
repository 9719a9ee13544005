"""One self-contained HTML page per run: numbers, curves, calibration and samples."""
