"""Model families: what layers a model has and how their parameters split. One file a family."""
