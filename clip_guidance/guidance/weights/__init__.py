"""Other networks' weights while a gradient passes through them: frozen, moved between devices, cloned."""
