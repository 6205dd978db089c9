"""Pictures in, results out: what the command does, as the function `upsample` of its `Settings`."""
