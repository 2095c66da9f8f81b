"""What ships with the package: the embedded model, its prompts and reward, and model geometries."""
