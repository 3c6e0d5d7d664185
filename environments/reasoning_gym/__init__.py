"""Procedural tasks of the package reasoning-gym, scored where its scorers execute nothing that a model wrote."""
