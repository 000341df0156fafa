"""The model that is asked: where its parts lie, how it is loaded, and how it answers."""
