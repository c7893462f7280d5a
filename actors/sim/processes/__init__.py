"""The processes of a simulated world: who runs, what handlers do, who lives and dies."""
