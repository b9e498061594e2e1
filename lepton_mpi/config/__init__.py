"""Configuration: the schema, the TOML reader, command-line overrides, and the checks."""
