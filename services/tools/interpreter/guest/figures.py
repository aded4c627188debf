"""matplotlib's backend in the sandbox: a figure that is shown, or left open at the end, becomes a PNG file."""

import os

from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas  # noqa: F401 (matplotlib asks for it)

MOST = 16
"""Figures of a call."""


def show(*_arguments, **_settings):
    """What plt.show() does."""
    save()


def save():
    """Write all open figures and close them."""
    from matplotlib import pyplot as plt

    for manager in Gcf.get_all_fig_managers()[:MOST]:
        number = 1
        while os.path.exists("/mnt/data/figure-%d.png" % number):
            number += 1
        manager.canvas.figure.savefig("/mnt/data/figure-%d.png" % number)
    plt.close("all")
