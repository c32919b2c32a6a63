"""The command line: `nvsubq train | evaluate | predict | doctor`."""

__all__: list[str] = []
