"""Stand-alone measurement: models, servers and stored generations against prompts, scorers and each other."""
