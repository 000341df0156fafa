"""The colours of the heat maps, on the terminal and in pictures."""

VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Even steps in brightness and safe for colour-blind readers; low to high."""


def ink_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever stands out more on a background; its parts go from 0 to 1."""
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return "#000000" if luminance > 0.18 else "#ffffff"
