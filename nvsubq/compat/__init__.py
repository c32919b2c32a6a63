"""Other packages' names and call forms over nvsubq: one thin module for each package, imported by name."""

__all__: list[str] = []
