"""A directory of weights -> a checked plan -> arrays. Touches only the files it is given."""
