"""The main job in about two minutes: train a hypernetwork, generate networks, run them as one ensemble."""
