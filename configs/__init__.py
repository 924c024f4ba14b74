"""The shipped YAML configurations, one per preset."""
