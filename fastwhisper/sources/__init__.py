"""The name of a model -> a directory on this machine: found, downloaded or converted."""
