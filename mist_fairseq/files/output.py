"""Old names, to be removed as soon as nothing imports them: see ``whole`` and ``markdown``."""

from mist_fairseq.files.markdown import markdown_table as markdown_table
from mist_fairseq.files.whole import whole_file as whole_file


def new_figure(width: float, height: float):
    """An empty figure of matplotlib, inches wide and high, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
