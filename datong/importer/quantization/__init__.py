"""`quantization_config` of a checkpoint: one file per method that reads it, and table.py that knows them."""
