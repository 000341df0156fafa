"""Short trials that decide a setting, with the very model, rows and optimizer of the run."""
