"""Figures of the examples, and thumbnails that show one of several panels."""

from pathlib import Path

import matplotlib.pyplot as plt
from sphinx_gallery.scrapers import matplotlib_scraper

# of a figure with several panels, the one that is large enough to be a thumbnail
PANELS = {
    "plot_adam_and_a_network": 3,
    "plot_line_epoch_by_epoch": 1,
    "plot_replace_linear_regression": 1,
    "plot_salammbo": 4,
    "plot_several_targets": 0,
    "plot_tuning_a_network": 1,
    "plot_your_own_module": 1,
}


def save_figures(block, block_vars, gallery_conf):
    """Save the figures of an example, and one panel of the last one as its thumbnail."""
    name = Path(block_vars["src_file"]).stem
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        area = figure.axes[PANELS.get(name, 0)].get_tightbbox()
        inches = area.transformed(figure.dpi_scale_trans.inverted()).padded(0.08)
        folder = Path(gallery_conf["src_dir"]) / "auto_examples" / "thumbnails"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", bbox_inches=inches, dpi=200)
    return matplotlib_scraper(block, block_vars, gallery_conf)
