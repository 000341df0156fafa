"""What a run is: its rows and processes, its folder, and how far it has come."""
