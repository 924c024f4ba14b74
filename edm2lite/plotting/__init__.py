"""All drawing, with matplotlib."""
