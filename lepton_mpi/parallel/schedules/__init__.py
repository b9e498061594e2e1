"""Pipeline schedules: what each stage does, in which order, as plain data."""
