"""Map of the room: stages, losses, the loop, and scoring."""
