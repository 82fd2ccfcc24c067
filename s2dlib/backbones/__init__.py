"""Video backbones as named stages."""
