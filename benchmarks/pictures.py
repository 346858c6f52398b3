"""How the pictures of the docs are drawn: as SVG that is the same each time."""


def svg_pyplot(font_size=10):
    """Return matplotlib.pyplot, set up."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {"svg.fonttype": "path", "svg.hashsalt": "abft", "font.size": font_size}
    matplotlib.rcParams.update(settings)
    return pyplot


def tidy(axes):
    """A grid, and no frame above and on the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
