"""Trackers: where a run is seen besides its directory. A file for each, whose package is imported when it begins."""
