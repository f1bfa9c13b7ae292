"""LightningDataModules, one file a source."""
