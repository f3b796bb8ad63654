"""What a run is: settings, figures, places. Imports neither torch nor pandas nor matplotlib."""
