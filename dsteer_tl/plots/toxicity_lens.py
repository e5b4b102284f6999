"""Where the attribute's tokens come up and where they are put down (Lee et al. 2024, Fig. 1)."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dsteer_tl.plots.panels import add_line, finish, padded_range, panel_grid, panel_width
from dsteer_tl.plots.tables import check_table, floats, ordered_names
from dsteer_tl.plots.theme import DASH, DOT, INK, SeriesStyle, series_style
from dsteer_tl.plots.toxicity_axes import DEPTH_TITLE, along_depth, layer_axis, log_axis
from dsteer_tl.plots.toxicity_parts import counted, group_style, thin_marks, words

LENS_COLUMNS = (
    "place",
    "layer",
    "group",
    "base",
    "policy",
    "log_ratio",
    "low",
    "high",
    "tokens",
    "prompts",
    "draws",
)

_GROUPS = ("attribute", "neutral")


def toxicity_lens(lens: pd.DataFrame) -> go.Figure:
    """Summed probability of the attribute's tokens by depth, and its paired change in logarithms.

    Hidden states are read through each model's final norm and unembedding. Groups of neutral tokens
    that the base finds as likely are the control: training moves every group, whether or not it was
    meant (claim 29). The attribute's band is a 95 % interval over prompts; the neutral band is the
    range of the groups drawn, so an attribute inside it changes as any tokens do.

    Args:
        lens: Table `toxicity_lens`: means over prompts and draws of probabilities and of
            ln(p_policy / p_base), with the ends of both bands.

    Raises:
        ShapeError: The table lacks columns or rows, or has an unknown place.
    """
    check_table(lens, "toxicity_lens", LENS_COLUMNS)
    table = along_depth(lens, "toxicity_lens")
    groups = ordered_names(table, "group", _GROUPS)
    prompts = counted(floats(table, "prompts"), "prompts")
    figure = panel_grid(
        1,
        2,
        titles=["probability of the tokens", f"its change, {prompts}"],
        height=330,
        left=62,
        gap_x=64,
    )
    probabilities: list[float] = []
    ratios: list[float] = []
    for group in groups:
        rows = table[table["group"] == group]
        depth = floats(rows, "depth")
        main = group == "attribute"
        name = words(group)
        for model in ("base", "policy"):
            known = series_style(model)
            style = SeriesStyle(
                f"{model}, {name}",
                known.colour,
                "solid" if main else DASH,
                known.symbol if main else f"{known.symbol}-open",
            )
            probabilities += floats(rows, model)
            add_line(
                figure, depth, floats(rows, model), style, width=2 if main else 1.3, row=1, col=1
            )
        low, high = floats(rows, "low"), floats(rows, "high")
        ratios += [*floats(rows, "log_ratio"), *low, *high]
        style = group_style(group)
        count, draws = (int(rows[column].max()) for column in ("tokens", "draws"))
        drawn = f"{draws:,} draws of " if draws > 1 else ""
        add_line(
            figure,
            depth,
            floats(rows, "log_ratio"),
            style,
            low=low,
            high=high,
            label=f"{style.label} ({drawn}{count:,} tokens)",
            row=1,
            col=2,
        )
    thin_marks(figure)
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": DOT}, row=1, col=2)
    figure.update_xaxes(
        **layer_axis(table, panel_width(2, left=62, gap_x=64)), title_text=DEPTH_TITLE
    )
    figure.update_yaxes(**log_axis(probabilities), title_text="mean probability", row=1, col=1)
    figure.update_yaxes(
        range=padded_range(ratios, include=(0.0,)),
        title_text="ln p(policy) / p(base)",
        row=1,
        col=2,
    )
    return finish(figure)
