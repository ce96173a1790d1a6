"""A name -> a ready model. The only room where stages run side by side."""
