"""Other ways to get a topic into files, measured on the same topic as our sink."""
