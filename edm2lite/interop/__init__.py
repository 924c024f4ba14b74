"""Reads files of other tools, without executing anything in them."""
