"""Pairs of SAR and optical images: found by name, read in their stored values, normalised to [-1, 1]."""

from .config import DataConfig, OptConfig, SarConfig
from .pairs import PairedData, Pairs, open_data
from .radiometry import SarRadiometry, to_uint8

__all__ = ["DataConfig", "OptConfig", "PairedData", "Pairs", "SarConfig", "SarRadiometry", "open_data", "to_uint8"]
