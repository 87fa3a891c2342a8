"""sar2opt: training and inference for SAR-to-optical image translation."""

__version__ = "0.1.0"
