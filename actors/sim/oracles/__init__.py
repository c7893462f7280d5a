"""What must hold in a simulated world: models outside of every crash, and the look at the end."""
