"""The tiny client: standard library only, since its virtue is how fast it starts."""
