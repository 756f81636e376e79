"""The domains of the world, one file each: its templates, its spans and its document labels."""
