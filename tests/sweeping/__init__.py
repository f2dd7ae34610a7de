"""Tests of sweeps and of hinted rows, for hosts where no runner lives."""
