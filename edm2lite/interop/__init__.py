"""Files of other tools, read without executing anything."""
